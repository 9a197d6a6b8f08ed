"""Four tiny phantoms, prepared in this process, and plans of runs on them."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import glioray
from glioray.cases.layouts import discover_cases
from glioray.cases.manifest import Manifest, build_manifest, check_case
from glioray.cases.phantom import write_phantoms
from glioray.config import NetConfig, OptimConfig, PreprocessConfig, SampleConfig, TrainConfig, with_settings
from glioray.engine.run import RunPlan
from glioray.slices.cache import CacheConfig
from glioray.storage import open_storage
from glioray.tasks import load_task
from glioray.tasks.segmentation.config import LossConfig, RunConfig
from glioray.tasks.superres.config import (
    CollapseConfig,
    DegradeConfig,
    GanConfig,
    GanLossConfig,
    PretrainConfig,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """The script `runs.py` beside this file: it trains in this process as it does in ranks of its own."""
    return _load("runs")


@pytest.fixture(scope="session")
def gan_runs() -> ModuleType:
    """`gan_runs.py` beside this file, likewise."""
    return _load("gan_runs")


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"training_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Three cases to train on and one to validate on."""
    storage = open_storage(tmp_path_factory.mktemp("cases"))
    write_phantoms(storage, num_cases=4, shape=(48, 48, 24))
    found, _ = discover_cases(storage)
    return build_manifest(
        storage.uri, [check_case(storage, files) for files in found], ratios=(0.75, 0.25, 0)
    )


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> CacheConfig:
    """One slice cache for all of these tests."""
    return CacheConfig(folder=str(tmp_path_factory.mktemp("slices")))


CONFIG = RunConfig(
    recipe="test",
    preprocess=PreprocessConfig(size=(48, 48)),
    sample=SampleConfig(foreground_share=0.5, steps_per_epoch=3),
    net=NetConfig(options={"width": 4, "depth": 2}),
    loss=LossConfig(name="region_dice_bce"),
    optim=OptimConfig(lr=1e-2, ema=0.9),
    train=TrainConfig(batch_size=4, max_epochs=4, num_validations=2, precision="fp32"),
)


Plans = Callable[..., RunPlan]


@pytest.fixture(scope="session")
def plans_of(
    tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, cache: CacheConfig
) -> Callable[[Any], Plans]:
    """Makes plans of a config and of settings that override its own, each in a folder of its own."""

    def make(config: Any, **settings: Any) -> RunPlan:
        return RunPlan(
            task=load_task(config.task),
            config=with_settings(config, settings),
            manifest=manifest,
            storage=str(tmp_path_factory.mktemp("run")),
            run_name="run",
            tracking_uri="",
            experiment="",
            cache=cache,
        )

    return lambda config: partial(make, config)


@pytest.fixture(scope="session")
def make_plan(plans_of: Callable[[Any], Plans]) -> Plans:
    """Plans of four epochs of three steps."""
    return plans_of(CONFIG)


_SGD = OptimConfig(name="sgd", lr=0.02, momentum=0.5, schedule="constant", warmup=0.0, grad_clip=0.0, ema=0.0)
GAN_CONFIG = GanConfig(
    recipe="test",
    preprocess=PreprocessConfig(normalize="unit", size=(48, 48)),
    sample=SampleConfig(steps_per_epoch=3),
    degrade=DegradeConfig(hr_size=32, lr_size=8),
    generator=NetConfig(name="srresnet", options={"width": 4, "num_blocks": 1, "norm": "none"}),
    discriminator=NetConfig(name="patch", options={"width": 4, "num_layers": 2}),
    loss=GanLossConfig(perceptual_weight=0.0, extractor="none", adversarial_weight=0.05),
    pretrain=PretrainConfig(share=0.25, rate=0.02),
    optim_g=_SGD,
    optim_d=_SGD,
    collapse=CollapseConfig(num_slices=16, min_slices=8, apart_mm=2.0, per_patient=8, judge="none"),
    train=TrainConfig(batch_size=4, max_epochs=4, num_validations=4, precision="fp32"),
)


@pytest.fixture(scope="session")
def make_gan_plan(plans_of: Callable[[Any], Plans]) -> Plans:
    """Plans of super-resolution: one epoch of three steps by pixels and three against the discriminator."""
    return plans_of(GAN_CONFIG)


@pytest.fixture(scope="session")
def on_two_ranks(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[ModuleType, dict[str, RunPlan]], list[dict[str, Any]]]:
    """Runs a script (`runs` or `gan_runs`) with plans as two processes that meet over gloo; what each of them made."""

    def run(script: ModuleType, plans: dict[str, RunPlan]) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("ranks")
        (folder / "plans.pickle").write_bytes(pickle.dumps(plans))
        env = {**os.environ, "PYTHONPATH": str(Path(glioray.__file__).parents[1])}
        processes = [
            subprocess.Popen([sys.executable, str(script.__file__), str(folder), str(rank), "2"], env=env)
            for rank in (0, 1)
        ]
        try:
            assert [process.wait(300) for process in processes] == [0, 0]
        finally:
            for process in processes:
                process.kill()
        return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]

    return run
