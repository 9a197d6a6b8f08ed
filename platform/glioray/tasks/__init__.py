"""The tasks: one line each, imported when asked for."""

from __future__ import annotations

import difflib
import importlib
import json
import logging
from pathlib import Path
from typing import Any

from glioray.engine.package import SPEC_FILE
from glioray.engine.task import ModelPackage, Task
from glioray.errors import ModelError, UsageError

TASKS = {
    "segmentation": "glioray.tasks.segmentation.task:SegmentationTask",
    "superres": "glioray.tasks.superres.task:SuperResTask",
}
"""Task name -> module and class."""

_log = logging.getLogger(__name__)


def load_task(name: str) -> Task:
    """Load a task by its name.

    Raises:
        UsageError: no such task.
    """
    if name not in TASKS:
        raise UsageError(f"no task '{name}'; choose from {', '.join(TASKS)}")
    module, _, attribute = TASKS[name].partition(":")
    task: Task = getattr(importlib.import_module(module), attribute)()
    return task


def build_recipe(task: Task, name: str) -> Any:
    """The config of one of a task's recipes.

    Raises:
        UsageError: no such recipe.
    """
    if name not in task.recipes:
        raise UsageError(_no_recipe(name, f" of the task {task.name}", list(task.recipes)))
    return task.recipes[name]()


def find_recipe(name: str) -> Task:
    """The task that a recipe belongs to; recipe names are unique over all tasks.

    Raises:
        UsageError: no such recipe.
    """
    tasks = [load_task(task) for task in TASKS]
    for task in tasks:
        if name in task.recipes:
            return task
    raise UsageError(_no_recipe(name, "", [recipe for task in tasks for recipe in task.recipes]))


def _no_recipe(name: str, where: str, recipes: list[str]) -> str:
    near = difflib.get_close_matches(name, recipes, n=1)
    advice = f"; did you mean {near[0]}?" if near else ""
    return f"no recipe '{name}'{where}; the recipes are {', '.join(recipes)}{advice}"


def find_task(text: str | bytes) -> Task:
    """Find the task of a model by the format that its `model.json` states.

    Raises:
        ModelError: not JSON, or no task has that format.
    """
    try:
        found: Any = json.loads(text)["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{SPEC_FILE} states no format ({error}); export the model again") from error
    formats = {}
    for name in TASKS:
        task = load_task(name)
        formats[name] = task.package_format
        # An older or newer version of the format is the task's own to refuse, in a sentence.
        if str(found).rpartition("-")[0] == task.package_format.rpartition("-")[0]:
            return task
    raise ModelError(
        f"{SPEC_FILE} has the format '{found}'; this version of glioray reads {', '.join(formats.values())}"
    )


def open_package(uri: str, folder: Path, *, tracking_uri: str | None = None) -> ModelPackage:
    """Fetch a model's package into a folder, and find its task by its format.

    Args:
        uri: `models:/NAME@alias`, `models:/NAME/VERSION`, `runs:/ID/model` or a run's folder.
        folder: local; is made where it does not exist.
        tracking_uri: MLflow's address; by default MLFLOW_TRACKING_URI.

    Raises:
        ModelError: no such model, or its description cannot be read.
        StorageError: MLflow or the storage cannot be reached.
    """
    from glioray.engine.on_mlflow.registry import fetch_package

    package = fetch_package(uri, folder, tracking_uri=tracking_uri)
    text = (package / SPEC_FILE).read_bytes()
    try:
        task = find_task(text)
        return ModelPackage(task, package, task.parse_spec(text), uri)
    except ModelError as error:
        raise ModelError(f"the model {uri} cannot be used: {error}") from error


def open_labelling(uri: str, folder: Path, *, tracking_uri: str | None = None) -> ModelPackage:
    """`open_package` of a model that must label voxels.

    Raises:
        ModelError: as `open_package`, or the model makes images.
    """
    package = open_package(uri, folder, tracking_uri=tracking_uri)
    if package.task.output != "labels":
        raise ModelError(
            f"the model {uri} belongs to the task {package.task.name}; expected one of {', '.join(_labelling_tasks())}"
        )
    return package


def open_segmenter(
    package: ModelPackage, uri: str | None, folder: Path, *, tracking_uri: str | None = None
) -> ModelPackage | None:
    """Open the model that labels the images of another one to evaluate it by use.

    Args:
        package: the model that is evaluated.
        uri: as for `open_package`; "none" for none; by default the champion of the first task that labels voxels.
        folder: local; is made where it does not exist.
        tracking_uri: MLflow's address; by default MLFLOW_TRACKING_URI.

    Returns:
        None for "none", where there is no champion, and for a package that labels voxels itself.

    Raises:
        UsageError: a segmenter is given to evaluate a model that labels voxels itself.
        ModelError: as `open_labelling`.
    """
    from glioray.engine.on_mlflow.registry import champion, resolve_version

    if package.task.output == "labels":
        if uri is not None:
            raise UsageError(
                f"--segmenter evaluates models that make images, but {package.uri} is one of {package.task.name}; "
                "leave it out"
            )
        return None
    if uri is None:
        name = load_task(_labelling_tasks()[0]).registered_name
        version = champion(name, tracking_uri=tracking_uri)
        if version is None:
            _log.info("no champion of %s: evaluated by images alone", name)
            return None
        uri = f"models:/{name}/{version}"
    if uri == "none":
        return None
    return open_labelling(resolve_version(uri, tracking_uri=tracking_uri), folder, tracking_uri=tracking_uri)


def _labelling_tasks() -> list[str]:
    return [name for name in TASKS if load_task(name).output == "labels"]
