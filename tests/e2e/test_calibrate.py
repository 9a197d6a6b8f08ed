"""The calibration as a user runs it, on phantoms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glioray.errors import DataError, ModelError, UsageError
from glioray.tasks.superres.package import SuperResSpec, write_superres
from glioray.tasks.superres.planted import HEALTHY, PLANTED
from glioray.tasks.superres.recipes import build_gan_recipe

RunHere = RunCalibrate = Callable[..., dict[str, Any]]


@pytest.fixture
def run(run_here: RunHere, phantom_manifest: str, tmp_path: Path) -> RunCalibrate:
    places = ["--data", phantom_manifest, "--storage", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]

    def run(*flags: str) -> dict[str, Any]:
        return run_here("calibrate", *places, *flags)

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose generators are untrained."""
    config = build_gan_recipe("mri_tiny")
    stages = ("psnr", "gan")
    spec = SuperResSpec(config=config, spacing_mm=(2.0, 2.0, 2.0), manifest_hash="m", stages=stages)
    torch.manual_seed(0)
    write_superres(tmp_path / "model", spec, {stage: spec.build().state_dict() for stage in stages})
    return tmp_path / "model"


def test_phantoms_and_a_model_are_on_the_right_sides(run: RunCalibrate, tmp_path: Path, model: Path):
    assert run("--recipe", "mri_tiny", "--dry-run")["config"]["recipe"] == "mri_tiny"
    answer = run("--model", str(model), "--split", "all")
    assert (answer.get("exit_code", 0), answer["wrong"], answer["num_images"]) == (0, [], 32)
    names = [row["name"] for row in answer["rows"]]
    assert names == [*PLANTED, *HEALTHY, "the model's psnr generator", "the model's gan generator"]
    assert "Every planted output scores 0.5 or more" in (tmp_path / "out" / "calibration.md").read_text()
    assert (tmp_path / "out" / "planted_collapses.png").read_bytes().startswith(b"\x89PNG")
    assert answer["files"] == [
        str(tmp_path / "out" / name) for name in ("calibration.md", "planted_collapses.png")
    ]


def test_a_bound_that_does_not_hold_is_named(run: RunCalibrate, caplog: pytest.LogCaptureFixture):
    answer = run("--recipe", "mri_tiny", "--split", "all", "--set", "collapse.fidelity=[-20, -10]")
    assert answer["exit_code"] == 1
    assert "bicubic" in answer["wrong"]
    assert "raise collapse.fidelity, now (-20" in caplog.text


def test_what_cannot_be_judged_is_said_in_one_sentence(run: RunCalibrate, tmp_path: Path, model: Path):
    with pytest.raises(UsageError, match="--model brings its own recipe"):
        run("--model", str(model), "--recipe", "mri_tiny")
    with pytest.raises(UsageError, match="no recipe 'unet' of the task superres"):
        run("--recipe", "unet")
    with pytest.raises(DataError, match="expected 32, so validate on more cases"):
        run("--recipe", "mri_tiny", "--set", "collapse.min_slices=32", "--set", "collapse.apart_mm=90")
    with pytest.raises(ModelError):
        run("--model", str(tmp_path))
