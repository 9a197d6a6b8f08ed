"""Train one model by a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from glioray.api.configs import resolve_config, resolve_workers
from glioray.api.data import check_labelled_regions, check_modalities, open_data
from glioray.api.models import LoadedModel, load_model
from glioray.api.places import choose_run_name, data_uri, storage_uri, use_tracking
from glioray.api.requests import TrainRequest
from glioray.api.verbs import as_verb
from glioray.engine.on_mlflow.client import connect as connect_tracking
from glioray.engine.on_mlflow.runs import Kind
from glioray.engine.on_ray.connect import check_shared, connect
from glioray.engine.on_ray.resources import worker_resources
from glioray.engine.on_ray.train import run_training
from glioray.engine.run import RunPlan, check_claim
from glioray.engine.task import Task
from glioray.serialization import to_dict
from glioray.slices.cache import CacheConfig
from glioray.storage import join_uri, open_storage


@dataclass(frozen=True)
class TrainResult:
    """A run that ended.

    Attributes:
        model_uri: of the model: `runs:/ID/model`, or the run's folder where MLflow is a file beside it.
        run_id: in MLflow.
        run_name: by which it is resumed.
        storage: the run's folder, with its checkpoints.
        metrics: of the last validation.
        is_failed: whether the task rejects the model, such as a collapsed generator.
        answer: the JSON answer of the job.
    """

    model_uri: str
    run_id: str
    run_name: str
    storage: str
    metrics: dict[str, float]
    is_failed: bool
    answer: dict[str, Any] = field(repr=False)

    @property
    def exit_code(self) -> int:
        """Of the job."""
        return int(self.is_failed)

    @cached_property
    def model(self) -> LoadedModel:
        """The trained model, loaded from the run's folder."""
        return load_model(self.storage)


def preview(request: TrainRequest) -> dict[str, Any]:
    """The config that would be trained; starts nothing.

    Raises:
        UsageError: as `train`.
    """
    return {"config": to_dict(resolve_config(request)[1])}


@as_verb(TrainRequest)
def train(request: TrainRequest) -> TrainResult:
    """Train a model, or resume a run of that name, on local Ray or on the cluster of RAY_ADDRESS.

    Example:
        result = glioray.train(data="s3://bucket/brats", recipe="unet_small", minutes=10, set={"optim.lr": 1e-3})
        mask = result.model.predict(case)

    Returns:
        TrainResult: the model's URI, its metrics and where the run lies.

    Raises:
        UsageError: a request that is not valid, or a run of that name with other settings or data.
        DataError: the data cannot be used.
        TrainingError: the training failed.
    """
    task, config = resolve_config(request)
    with open_plan(request, task, config, "train") as plan:
        check_claim(open_storage(plan.storage), task.complete(plan))
        result = run_training(plan)
    verdict = task.verdict(result["metrics"])
    answer = training_answer(result, plan) | {"run_name": plan.run_name, "checkpoint": plan.storage}
    return TrainResult(
        model_uri=answer["model"],
        run_id=answer["run_id"],
        run_name=plan.run_name,
        storage=plan.storage,
        metrics=answer["metrics"],
        is_failed=verdict.is_rejected,
        answer=answer | dict(verdict.answer),
    )


@contextmanager
def open_plan(request: Any, task: Task, config: Any, kind: Kind) -> Iterator[RunPlan]:
    """The plan of a training, a search or a comparison; joins the cluster and checks the data first.

    MLflow's address holds while the context is open.

    Raises:
        UsageError: data, places or a name that cannot be used.
        DataError: no case can be used.
    """
    data, storage = data_uri(request.data), storage_uri(request.storage)
    run_name = choose_run_name(request.run_name, config.recipe)
    cache, workers = CacheConfig.from_environment(), resolve_workers(request, config)
    with use_tracking(storage) as tracking_uri:
        connect_tracking(tracking_uri)
        connect()
        check_shared(storage, "--storage")
        worker_resources(config.train.num_workers, workers)
        manifest = open_data(
            data, storage, seed=config.train.seed, fold=request.fold, labels=request.labels, may_miss=True
        )
        check_modalities(manifest, config)
        if task.output == "labels":
            check_labelled_regions(manifest)
        yield RunPlan(
            task=task,
            config=config,
            manifest=manifest,
            storage=join_uri(storage, run_name),
            run_name=run_name,
            tracking_uri=tracking_uri,
            experiment=request.experiment,
            kind=kind,
            cache=cache,
            save_minutes=request.save_minutes,
            workers=workers,
        )


def training_answer(result: dict[str, Any], plan: RunPlan) -> dict[str, Any]:
    """A run's result with `num_slices` and `slices_per_s`, and a model URI that needs no MLflow server."""
    metrics = result["metrics"]
    if plan.kind == "train" and plan.tracking_uri.startswith("sqlite:"):
        # A runs:/ URI in a file is of no use to a command that does not know the file.
        result = {**result, "model": plan.storage}
    return {**result, "num_slices": int(metrics["num_slices"]), "slices_per_s": metrics["slices_per_s"]}
