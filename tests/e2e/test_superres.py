"""Super-resolution models judged and promoted as a user does it: models in folders and a registry in a file."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glioray.cases.layouts import discover_cases
from glioray.cases.load import load_case
from glioray.config import NetConfig, PreprocessConfig, RunConfig
from glioray.gan_recipes import mri_tiny
from glioray.inference.package import ModelSpec, write_package
from glioray.inference.superres_package import SuperResSpec, write_superres
from glioray.storage import open_storage
from glioray.tracking.registry import champion
from glioray.tracking.runs import RunLogger
from glioray.training.superres_model import log_superres_package

RunJob = Callable[..., subprocess.CompletedProcess[str]]


def _spacing(data: Path) -> tuple[float, float, float]:
    storage = open_storage(data)
    return load_case(storage, discover_cases(storage)[0][0]).spacing_mm


def _write_superres(
    folder: Path, data: Path, change: Callable[[dict[str, Tensor]], None], collapse: str = "healthy"
) -> Path:
    """A generator that `change` makes of a random one; it knows the first four of the six patients."""
    spec = SuperResSpec(
        config=mri_tiny(),
        spacing_mm=_spacing(data),
        manifest_hash="m",
        train_patients=tuple(f"BraTS2021_9000{n}" for n in range(4)),
        collapse=collapse,
        reason="fidelity",
    )
    torch.manual_seed(0)
    weights = spec.build().state_dict()
    change(weights)
    write_superres(folder, spec, {"psnr": weights})
    return folder


def _only_interpolates(weights: dict[str, Tensor]) -> None:
    for tensor in weights.values():
        tensor.zero_()


def _adds_noise(weights: dict[str, Tensor]) -> None:
    weights[_last(weights, "weight")] *= 30


def _saturates(weights: dict[str, Tensor]) -> None:
    _only_interpolates(weights)
    weights[_last(weights, "bias")] += 0.6


def _last(weights: dict[str, Tensor], kind: str) -> str:
    return [name for name in weights if name.endswith(kind)][-1]


def _write_segmenter(folder: Path, data: Path) -> Path:
    """An untrained network that knows the fifth patient."""
    spec = ModelSpec(
        config=RunConfig(
            recipe="test",
            preprocess=PreprocessConfig(size=(64, 64)),
            net=NetConfig(options={"width": 4, "depth": 2}),
        ),
        out_channels=4,
        spacing_mm=_spacing(data),
        manifest_hash="m",
        train_patients=("BraTS2021_90004",),
    )
    torch.manual_seed(0)
    write_package(folder, spec, spec.build().state_dict())
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "GLIORAY_CACHE": str(tmp_path / "cache")}


def test_a_model_is_judged_by_its_images_and_by_use(
    run_job: RunJob, tmp_path: Path, phantom_data: Path, environment: dict[str, str]
):
    model = _write_superres(tmp_path / "model", phantom_data, _adds_noise)
    segmenter = _write_segmenter(tmp_path / "segmenter", phantom_data)
    command = [
        "jobs/evaluate.py", "--model", str(model), "--data", str(phantom_data), "--storage", str(tmp_path / "runs"),
    ]  # fmt: skip
    out = tmp_path / "out"
    done = run_job(*command, "--segmenter", str(segmenter), "--out", str(out), env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    # Neither of them knows the sixth patient.
    assert set(answer["cases"]) == set(answer["use_cases"]) == {"BraTS2021_90005"}
    assert set(answer["mean"]) == {"t1", "t1c", "t2", "flair", "mean"}
    assert {"psnr", "gain_psnr", "ssim", "nrmse", "hfen", "quality", "bicubic_psnr"} <= set(
        answer["mean"]["t1"]
    )
    assert answer["judge"] == "hfen"  # the recipe has no extractor
    assert answer["segmenter"] == str(segmenter)
    assert {"dice_sr", "dice_bicubic", "dice_hr", "gain", "regions"} <= set(answer["use"])
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {
        "evaluation.json", "evaluation.csv", "evaluation.md", "use.csv", "pictures/BraTS2021_90005.png",
    }  # fmt: skip
    assert (out / "pictures/BraTS2021_90005.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "evaluation.csv").read_text().startswith("case,modality,")
    assert "![BraTS2021_90005](pictures/BraTS2021_90005.png)" in (out / "evaluation.md").read_text()
    segmented = run_job("jobs/predict.py", *command[1:], "--out", str(out), env=environment)
    assert segmented.returncode == 1
    assert "is one of super-resolution; expected one of segmentation" in segmented.stderr
    assert "Traceback" not in segmented.stderr


def test_a_better_model_is_promoted_and_a_collapsed_one_is_not(
    run_job: RunJob,
    tmp_path: Path,
    phantom_data: Path,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "runs").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs/mlflow.db")
    monkeypatch.chdir(tmp_path)

    def logged(name: str, change: Callable[[dict[str, Tensor]], None], collapse: str = "healthy") -> str:
        package = _write_superres(tmp_path / name, phantom_data, change, collapse)
        logger = RunLogger.open_run("tests", name, kind="train")
        uri = log_superres_package(logger, package)
        logger.finish()
        return uri

    def promote(uri: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = ["jobs/promote.py", "--model", uri, "--storage", str(tmp_path / "runs"), *more]
        return run_job(*command, env=environment)

    known = logged("known", _adds_noise, "collapsed")
    refused = promote(known)
    assert refused.returncode == 1
    assert "has collapsed (fidelity) and cannot be promoted" in refused.stderr

    first = promote(logged("first", _adds_noise))
    assert first.returncode == 0, first.stderr[-3000:]
    assert json.loads(first.stdout)["candidate"] == "models:/glioray-superres/1"

    data = ["--data", str(phantom_data)]
    better = promote(logged("better", _only_interpolates), *data)
    assert better.returncode == 0, better.stderr[-3000:]
    answer: dict[str, Any] = json.loads(better.stdout)
    assert answer["promoted"], answer
    assert answer["cases"] == ["BraTS2021_90004", "BraTS2021_90005"]
    assert answer["quality"]["candidate"] == 0 > answer["quality"]["champion"]
    assert answer["collapse"]["candidate"]["score"] < 0.5

    # Its training said that it was healthy.
    unsound = promote(logged("unsound", _saturates), *data)
    assert unsound.returncode == 1
    assert "has collapsed on unseen cases" in unsound.stderr
    assert "Traceback" not in unsound.stderr
    assert champion("glioray-superres") == "2"
