"""A super-resolution model evaluated on whole cases: its images, what a segmenter makes of them, and files to read."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from glioray.cases.casefiles import CaseFiles
from glioray.cases.load import load_case
from glioray.cases.manifest import CaseEntry, Manifest
from glioray.engine.evaluation import files_of, patients_of, select_cases, write_report
from glioray.engine.on_ray.batch import map_cases, split_failed
from glioray.engine.package import SPEC_FILE
from glioray.engine.task import LabellingModel, ModelPackage, Task
from glioray.errors import DataError
from glioray.reports.case_metrics import CaseMetrics, mean_metrics, metric_intervals, metrics_csv
from glioray.storage import open_storage
from glioray.tasks.superres.case_metrics import VIEWS, check_segmenter, evaluate_case, use_summary
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.evaluation_page import superres_markdown
from glioray.tasks.superres.features import judge_extractor
from glioray.tasks.superres.lpips import Lpips
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.package import parse_superres
from glioray.tasks.superres.panel import PanelRow

_MODEL, _SEGMENTER = "model", "segmenter"

Models = tuple[SuperResolver, LabellingModel | None, Lpips | None]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The metrics of a super-resolution model.

    Attributes:
        images: each case's metrics by modality, and "mean" over them.
        use: by region, the Dice of those cases that a segmenter labelled (`CaseEvaluation.use`).
        pictures: PNG by case id.
        failed: the other cases, and why.
        judge: the perceptual distance, such as "lpips_alexnet"; "hfen" where there is no extractor.
    """

    images: dict[str, CaseMetrics]
    use: dict[str, CaseMetrics]
    pictures: dict[str, bytes]
    failed: dict[str, str]
    judge: str


def evaluate_superres(
    package: ModelPackage,
    manifest: Manifest,
    *,
    split: str,
    segmenter: ModelPackage | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Evaluate a model on the cases of a split; see `engine.task.Task.evaluate`.

    Raises:
        UsageError: the segmenter cannot label what the model makes, or the perceptual distance cannot be had.
        DataError: no case is left, or none could be evaluated.
    """
    specs = {"super-resolution model": package.spec}
    if segmenter is not None:
        check_segmenter(segmenter.spec, package.spec)
        specs["segmenter"] = segmenter.spec
    entries = select_cases(manifest, specs, split, labelled=False)
    found = evaluate_cases(package.folder, segmenter, manifest.data, entries)
    if not found.images:
        raise DataError(f"none of the {len(found.failed)} cases could be evaluated; the reasons are above")
    patients = patients_of(entries)
    result: dict[str, Any] = {
        "model": package.uri,
        "segmenter": None if segmenter is None else segmenter.uri,
        "judge": found.judge,
        "split": split,
        "mean": mean_metrics(found.images),
        "intervals": metric_intervals(found.images, patients),
        "use": use_answer(found.use, patients),
        "cases": found.images,
        "use_cases": found.use,
        "failed": found.failed,
    }
    report = _report(result, found, patients)
    if out is not None:
        result["files"] = write_report(report, out)
    return {**result, "report": report, "exit_code": 1 if found.failed else 0}


def evaluate_cases(
    package: Path,
    segmenter: ModelPackage | None,
    data: str,
    entries: Sequence[CaseEntry],
    *,
    judge: GanConfig | None = None,
) -> Evaluation:
    """Evaluate a model by its images, and by what a frozen segmenter makes of those of cases with a mask.

    Args:
        package: folder of the model.
        segmenter: a model that labels voxels, or None.
        data: the URI below which the cases lie.
        entries: the cases.
        judge: config of the run whose perceptual distance judges; by default the model's own.

    Raises:
        UsageError: the extractor that the config names cannot be had.
    """
    if judge is None:
        judge = parse_superres((package / SPEC_FILE).read_bytes()).config
    judge_extractor(judge)  # fails here with a sentence, rather than in every worker
    packages = {_MODEL: package}
    if segmenter is not None:
        packages[_SEGMENTER] = segmenter.folder
    load = partial(_load_models, judge, None if segmenter is None else segmenter.task)
    good, failed = split_failed(map_cases(packages, load, files_of(entries), partial(_evaluate, data)))
    return Evaluation(
        images={case_id: answer["images"] for case_id, answer in good.items()},
        use={case_id: answer["use"] for case_id, answer in good.items() if answer["use"]},
        pictures={case_id: base64.b64decode(answer["picture"]) for case_id, answer in good.items()},
        failed=failed,
        judge=next((answer["judge"] for answer in good.values()), ""),
    )


def _load_models(judge: GanConfig, labelling: Task | None, folders: Mapping[str, Path]) -> Models:
    resolver = SuperResolver.load(folders[_MODEL])
    segmenter = None if labelling is None else labelling.load(folders[_SEGMENTER])
    extractor = judge_extractor(judge)
    return resolver, segmenter, None if extractor is None else Lpips(extractor).to(resolver.device)


def _evaluate(data: str, models: Models, files: CaseFiles) -> dict[str, Any]:
    from glioray.tasks.superres.figures import panel_figure

    resolver, segmenter, lpips = models
    found = evaluate_case(resolver, load_case(open_storage(data), files), segmenter=segmenter, lpips=lpips)
    picture = io.BytesIO()
    panel_figure([PanelRow(**row) for row in found.shown]).savefig(picture, format="png", dpi=80)
    return {
        "images": found.images,
        "use": found.use,
        "picture": base64.b64encode(picture.getvalue()).decode(),
        "judge": "hfen" if lpips is None else lpips.name,
    }


def use_answer(use: Mapping[str, CaseMetrics], patients: Mapping[str, str]) -> dict[str, Any]:
    """Dice by use of several cases: `use_summary` of the means over cases, these means by region, and intervals.

    Empty where no case was labelled.
    """
    if not use:
        return {}
    means = mean_metrics(use)
    dice = {view: {region: metrics[f"dice_{view}"] for region, metrics in means.items()} for view in VIEWS}
    # Intervals of a case's mean over regions, as the regions of one case are no independent evidence.
    overall: dict[str, CaseMetrics] = {
        case_id: {
            "mean": {
                name: float(np.mean([metrics[name] for metrics in regions.values()]))
                for name in means[next(iter(means))]
            }
        }
        for case_id, regions in use.items()
    }
    return {
        **use_summary(dice),
        "regions": means,
        "intervals": metric_intervals(use, patients) | metric_intervals(overall, patients),
    }


def _report(result: Mapping[str, Any], found: Evaluation, patients: Mapping[str, str]) -> dict[str, bytes]:
    pictures = {case_id: f"pictures/{case_id}.png" for case_id in found.pictures}
    page = superres_markdown(
        found.images,
        found.use,
        patients,
        title=f"{result['model']} on {result['split']} cases",
        judge=found.judge,
        segmenter=result["segmenter"],
        recovered=result["use"].get("recovered"),
        failed=found.failed,
        pictures=pictures,
    )
    return {
        "evaluation.json": json.dumps(result, indent=1).encode(),
        "evaluation.csv": metrics_csv(found.images, "modality").encode(),
        **({"use.csv": metrics_csv(found.use).encode()} if found.use else {}),
        "evaluation.md": page.encode(),
        **{path: found.pictures[case_id] for case_id, path in pictures.items()},
    }
