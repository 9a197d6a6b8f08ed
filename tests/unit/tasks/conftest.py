"""A tiny case and tiny models to predict it with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from glioray.cases.layouts import discover_cases
from glioray.cases.load import Case, load_case
from glioray.cases.phantom import write_phantoms
from glioray.config import NetConfig, PreprocessConfig, TrainConfig, override, with_settings
from glioray.storage import open_storage
from glioray.tasks.segmentation.config import LossConfig, PostprocessConfig, RunConfig
from glioray.tasks.segmentation.package import ModelSpec
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.superres.config import DegradeConfig, GanConfig
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.package import SuperResSpec


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A phantom of 48 x 48 x 24 voxels whose brain is some 44 voxels long."""
    storage = open_storage(tmp_path_factory.mktemp("case"))
    write_phantoms(storage, num_cases=1, shape=(48, 48, 24))
    (files,), _ = discover_cases(storage)
    return load_case(storage, files)


CONFIG = RunConfig(
    recipe="test",
    preprocess=PreprocessConfig(size=(48, 48)),
    net=NetConfig(options={"width": 4, "depth": 2}),
    loss=LossConfig(name="region_dice_bce"),
    train=TrainConfig(precision="fp32"),
    postprocess=PostprocessConfig(mirror=(False, False)),
)


@pytest.fixture
def make_spec(case: Case) -> Callable[..., ModelSpec]:
    """Specs that fit the case; settings override those of a plain region model."""

    def make(**settings: Any) -> ModelSpec:
        config = override(CONFIG, **settings)
        channels = 3 if config.loss.target == "regions" else 4
        return ModelSpec(config=config, out_channels=channels, spacing_mm=case.spacing_mm, manifest_hash="m")

    return make


@pytest.fixture
def make_predictor(make_spec: Callable[..., ModelSpec]) -> Callable[..., Predictor]:
    """Predictors with random weights, the same every time."""

    def make(batch_size: int = 16, **settings: Any) -> Predictor:
        spec = make_spec(**settings)
        torch.manual_seed(0)
        net = spec.build()
        with torch.no_grad():
            # As large as a trained head's: probabilities all over (0, 1), and some of every label.
            net.head.weight *= 6
        return Predictor(spec, net, batch_size=batch_size)

    return make


GAN_CONFIG = GanConfig(
    recipe="test",
    preprocess=PreprocessConfig(normalize="unit", size=(48, 48)),
    degrade=DegradeConfig(hr_size=48, lr_size=12),
    generator=NetConfig(name="srresnet", options={"width": 4, "num_blocks": 1, "norm": "none"}),
    train=TrainConfig(precision="fp32"),
)


@pytest.fixture
def make_resolver(case: Case) -> Callable[..., SuperResolver]:
    """Resolvers whose generators have random weights, the same every time: `psnr` those of seed 0, `gan` of 1."""

    def make(stages: tuple[str, ...] = ("psnr", "gan"), **settings: Any) -> SuperResolver:
        spec = SuperResSpec(
            config=with_settings(GAN_CONFIG, settings),
            spacing_mm=case.spacing_mm,
            manifest_hash="m",
            stages=stages,
            collapse="healthy",
        )
        nets = {}
        for stage in stages:
            torch.manual_seed(("psnr", "gan").index(stage))
            nets[stage] = spec.build()
        return SuperResolver(spec, nets)

    return make
