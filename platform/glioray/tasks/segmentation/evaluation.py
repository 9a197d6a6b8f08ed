"""A segmentation model evaluated on whole cases: metrics with intervals, and files to read."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glioray.cases.casefiles import CaseFiles
from glioray.cases.load import load_case
from glioray.cases.manifest import CaseEntry, Manifest
from glioray.engine.evaluation import check_rule, files_of, patients_of, select_cases, write_report
from glioray.engine.on_ray.batch import map_cases, split_failed
from glioray.engine.task import ModelPackage
from glioray.errors import DataError
from glioray.reports.case_metrics import CaseMetrics, mean_metrics, metric_intervals, metrics_csv
from glioray.storage import open_storage
from glioray.tasks.segmentation.case_metrics import case_metrics, case_slice_sums
from glioray.tasks.segmentation.evaluation_page import evaluation_markdown
from glioray.tasks.segmentation.package import ModelSpec
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.segmentation.slicewise import SliceSums, slicewise_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OVERLAYS = "overlays.png"


def evaluate_segmentation(
    package: ModelPackage,
    manifest: Manifest,
    *,
    split: str,
    out: str | None = None,
    rule: str = "brats2023",
    resample: bool = False,
) -> dict[str, Any]:
    """Evaluate a model on the labelled cases of a split; see `engine.task.Task.evaluate`.

    Raises:
        DataError: no case is left, or none could be evaluated.
    """
    entries = select_labelled_cases(manifest, {"model": package.spec}, split)
    good, failed = _map_cases(package.folder, manifest.data, entries, rule, resample)
    cases: dict[str, CaseMetrics] = {case_id: answer["metrics"] for case_id, answer in good.items()}
    if not cases:
        raise DataError(f"none of the {len(failed)} cases could be evaluated; the reasons are above")
    patients = patients_of(entries)
    result: dict[str, Any] = {
        "model": package.uri,
        "split": split,
        "mean": mean_metrics(cases),
        "intervals": metric_intervals(cases, patients),
        "slicewise": slicewise_table([answer["slices"] for answer in good.values()]),
        "cases": cases,
        "failed": failed,
    }
    from glioray.tasks.segmentation.evaluation_figures import extremes_figure

    page = evaluation_markdown(
        cases,
        patients,
        result["slicewise"],
        title=f"{package.uri} on {split} cases",
        failed=failed,
        overlays=_OVERLAYS,
    )
    report = {
        "evaluation.json": json.dumps(result, indent=1).encode(),
        "evaluation.csv": metrics_csv(cases).encode(),
        "evaluation.md": page.encode(),
        _OVERLAYS: _png(
            extremes_figure(cases, {case_id: answer["sketch"] for case_id, answer in good.items()})
        ),
    }
    if out is not None:
        result["files"] = write_report(report, out)
    return {**result, "report": report, "exit_code": 1 if failed else 0}


def select_labelled_cases(
    manifest: Manifest, specs: Mapping[str, ModelSpec], split: str = "unseen"
) -> list[CaseEntry]:
    """`engine.evaluation.select_cases` of labelled cases.

    Raises:
        DataError: none is left.
        UsageError: no such split.
    """
    fitted = any(spec.config.postprocess.fit_thresholds for spec in specs.values())
    used = "trained, or had its thresholds fitted," if fitted else "trained"
    return select_cases(manifest, specs, split, labelled=True, used=used)


def evaluate_cases(
    package: Path, data: str, entries: Sequence[CaseEntry], *, rule: str = "brats2023"
) -> tuple[dict[str, CaseMetrics], dict[str, SliceSums], dict[str, str]]:
    """Each case's metrics by region, its sums over slices, and why the others could not be evaluated.

    Args:
        package: folder of the model.
        data: the URI below which the cases lie.
        entries: the cases, with masks.
        rule: of `engine.evaluation.RULES`.
    """
    good, failed = _map_cases(package, data, entries, rule)
    metrics = {case_id: answer["metrics"] for case_id, answer in good.items()}
    return metrics, {case_id: answer["slices"] for case_id, answer in good.items()}, failed


def load_predictor(folders: Mapping[str, Path]) -> Predictor:
    """Load a worker's model, for `map_cases`."""
    return Predictor.load(folders["model"])


def _map_cases(
    package: Path, data: str, entries: Sequence[CaseEntry], rule: str, resample: bool = False
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """By case id "metrics", "slices" and "sketch", and why the other cases failed."""
    work = partial(_evaluate, data, rule, resample)
    return split_failed(map_cases({"model": package}, load_predictor, files_of(entries), work))


def _evaluate(data: str, rule: str, resample: bool, predictor: Predictor, files: CaseFiles) -> dict[str, Any]:
    from glioray.tasks.segmentation.evaluation_figures import sketch_case

    check_rule(rule, "labels")  # this node may lack what the driver has
    case = load_case(open_storage(data), files)
    prediction = predictor.predict(case, resample=resample)
    return {
        "metrics": case_metrics(case, prediction, rule=rule),
        "slices": case_slice_sums(case, prediction),
        "sketch": sketch_case(case, prediction),
    }


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
