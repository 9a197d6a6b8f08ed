"""A small run on phantoms, as the tests of training, searching and comparing plan it."""

from __future__ import annotations

from pathlib import Path

import pytest

from glioray.cases.manifest import Manifest
from glioray.config import override
from glioray.engine.run import RunPlan
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
