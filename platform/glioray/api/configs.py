"""The config that a request asks for: a recipe of a task, with the request's overrides, checked before Ray starts."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from glioray.api.places import model_source
from glioray.api.requests import Request, split_workers
from glioray.engine.task import Task
from glioray.engine.workers import Workers
from glioray.errors import UsageError
from glioray.tasks import build_recipe, find_recipe, load_task


def choose_task(task: str | None, recipe: str | None) -> Task:
    """The task that a request names, or that its recipe belongs to.

    Raises:
        UsageError: neither is given, or there is no such task or recipe.
    """
    if task is not None:
        return load_task(task)
    if recipe is None:
        raise UsageError(
            "no recipe given; give --recipe, such as unet_small, or --task for its default recipe"
        )
    return find_recipe(recipe)


def resolve_config(request: Any) -> tuple[Task, Any]:
    """The task of a request that trains, and its config, checked by the task.

    Raises:
        UsageError: a recipe, a setting or a value that is not allowed, or networks and extractors that cannot be
            built.
        StorageError: weights that cannot be read.
    """
    task, config = resolve_recipe(request)
    task.check(config)
    resolve_workers(request, config)
    return task, config


def resolve_workers(request: Any, config: Any) -> Workers:
    """What each worker of a request that trains asks of the cluster.

    Raises:
        UsageError: the batch cannot be shared by every number of workers that the run may have.
    """
    most, batch_size = config.train.num_workers, config.train.batch_size
    fewest = None if request.workers is None else split_workers(request.workers)[0]
    for number in range(most if fewest is None else fewest, most + 1):
        if batch_size % number:
            raise UsageError(
                f"--workers {request.workers} may mean {number} workers, which cannot share a batch of {batch_size} "
                f"equally; set train.batch_size to a multiple of {math.lcm(*range(fewest or most, most + 1))}"
            )
    return Workers(
        num_cpus=request.worker_cpus,
        num_gpus=request.worker_gpus,
        gpu_type=request.gpu_type,
        fewest=fewest,
        wait_minutes=request.wait_minutes,
    )


def resolve_recipe(request: Any, *, apart: Collection[str] = ()) -> tuple[Task, Any]:
    """`resolve_config` before the task's check, and without the fields named in `apart`."""
    task = choose_task(request.task, request.recipe)
    recipe = request.recipe or task.default_recipe
    names = [name for name in type(request).model_fields if name not in apart]
    short = short_settings(request, task, recipe, names)
    return task, task.configure(build_recipe(task, recipe), short, _length(request) | dict(request.set))


def short_settings(request: Request, task: Task, recipe: str, names: Collection[str]) -> dict[str, Any]:
    """Those of the named fields that only one task knows, as far as they are given.

    Raises:
        UsageError: a field of another task.
    """
    given = {}
    for name in names:
        field = type(request).model_fields[name]
        only = (field.json_schema_extra or {}).get("only")  # type: ignore[union-attr]
        value = getattr(request, name)
        if not only or value == field.default:
            continue
        if only != task.name:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{flag} is for the task {only}, but the recipe {recipe} belongs to {task.name}; leave {flag} out"
            )
        given[name] = value
    for name in ("segmenter", "pretrained"):
        if name in given:
            given[name] = model_source(given[name], f"--{name}")
    return given


def _length(request: Any) -> dict[str, Any]:
    fields = {
        "train.max_epochs": "max_epochs",
        "train.seed": "seed",
        "train.minutes": "minutes",
    }
    settings = {path: getattr(request, name, None) for path, name in fields.items()}
    if request.workers is not None:
        settings["train.num_workers"] = split_workers(request.workers)[1]
    settings = {path: value for path, value in settings.items() if value is not None}
    if "train.max_epochs" in settings:
        # With epochs alone, the recipe's minutes must not cut the run short.
        settings.setdefault("train.minutes", None)
    return settings
