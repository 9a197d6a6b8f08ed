"""Super-resolution models evaluated and promoted as a user does it: models in folders and a registry in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glioray.cases.layouts import discover_cases
from glioray.cases.load import load_case
from glioray.config import NetConfig, PreprocessConfig
from glioray.engine.on_mlflow.registry import champion
from glioray.engine.on_mlflow.runs import RunLogger
from glioray.engine.run import log_package
from glioray.errors import ModelError
from glioray.storage import open_storage
from glioray.tasks import load_task
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.package import ModelSpec, write_package
from glioray.tasks.superres.package import SuperResSpec, write_superres
from glioray.tasks.superres.recipes import mri_tiny

RunHere = Callable[..., dict[str, Any]]


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


def test_a_model_is_evaluated_by_its_images_and_by_use(
    run_here: RunHere, tmp_path: Path, phantom_data: Path, phantom_manifest: str
):
    model = _write_superres(tmp_path / "model", phantom_data, _adds_noise)
    segmenter = _write_segmenter(tmp_path / "segmenter", phantom_data)
    flags = ["--model", str(model), "--data", phantom_manifest, "--storage", str(tmp_path / "runs")]
    out = tmp_path / "out"
    answer = run_here("evaluate", *flags, "--segmenter", str(segmenter), "--out", str(out))
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
    with pytest.raises(ModelError, match=r"belongs to the task superres; expected one of segmentation"):
        run_here("predict", *flags, "--out", str(out))


def test_a_better_model_is_promoted_and_a_collapsed_one_is_not(
    run_here: RunHere,
    tmp_path: Path,
    phantom_data: Path,
    phantom_manifest: str,
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "runs").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs/mlflow.db")
    monkeypatch.chdir(tmp_path)

    def logged(name: str, change: Callable[[dict[str, Tensor]], None], collapse: str = "healthy") -> str:
        package = _write_superres(tmp_path / name, phantom_data, change, collapse)
        logger = RunLogger.open_run("tests", name, kind="train")
        uri = log_package(load_task("superres"), logger, package)
        logger.finish()
        return uri

    def promote(uri: str, *more: str) -> dict[str, Any]:
        return run_here("promote", "--model", uri, "--storage", str(tmp_path / "runs"), *more)

    known = logged("known", _adds_noise, "collapsed")
    with pytest.raises(ModelError, match=r"has collapsed \(fidelity\) and cannot be promoted"):
        promote(known)
    first = promote(logged("first", _adds_noise))
    assert first["candidate"] == "models:/glioray-superres/1"

    data = ["--data", phantom_manifest]
    better = promote(logged("better", _only_interpolates), *data)
    assert better["promoted"], better
    assert better["cases"] == ["BraTS2021_90004", "BraTS2021_90005"]
    assert better["quality"]["candidate"] == 0 > better["quality"]["champion"]
    assert better["collapse"]["candidate"]["score"] < 0.5

    # Its training said that it was healthy.
    unsound = logged("unsound", _saturates)
    with pytest.raises(ModelError, match="has collapsed on unseen cases"):
        promote(unsound, *data)
    assert champion("glioray-superres") == "2"
