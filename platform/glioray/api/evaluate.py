"""Evaluate a model on a data set, or on cases in memory."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glioray.api.data import open_data
from glioray.api.models import resolve_model
from glioray.api.places import data_uri, ready_out, storage_uri, use_tracking
from glioray.api.requests import EvaluateRequest
from glioray.api.verbs import as_verb
from glioray.cases.manifest import Manifest
from glioray.engine.evaluation import check_resample, check_rule
from glioray.engine.on_mlflow.registry import logged_model_id
from glioray.engine.on_mlflow.runs import RunLogger
from glioray.engine.on_ray.connect import connect
from glioray.engine.task import ModelPackage
from glioray.serialization import fingerprint, to_dict
from glioray.tasks import open_package, open_segmenter


@dataclass(frozen=True)
class EvaluateResult:
    """How a model does on cases.

    Attributes:
        model_uri: the model; a registered model's version rather than its alias.
        mean: metrics by region or modality, over cases.
        intervals: their 95 % intervals, by resampling patients; empty for a single patient.
        cases: metrics by case, then by region or modality.
        failed: case id -> why it could not be evaluated.
        files: URIs of the files below `out`.
        answer: the JSON answer of the job, which also has what only the model's task says.
    """

    model_uri: str
    mean: dict[str, dict[str, float]]
    intervals: dict[str, Any] = field(repr=False)
    cases: dict[str, Any] = field(repr=False)
    failed: dict[str, str]
    files: tuple[str, ...]
    answer: dict[str, Any] = field(repr=False)

    @property
    def exit_code(self) -> int:
        """Of the job: 1 where a case failed."""
        return int(bool(self.failed))


def preview(request: EvaluateRequest) -> dict[str, Any]:
    """The model's version and config; reads no case.

    Raises:
        UsageError, ModelError: as `evaluate`.
    """
    data_uri(request.data)
    with _opened(request) as (package, _):
        return {"config": to_dict(package.spec.config), "model": package.uri}


@as_verb(EvaluateRequest)
def evaluate(request: EvaluateRequest) -> EvaluateResult:
    """Evaluate a model of any task on whole cases, by default those of patients that it was not trained on.

    Means, pages and pictures become a run in MLflow, whose metrics belong to the model and the data set.

    Returns:
        EvaluateResult: metrics by case, their means and 95 % intervals.

    Raises:
        UsageError: a request that is not valid.
        ModelError: there is no such model.
        DataError: no case is left, or none could be evaluated.
        StorageError: MLflow or the storage cannot be reached.
    """
    data, storage = data_uri(request.data), storage_uri(request.storage)
    out = ready_out(request.out) if request.out else None
    with _opened(request) as (package, folder):
        segmenter = open_segmenter(package, request.segmenter, folder / "segmenter")
        connect()
        manifest = open_data(data, storage, labels=request.labels)
        # Before the work: MLflow may be away.
        logger = _open_run(request, package, manifest)
        try:
            answer = package.task.evaluate(
                package,
                manifest,
                split=request.split,
                segmenter=segmenter,
                out=out,
                metrics=request.metrics,
                resample=request.resample,
            )
            answer.pop("exit_code", None)
            _log(answer, answer.pop("report", {}), logger, manifest)
        except Exception as error:
            logger.finish("FAILED", str(error) or type(error).__name__)
            raise
        logger.finish()
        answer |= {"run_id": logger.run_id, "run_url": logger.url}
    return EvaluateResult(
        model_uri=package.uri,
        mean=answer["mean"],
        intervals=answer["intervals"],
        cases=answer["cases"],
        failed=answer["failed"],
        files=tuple(answer.get("files", ())),
        answer=answer,
    )


def _open_run(request: EvaluateRequest, package: ModelPackage, manifest: Manifest) -> RunLogger:
    """The MLflow run of an evaluation: the same for the same model on the same cases."""
    spec_hash = fingerprint([package.uri, package.spec.to_json(), manifest.hash])
    model = "/".join(package.uri.rstrip("/").split("/")[-2:])
    name = f"evaluate {model} on {request.split} {spec_hash[:6]}"
    tags = {"glioray.manifest_hash": manifest.hash, "glioray.recipe": package.spec.config.recipe}
    logger = RunLogger.open_run(request.experiment, name, kind="evaluate", tags=tags)
    logger.log_params({"model": package.uri, "data": manifest.data, "split": request.split})
    return logger


def _log(answer: dict[str, Any], report: dict[str, bytes], logger: RunLogger, manifest: Manifest) -> None:
    """Log means as metrics of the model and the data set, and the files to read."""
    by_id = {entry.case_id: entry for entry in manifest.cases}
    entries = [by_id[case_id] for case_id in answer["cases"]]
    dataset = logger.log_dataset(manifest, answer["split"], "evaluation", entries)
    metrics = {
        f"{name}_{row}": value
        for row, values in answer["mean"].items()
        for name, value in values.items()
        if math.isfinite(value)
    }
    logger.log_metrics(metrics, step=0, model_id=logged_model_id(answer["model"]), dataset=dataset)
    for path, data in report.items():
        logger.log_bytes(data, path)
    if page := report.get("evaluation.md"):
        logger.describe(page.decode())


@contextmanager
def _opened(request: EvaluateRequest) -> Iterator[tuple[ModelPackage, Path]]:
    """The model's package, and a temporary folder."""
    with use_tracking(storage_uri(request.storage)), tempfile.TemporaryDirectory() as folder:
        package = open_package(resolve_model(request.model), Path(folder) / "model")
        check_rule(request.metrics, package.task.output)
        check_resample(request.resample, package.task.output)
        yield package, Path(folder)
