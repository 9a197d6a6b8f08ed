#!/usr/bin/env python3
"""Judge a model on labelled cases: overlap, surfaces, volumes and lesions by case and region, with intervals.

    python jobs/evaluate.py --model models:/glioray-unet@champion --data s3://bucket/brats --out results

By default on the labelled cases of patients that the model was not trained on. Means are over cases, with 95 %
intervals by resampling patients; `slicewise` is the slice-level table of the same predictions, which flatters.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from glioray import cli
from glioray.batch import evaluate_cases
from glioray.cluster import connect, log_to_stderr
from glioray.errors import DataError
from glioray.inference.evaluate import figure_intervals, figures_csv, mean_figures
from glioray.inference.evaluation_page import evaluation_markdown
from glioray.metrics.slicewise import slicewise_table
from glioray.sources import open_data, open_model, select_cases
from glioray.storage import join_uri, open_storage

SPLIT = {
    "metavar": "SPLIT",
    "default": "unseen",
    "help": "unseen (labelled cases of patients it was not trained on), train, val, test or labelled (default: unseen)",
}


def main() -> dict[str, object]:
    args = cli.parse_flags(__doc__.splitlines()[0], "model data out storage dry-run", split=SPLIT)
    data, storage = cli.data_uri(args), cli.storage_uri(args)
    cli.tracking_address(storage)
    with tempfile.TemporaryDirectory() as folder:
        package, spec, resolved = open_model(args, Path(folder))
        if args.dry_run:
            return cli.answer_dry_run(spec.config, model=resolved)
        log_to_stderr()
        connect()
        manifest = open_data(data, storage)
        entries = select_cases(manifest, spec, args.split)
        cases, slices, failed = evaluate_cases(package, manifest.data, entries)
    if not cases:
        raise DataError(f"none of the {len(failed)} cases could be judged; the reasons are above")
    patients = {entry.case_id: entry.patient_id for entry in entries}
    result: dict[str, Any] = {
        "model": resolved,
        "split": args.split,
        "mean": mean_figures(cases),
        "intervals": figure_intervals(cases, patients),
        "slicewise": slicewise_table(slices.values()),
        "cases": cases,
        "failed": failed,
    }
    if args.out:
        out = open_storage(cli.out_uri(args))
        out.write("evaluation.json", json.dumps(result, indent=1).encode())
        out.write("evaluation.csv", figures_csv(cases).encode())
        page = evaluation_markdown(
            cases, patients, result["slicewise"], title=f"{resolved} on {args.split} cases", failed=failed
        )
        out.write("evaluation.md", page.encode())
        result["files"] = [join_uri(out.uri, f"evaluation.{kind}") for kind in ("json", "csv", "md")]
    return {**result, "exit_code": 1 if failed else 0}


if __name__ == "__main__":
    cli.run_job(main)
