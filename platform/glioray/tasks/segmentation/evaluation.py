"""What `jobs/evaluate.py` does with a segmentation model: cases, figures with intervals, and files to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glioray.cases.manifest import Manifest
from glioray.engine.on_ray.batch import evaluate_cases
from glioray.errors import DataError
from glioray.sources import select_cases
from glioray.storage import join_uri, open_storage
from glioray.tasks.segmentation.case_metrics import figure_intervals, figures_csv, mean_figures
from glioray.tasks.segmentation.evaluation_page import evaluation_markdown
from glioray.tasks.segmentation.package import ModelSpec
from glioray.tasks.segmentation.slicewise import slicewise_table


def evaluate_segmentation(
    package: Path, spec: ModelSpec, resolved: str, manifest: Manifest, split: str, out: str | None
) -> dict[str, Any]:
    """The job's answer; where `out` is given, its files lie there.

    Raises:
        DataError: no case is left, or none could be judged.
    """
    entries = select_cases(manifest, spec, split)
    cases, slices, failed = evaluate_cases(package, manifest.data, entries)
    if not cases:
        raise DataError(f"none of the {len(failed)} cases could be judged; the reasons are above")
    patients = {entry.case_id: entry.patient_id for entry in entries}
    result: dict[str, Any] = {
        "model": resolved,
        "split": split,
        "mean": mean_figures(cases),
        "intervals": figure_intervals(cases, patients),
        "slicewise": slicewise_table(slices.values()),
        "cases": cases,
        "failed": failed,
    }
    if out is not None:
        storage = open_storage(out)
        storage.write("evaluation.json", json.dumps(result, indent=1).encode())
        storage.write("evaluation.csv", figures_csv(cases).encode())
        page = evaluation_markdown(
            cases, patients, result["slicewise"], title=f"{resolved} on {split} cases", failed=failed
        )
        storage.write("evaluation.md", page.encode())
        result["files"] = [join_uri(storage.uri, f"evaluation.{kind}") for kind in ("json", "csv", "md")]
    return {**result, "exit_code": 1 if failed else 0}
