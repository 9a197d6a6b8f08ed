"""Tiny untrained models and a client of the routes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

with warnings.catch_warnings():
    # Starlette's client asks for a package of another name that it takes as well; it says so once, here.
    warnings.simplefilter("ignore")
    import starlette.testclient  # noqa: F401

from glioray.inference.package import ModelSpec, write_package
from glioray.recipes import unet_tiny


@pytest.fixture
def make_package(tmp_path: Path) -> Callable[[int], Path]:
    """Writes a package of unet_tiny with weights of a seed; returns its folder."""

    def make(seed: int) -> Path:
        spec = ModelSpec(
            config=unet_tiny(),
            out_channels=3,
            spacing_mm=(1.0, 1.0, 1.0),
            manifest_hash="0" * 12,
            metrics={"dice_wt": 0.5},
        )
        torch.manual_seed(seed)
        folder = tmp_path / f"package-{seed}"
        write_package(folder, spec, spec.build().state_dict())
        return folder

    return make
