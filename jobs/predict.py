#!/usr/bin/env python3
"""Write a mask for every case of --data, on the case's own grid and in its own label convention.

python jobs/predict.py --model models:/glioray-unet@champion --data s3://bucket/new --out s3://bucket/masks
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from glioray import cli
from glioray.cases.labels import CONVENTIONS
from glioray.engine.on_ray.connect import check_shared, connect, log_to_stderr
from glioray.sources import find_cases, open_model

LABELS = {
    "choices": sorted(CONVENTIONS),
    "help": "numbers of the labels in the masks (default: those of the case's own layout or mask)",
}
UNCERTAINTY = {
    "action": "store_true",
    "help": "write CASE_uncertainty.nii.gz too: 0 (sure) to 1, the entropy of the prediction",
}


def main() -> dict[str, object]:
    args = cli.parse_flags(
        __doc__.splitlines()[0], "model data out storage dry-run", labels=LABELS, uncertainty=UNCERTAINTY
    )
    data, out, storage = cli.data_uri(args), cli.out_uri(args), cli.storage_uri(args)
    cli.tracking_address(storage)
    data, cases, problems = find_cases(data)
    with tempfile.TemporaryDirectory() as folder:
        package = open_model(args, Path(folder))
        if args.dry_run:
            return cli.answer_dry_run(package.spec.config, model=package.uri, num_cases=len(cases))
        log_to_stderr()
        for problem in problems:
            print(f"left out: {problem}", file=sys.stderr)
        connect()
        check_shared(out, "--out")
        masks, failed = package.task.predict(
            package, data, cases, out, labels=args.labels, with_uncertainty=args.uncertainty
        )
    failed |= {problem.case_id: str(problem) for problem in problems if problem.case_id not in masks}
    return {"model": package.uri, "masks": masks, "failed": failed, "exit_code": 1 if failed else 0}


if __name__ == "__main__":
    cli.run_job(main)
