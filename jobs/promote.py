#!/usr/bin/env python3
"""Make a model the champion, if it beats the present one on the same validation cases.

    python jobs/promote.py --model models:/glioray-unet/3 --data s3://bucket/brats

With --data both are judged now on validation cases that neither was trained on; without, by the Dice that was
recorded at training, which both must have on the same cases.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from glioray import cli
from glioray.batch import evaluate_cases
from glioray.cluster import connect, log_to_stderr
from glioray.errors import UsageError
from glioray.inference.evaluate import mean_region_dice
from glioray.sources import open_data, open_package, registered_version, unseen_by_all
from glioray.tracking.registry import champion, set_champion


def main() -> dict[str, object]:
    args = cli.parse_flags(__doc__.splitlines()[0], "model data storage name dry-run")
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
        if args.data:
            connect()
            manifest = open_data(cli.data_uri(args), storage)
            entries = unseen_by_all(manifest, [spec for _, spec in packages.values()])
            cases = {
                role: evaluate_cases(path, manifest.data, entries)[0] for role, (path, _) in packages.items()
            }
            dice = {
                role: {c: {r: f["dice"] for r, f in figures.items()} for c, figures in found.items()}
                for role, found in cases.items()
            }
        else:
            fitted = [role for role, (_, spec) in packages.items() if spec.config.postprocess.fit_thresholds]
            if fitted and present is not None:
                raise UsageError(
                    f"the thresholds of the {fitted[0]} were fitted on the cases that its Dice was recorded on, which "
                    "flatters; give --data with patients that neither has seen"
                )
            dice = {role: spec.val_cases for role, (_, spec) in packages.items()}
    judged = {role: sorted(found) for role, found in dice.items()}
    if present is not None and (not judged["candidate"] or judged["candidate"] != judged["champion"]):
        raise UsageError(
            f"the candidate was judged on {len(judged['candidate'])} cases and the champion on "
            f"{len(judged['champion'])} that are not the same; give --data to judge both on the same cases"
        )
    scores = {role: mean_region_dice(found) if found else None for role, found in dice.items()}
    answer |= {"dice_mean": scores, "cases": judged["candidate"]}
    if present is None:
        reason = "there was no champion"
    elif scores["candidate"] > scores["champion"]:
        reason = f"mean Dice {scores['candidate']:.4f} beats {scores['champion']:.4f} on {len(judged['candidate'])} cases"
    else:
        reason = (
            f"mean Dice {scores['candidate']:.4f} does not beat {scores['champion']:.4f}; the champion stays"
        )
        return {**answer, "reason": reason}
    if not args.dry_run:
        set_champion(name, version)
    return {**answer, "promoted": not args.dry_run, "reason": reason}


if __name__ == "__main__":
    cli.run_job(main)
