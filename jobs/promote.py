#!/usr/bin/env python3
"""Make a model the champion, if it beats the present one on the same validation cases.

    python jobs/promote.py --model models:/glioray-unet/3 --data s3://bucket/brats
    python jobs/promote.py --model models:/glioray-superres/2 --data s3://bucket/brats

With --data both are judged now on cases that neither was trained on; without, by what was recorded at training (Dice,
or the quality of super-resolved images), which both must have on the same cases. A super-resolution model that has
collapsed, or that was never judged for it, is refused.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from glioray import cli
from glioray.engine.on_mlflow.registry import champion, set_champion
from glioray.engine.on_ray.connect import connect, log_to_stderr
from glioray.engine.promotion import compare_to_champion
from glioray.sources import open_data, registered_version
from glioray.tasks import open_package

NAME = {
    "metavar": "NAME",
    "help": "registered model, for a run's one (default: glioray-unet, or glioray-superres of super-resolution)",
}


def main() -> dict[str, object]:
    args = cli.parse_flags(__doc__.splitlines()[0], "model data storage dry-run", name=NAME)
    storage = cli.storage_uri(args)
    cli.tracking_address(storage)
    name, version = registered_version(args)
    present = champion(name)
    answer = {"name": name, "candidate": f"models:/{name}/{version}", "promoted": False}
    answer["champion"] = None if present is None else f"models:/{name}/{present}"
    if present == version:
        return {**answer, "reason": "it is the champion already"}
    log_to_stderr()
    with tempfile.TemporaryDirectory() as folder:
        packages = {
            role: open_package(uri, Path(folder) / role)
            for role, uri in (("candidate", answer["candidate"]), ("champion", answer["champion"]))
            if uri is not None
        }
        manifest = None
        if args.data:
            connect()
            manifest = open_data(cli.data_uri(args), storage)
        outcome = compare_to_champion(packages, manifest)
    answer |= {**outcome.answer, "reason": outcome.reason}
    if not outcome.wins:
        return answer
    if not args.dry_run:
        set_champion(name, version)
    return {**answer, "promoted": not args.dry_run}


if __name__ == "__main__":
    cli.run_job(main)
