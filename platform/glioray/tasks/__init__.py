"""The tasks: one line each, imported when asked for."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from glioray.engine.on_mlflow.registry import fetch_package
from glioray.engine.package import SPEC_FILE
from glioray.engine.task import ModelPackage, Task
from glioray.errors import ModelError, UsageError

TASKS = {
    "segmentation": "glioray.tasks.segmentation.task:SegmentationTask",
    "superres": "glioray.tasks.superres.task:SuperResTask",
}
"""Task name -> module and class."""


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
            f"the model {uri} belongs to the task {package.task.name}; expected one of segmentation"
        )
    return package
