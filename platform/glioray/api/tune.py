"""Search the settings of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from glioray.api.configs import resolve_config
from glioray.api.models import LoadedModel, load_model
from glioray.api.requests import TuneRequest
from glioray.api.train import open_plan, training_answer
from glioray.api.verbs import as_verb
from glioray.engine.on_ray.resources import default_concurrency
from glioray.engine.on_ray.search import run_sweep
from glioray.engine.search import SweepPlan, check_sweep
from glioray.engine.space import CustomSpace, format_space, parse_space
from glioray.engine.task import Task
from glioray.serialization import to_dict


@dataclass(frozen=True)
class TuneResult:
    """A search that ended.

    Attributes:
        model_uri: the best trial's model, as registered: `models:/NAME/VERSION`.
        run_id: of the search, in MLflow.
        run_name: by which it is resumed.
        storage: the URI below which all runs are kept.
        metrics: of the best trial.
        answer: the JSON answer of the job, with a row for each trial.
    """

    model_uri: str
    run_id: str
    run_name: str
    storage: str
    metrics: dict[str, float]
    answer: dict[str, Any] = field(repr=False)
    exit_code: int = 0

    @cached_property
    def model(self) -> LoadedModel:
        """The best trial's model, loaded."""
        return load_model(self.model_uri, storage=self.storage)


def preview(request: TuneRequest) -> dict[str, Any]:
    """The recipe's config and what would be searched; starts nothing.

    Raises:
        UsageError: as `tune`.
    """
    task, config = resolve_config(request)
    _, space = _check(request, task, config)
    return {
        "config": to_dict(config),
        "trials": request.trials,
        "concurrent": request.concurrent,
        "mode": request.mode,
        "points": request.point,
        "space": format_space(space),
    }


@as_verb(TuneRequest)
def tune(request: TuneRequest) -> TuneResult:
    """Search the settings of a recipe, or resume a search, and register the best trial's model.

    Example:
        best = glioray.tune(data="s3://bucket/brats", recipe="unet_small", trials=32, minutes=240,
                            search={"optim.lr": "log:1e-4:1e-2", "net.options.width": [16, 32, 48]})

    Returns:
        TuneResult: the registered model, its metrics and a row for each trial.

    Raises:
        UsageError: a request that is not valid, or a search space that the recipe cannot have.
        DataError: the data cannot be used, or leave nothing to compare trials on.
        TrainingError: no trial has a model.
    """
    task, config = resolve_config(request)
    custom, _ = _check(request, task, config)
    with open_plan(request, task, config, "sweep") as plan:
        concurrent = request.concurrent or min(request.trials, default_concurrency(config.train.num_workers))
        result = run_sweep(
            SweepPlan(
                base=plan,
                num_trials=request.trials,
                num_concurrent=concurrent,
                model_name=request.name or task.registered_name,
                mode=request.mode,
                points=request.point,
                custom=custom,
            )
        )
    answer = training_answer(result, plan) | {"run_name": plan.run_name}
    return TuneResult(
        model_uri=answer["model"],
        run_id=answer["run_id"],
        run_name=plan.run_name,
        storage=plan.storage.rpartition("/")[0],
        metrics=answer["metrics"],
        answer=answer,
    )


def _check(request: TuneRequest, task: Task, config: Any) -> tuple[CustomSpace, Any]:
    """The request's own space, and the whole one."""
    custom = parse_space(request.search)
    space = check_sweep(
        task, config, num_trials=request.trials, mode=request.mode, points=request.point, custom=custom
    )
    return custom, space
