"""Join several segmentation models into one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glioray.api.models import resolve_members
from glioray.api.places import choose_run_name, storage_uri, use_tracking
from glioray.api.requests import EnsembleRequest
from glioray.api.verbs import as_verb
from glioray.engine.on_mlflow.registry import register_model
from glioray.engine.on_mlflow.runs import RunLogger
from glioray.engine.run import log_package
from glioray.engine.task import Task
from glioray.serialization import to_dict
from glioray.tasks import open_labelling
from glioray.tasks.segmentation.package import join_packages


@dataclass(frozen=True)
class EnsembleResult:
    """An ensemble that was registered.

    Attributes:
        model_uri: `models:/NAME/VERSION`.
        run_id: in MLflow.
        members: URIs of the models that it averages.
        answer: the JSON answer of the job.
    """

    model_uri: str
    run_id: str
    members: tuple[str, ...]
    answer: dict[str, Any] = field(repr=False)
    exit_code: int = 0


def preview(request: EnsembleRequest) -> dict[str, Any]:
    """The ensemble's config and members; registers nothing.

    Raises:
        UsageError, ModelError: as `ensemble`.
    """
    with _joined(request) as (_, spec, _, members):
        return {"config": to_dict(spec.config), "members": members, "num_members": spec.num_members}


@as_verb(EnsembleRequest)
def ensemble(request: EnsembleRequest) -> EnsembleResult:
    """Join several segmentation models into one that averages their probabilities, and register it.

    The members differ in nothing but their weights: the folds of a cross-validation, a run from several seeds, or
    the checkpoints that one run kept.

    Returns:
        EnsembleResult: the registered version and its members.

    Raises:
        UsageError: no member, or one twice.
        ModelError: there is no such model, or models that cannot be joined.
    """
    with _joined(request) as (task, spec, package, members):
        run_name = choose_run_name(request.run_name, spec.config.recipe)
        tags = {
            "recipe": spec.config.recipe,
            "manifest_hash": spec.manifest_hash,
            "members": ", ".join(members),
        }
        counted = {"members": members, "num_members": spec.num_members}
        logger = RunLogger.open_run(request.experiment, run_name, kind="ensemble")
        try:
            logger.log_params({**to_dict(spec.config), **counted})
            log_package(task, logger, package)
            model = register_model(request.name, logger.run_id, tags, purpose=task.purpose)
        except Exception as error:
            logger.finish("FAILED", str(error) or type(error).__name__)
            raise
        logger.finish()
    answer = {"run_id": logger.run_id, "run_url": logger.url, "model": model, "run_name": run_name, **counted}
    return EnsembleResult(model, logger.run_id, tuple(members), answer)


@contextmanager
def _joined(request: EnsembleRequest) -> Iterator[tuple[Task, Any, Path, list[str]]]:
    """The task, the description, the package and the members of the ensemble."""
    with use_tracking(storage_uri(request.storage)), tempfile.TemporaryDirectory() as folder:
        members = resolve_members(request.model, checkpoints=request.checkpoints)
        packages = [open_labelling(uri, Path(folder) / str(n)) for n, uri in enumerate(members)]
        joined = Path(folder) / "ensemble"
        spec = join_packages([package.folder for package in packages], joined)
        yield packages[0].task, spec, joined, members
