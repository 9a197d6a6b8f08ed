"""A small run on phantoms, as the tests of training, searching and comparing plan it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glioray.cases.manifest import Manifest
from glioray.config import override
from glioray.engine.collectives import Ranks
from glioray.engine.on_ray.placement import fill_cache
from glioray.engine.run import RunPlan, train_run
from glioray.slices.cache import CacheConfig
from glioray.tasks import load_task
from glioray.tasks.segmentation.recipes import build_recipe


@pytest.fixture
def plan(tmp_path: Path, phantom_index: Manifest, slice_cache: Path, mlflow_server: str) -> RunPlan:
    config = override(
        build_recipe("unet_tiny"),
        **{
            "train.max_epochs": 2,
            "sample.steps_per_epoch": 4,
            "train.precision": "fp32",
            "net.options.width": 4,
        },
    )
    return RunPlan(
        task=load_task(config.task),
        config=config,
        manifest=phantom_index,
        storage=str(tmp_path / "run"),
        run_name=tmp_path.name,
        tracking_uri=mlflow_server,
        experiment="integration",
        cache=CacheConfig(folder=str(slice_cache)),
    )


@pytest.fixture
def train_here(ray_local: None) -> Callable[..., dict[str, Any]]:
    """Trains in this process, as the one rank of a run does in a process that Ray starts for it.

    That saves the start of Ray Train's processes. The model is not logged unless `log_model` is true.
    """

    def train(plan: RunPlan, *, log_model: bool = False) -> dict[str, Any]:
        return train_run(dataclasses.replace(plan, num_threads=1, log_model=log_model), Ranks(), fill_cache)

    return train
