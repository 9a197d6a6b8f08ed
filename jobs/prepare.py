#!/usr/bin/env python3
"""Check every case of --data and write a manifest: checksums, patient-level splits, label statistics.

    python jobs/prepare.py --data s3://bucket/brats --out s3://bucket/brats-manifest

With --report it leaves a page about the data set too, report.html beside the manifest, and its pictures in MLflow;
--recipe NAME or --set preprocess.clahe=0.02 add what that preparation does to one case.

Good cases go on; bad ones are listed, a line each. Exit code 1 says that there were bad ones (the manifest is
written all the same), 2 that nothing could be done.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from glioray import cli
from glioray.cases.layouts import RECOGNISED, discover_cases
from glioray.cases.manifest import MANIFEST, build_manifest
from glioray.engine.on_mlflow.client import connect as connect_tracking
from glioray.engine.on_mlflow.data_report import publish_report
from glioray.engine.on_ray.connect import connect, log_to_stderr
from glioray.engine.on_ray.data import describe_cases
from glioray.errors import DataError
from glioray.reports.data_figures import choose_pictured
from glioray.resolve import shown_preparation
from glioray.storage import join_uri, open_storage


def main() -> dict[str, object]:
    args = cli.parse_flags(
        __doc__.splitlines()[0],
        "data out seed storage experiment recipe set dry-run",
        ratios={
            "metavar": "SHARE",
            "nargs": 3,
            "type": float,
            "default": (0.8, 0.2, 0.0),
            "help": "shares of train, val and test among patients (default: 0.8 0.2 0)",
        },
        folds={
            "metavar": "K",
            "type": int,
            "default": 5,
            "help": "folds for cross-validation (default: %(default)s)",
        },
        shuffle={"action": "store_true", "help": "split in a seeded order rather than in the order of ids"},
        report={
            "action": "store_true",
            "help": "write report.html too: labels, areas, intensities, pictures; and log them to MLflow",
        },
    )
    shown = shown_preparation(args)
    data = cli.data_uri(args)
    storage = open_storage(data)
    cases, problems = discover_cases(storage)
    if not cases and not problems:
        raise DataError(f"'{data}' holds no case; {RECOGNISED}")
    if args.dry_run:
        return {"num_cases": len(cases), "problems": [str(problem) for problem in problems]}
    out = cli.out_uri(args)
    log_to_stderr()
    if args.report:
        connect_tracking(
            cli.tracking_address(cli.storage_uri(args))
        )  # to hear before hours of work if it is away
    connect()
    pictured = choose_pictured([files.case_id for files in cases]) if args.report else None
    examined = list(describe_cases(data, cases, pictured))
    manifest = build_manifest(
        storage.uri,
        [(None, problems), *((entry, found) for entry, found, _ in examined)],
        seed=args.seed or 0,
        ratios=tuple(args.ratios),
        num_folds=args.folds,
        shuffle=args.shuffle,
    )
    manifest.save(open_storage(out))
    cli.print_report(manifest)
    statistics = [case for _, _, case in examined if case is not None]
    return {
        "manifest": join_uri(out, MANIFEST),
        "num_cases": len(manifest.cases),
        "problems": [str(problem) for problem in manifest.problems],
        "hash": manifest.hash,
        "splits": {name: len(ids) for name, ids in manifest.splits.items()},
        **(publish_report(manifest, statistics, out, args.experiment, shown) if args.report else {}),
        "exit_code": 1 if manifest.problems or not manifest.cases else 0,
    }


if __name__ == "__main__":
    cli.run_job(main)
