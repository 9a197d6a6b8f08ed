"""A small run on phantoms, as the tests of training, searching and comparing plan it."""

from __future__ import annotations

from pathlib import Path

import pytest

from glioray.cases.manifest import Manifest
from glioray.config import override
from glioray.engine.on_ray.data import index_data
from glioray.engine.run import RunPlan
from glioray.slices.cache import CacheConfig
from glioray.tasks import load_task
from glioray.tasks.segmentation.recipes import build_recipe


@pytest.fixture(scope="module")
def manifest(ray_local: None, phantom_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return index_data(str(phantom_data), str(tmp_path_factory.mktemp("manifests")))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> CacheConfig:
    return CacheConfig(folder=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def plan(tmp_path: Path, manifest: Manifest, cache: CacheConfig, mlflow_server: str) -> RunPlan:
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
        manifest=manifest,
        storage=str(tmp_path / "run"),
        run_name=tmp_path.name,
        tracking_uri=mlflow_server,
        experiment="integration",
        cache=cache,
    )
