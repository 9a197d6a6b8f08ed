"""What `jobs/evaluate.py` does with a super-resolution model: cases, a segmenter, and files to read."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from glioray.cases.manifest import Manifest
from glioray.engine.on_mlflow.registry import champion, resolve_version
from glioray.engine.on_ray.batch import SuperResJudgement, evaluate_superres_cases
from glioray.engine.task import ModelPackage
from glioray.errors import DataError
from glioray.sources import select_superres_cases
from glioray.storage import join_uri, open_storage
from glioray.tasks import load_task, open_labelling
from glioray.tasks.segmentation.case_metrics import CaseFigures, figure_intervals, figures_csv, mean_figures
from glioray.tasks.superres.case_metrics import VIEWS, check_segmenter, use_summary
from glioray.tasks.superres.evaluation_page import superres_markdown
from glioray.tasks.superres.package import SuperResSpec

_log = logging.getLogger(__name__)


def judging_segmenter(uri: str | None, spec: SuperResSpec, folder: Path) -> ModelPackage | None:
    """The segmenter of `--segmenter`: by default the champion, where there is one; None for "none".

    Raises:
        ModelError: there is no such model, or it is none of segmentation.
        UsageError: it cannot judge what the model makes.
    """
    if uri is None:
        name = load_task("segmentation").registered_name
        present = champion(name)
        if present is None:
            _log.info("no model %s is champion: judged by images alone", name)
            return None
        uri = f"models:/{name}/{present}"
    if uri == "none":
        return None
    resolved = resolve_version(uri)
    package = open_labelling(resolved, folder)
    check_segmenter(package.spec, spec)
    return package


def evaluate_superres(
    package: Path,
    spec: SuperResSpec,
    resolved: str,
    segmenter: ModelPackage | None,
    manifest: Manifest,
    split: str,
    out: str | None,
) -> dict[str, Any]:
    """The job's answer; where `out` is given, its files lie there.

    Raises:
        DataError: no case is left, or none could be judged.
    """
    specs: dict[str, Any] = {"super-resolution model": spec}
    if segmenter is not None:
        specs["segmenter"] = segmenter.spec
    entries = select_superres_cases(manifest, specs, split)
    judged = evaluate_superres_cases(
        package, None if segmenter is None else segmenter.folder, manifest.data, entries
    )
    if not judged.images:
        raise DataError(f"none of the {len(judged.failed)} cases could be judged; the reasons are above")
    patients = {entry.case_id: entry.patient_id for entry in entries}
    result: dict[str, Any] = {
        "model": resolved,
        "segmenter": None if segmenter is None else segmenter.uri,
        "judge": judged.judge,
        "split": split,
        "mean": mean_figures(judged.images),
        "intervals": figure_intervals(judged.images, patients),
        "use": use_answer(judged.use, patients),
        "cases": judged.images,
        "use_cases": judged.use,
        "failed": judged.failed,
    }
    if out is not None:
        result["files"] = _write(result, judged, patients, out)
    return {**result, "exit_code": 1 if judged.failed else 0}


def use_answer(use: Mapping[str, CaseFigures], patients: Mapping[str, str]) -> dict[str, Any]:
    """By region the mean Dice and its intervals, and `use_summary` of the means; empty where nothing was judged."""
    if not use:
        return {}
    means = mean_figures(use)
    dice = {view: {region: figures[f"dice_{view}"] for region, figures in means.items()} for view in VIEWS}
    # Of a case's mean over regions, as the regions of one case are no independent evidence.
    overall: dict[str, CaseFigures] = {
        case_id: {
            "mean": {
                name: float(np.mean([figures[name] for figures in regions.values()]))
                for name in means[next(iter(means))]
            }
        }
        for case_id, regions in use.items()
    }
    return {
        **use_summary(dice),
        "regions": means,
        "intervals": figure_intervals(use, patients) | figure_intervals(overall, patients),
    }


def _write(
    result: Mapping[str, Any], judged: SuperResJudgement, patients: Mapping[str, str], out: str
) -> list[str]:
    storage = open_storage(out)
    pictures = {case_id: f"pictures/{case_id}.png" for case_id in judged.pictures}
    page = superres_markdown(
        judged.images,
        judged.use,
        patients,
        title=f"{result['model']} on {result['split']} cases",
        judge=judged.judge,
        segmenter=result["segmenter"],
        recovered=result["use"].get("recovered"),
        failed=judged.failed,
        pictures=pictures,
    )
    files = {
        "evaluation.json": json.dumps(result, indent=1).encode(),
        "evaluation.csv": figures_csv(judged.images, "modality").encode(),
        **({"use.csv": figures_csv(judged.use).encode()} if judged.use else {}),
        "evaluation.md": page.encode(),
        **{path: judged.pictures[case_id] for case_id, path in pictures.items()},
    }
    for name, data in files.items():
        storage.write(name, data)
    return [join_uri(storage.uri, name) for name in files]
