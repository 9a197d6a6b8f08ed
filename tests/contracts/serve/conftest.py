"""Tiny untrained models, heads to segment, and a client of the routes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

with warnings.catch_warnings():
    # Starlette's client asks for a package of another name that it takes as well; it says so once, here.
    warnings.simplefilter("ignore")
    import starlette.testclient  # noqa: F401

from fastapi.testclient import TestClient
from serve.api import make_api
from serve.schemas import Settings
from serve.watch import ModelWatch

from glioray.cases.nifti import encode_volume
from glioray.config import override
from glioray.engine.serving import NOTICE
from glioray.tasks.segmentation.package import ModelSpec, write_package
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.segmentation.recipes import unet_tiny
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.package import SuperResSpec, write_superres
from glioray.tasks.superres.recipes import mri_tiny

SHAPE = (40, 44, 36)
AFFINE = np.array([[0.0, 1, 0, -20], [-1, 0, 0, 30], [0, 0, 1, -10], [0, 0, 0, 1]])
MODALITIES = ("t1", "t1c", "t2", "flair")


@pytest.fixture
def make_package(tmp_path: Path) -> Callable[..., Path]:
    """Writes a package of unet_tiny, with settings of its own and weights of a seed; returns its folder."""

    def make(seed: int, *, out_channels: int = 3, **settings: Any) -> Path:
        spec = ModelSpec(
            config=override(unet_tiny(), **settings),
            out_channels=out_channels,
            spacing_mm=(1.0, 1.0, 1.0),
            manifest_hash="0" * 12,
            metrics={"dice_wt": 0.5},
        )
        torch.manual_seed(seed)
        folder = tmp_path / f"package-{seed}"
        write_package(folder, spec, spec.build().state_dict())
        return folder

    return make


@pytest.fixture(scope="session")
def make_superres(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a package of mri_tiny, untrained, with settings of its own; returns its folder."""

    def make(*stages: str, **settings: Any) -> Path:
        stages = stages or ("psnr", "gan")
        spec = SuperResSpec(
            config=override(mri_tiny(), **settings),
            spacing_mm=(1.0, 1.0, 1.0),
            manifest_hash="0" * 12,
            stages=stages,
            metrics={"quality": 0.25},
            collapse="healthy",
        )
        weights = {}
        for stage in stages:
            torch.manual_seed(len(stage))
            weights[stage] = spec.build().state_dict()
        folder = tmp_path_factory.mktemp("superres")
        write_superres(folder, spec, weights)
        return folder

    return make


@pytest.fixture(scope="session")
def make_superres_watch(make_superres: Callable[..., Path]) -> Callable[..., ModelWatch[SuperResolver]]:
    """Makes a watch that serves such a package."""

    def make(*stages: str, **settings: Any) -> ModelWatch[SuperResolver]:
        folder = make_superres(*stages, **settings)
        watch = ModelWatch(str(folder), SuperResolver.load, poll_s=3600, device="cpu")
        watch.refresh()
        assert watch.served is not None
        return watch

    return make


@pytest.fixture(scope="session")
def make_head() -> Callable[[int], np.ndarray]:
    """Makes a ball of noise in air, int16, out of a seed."""

    def make(seed: int) -> np.ndarray:
        grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
        inside = sum(g**2 for g in grid) < 0.8
        noise = np.random.default_rng(seed).integers(100, 900, SHAPE)
        return np.where(inside, noise, 0).astype(np.int16)

    return make


@pytest.fixture(scope="session")
def files(make_head: Callable[[int], np.ndarray]) -> dict[str, bytes]:
    """The four files of a case."""
    return {name: encode_volume(make_head(i), AFFINE) for i, name in enumerate(MODALITIES)}


@pytest.fixture
def watch(make_package: Callable[[int], Path]) -> ModelWatch[Predictor]:
    """Serves a package."""
    watch = ModelWatch(str(make_package(0)), Predictor.load, poll_s=3600, device="cpu")
    watch.refresh()
    assert watch.served is not None
    return watch


@pytest.fixture
def make_client(watch: ModelWatch[Predictor]) -> Callable[..., TestClient]:
    """Makes a client of an endpoint with settings, and with super-resolution where it is given."""

    def make(superres: ModelWatch[SuperResolver] | None = None, **settings: Any) -> TestClient:
        watches: dict[str, ModelWatch[Any]] = {"segmentation": watch}
        if superres is not None:
            watches["superres"] = superres
        return TestClient(make_api(Settings(**settings), watches), raise_server_exceptions=False)

    return make


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> Iterator[TestClient]:
    """A client of an endpoint."""
    with make_client() as client:
        yield client


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What glioray logs, each line once."""
    logger = logging.getLogger("glioray")
    # Where a test before has ended its propagation, pytest listens to the logger itself.
    monkeypatch.setattr(logger, "propagate", caplog.handler not in logger.handlers)
    return caplog


@pytest.fixture(scope="session")
def detail_of() -> Callable[[Any, int], str]:
    """Checks that an answer is a refusal of that status and form; returns its sentence."""

    def check(answer: Any, status: int) -> str:
        assert answer.status_code == status, answer.text
        assert list(answer.json()) == ["detail"]
        detail = answer.json()["detail"]
        assert isinstance(detail, str)
        assert "\n" not in detail
        assert answer.headers["x-glioray-notice"] == NOTICE
        return detail

    return check
