"""What of a super-resolution model is handed to MLflow, and that plain MLflow gets the resolver's images of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.pytorch
import pytest
import torch
from torch import nn

from glioray.config import NetConfig, PreprocessConfig, TrainConfig
from glioray.engine import run as session
from glioray.engine.on_mlflow.export import save_export
from glioray.tasks import load_task
from glioray.tasks.superres.config import DegradeConfig, GanConfig
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.package import SuperResSpec, write_superres


def _package(folder: Path, hr_size: int, lr_size: int) -> None:
    spec = SuperResSpec(
        config=GanConfig(
            recipe="test",
            preprocess=PreprocessConfig(normalize="unit", size=(64, 64)),
            degrade=DegradeConfig(hr_size=hr_size, lr_size=lr_size),
            generator=NetConfig(name="rrdbnet", options={"width": 8, "num_blocks": 1, "growth": 4}),
            train=TrainConfig(precision="fp32"),
        ),
        spacing_mm=(1.0, 1.0, 1.0),
        manifest_hash="m",
        stages=("psnr", "gan"),
    )
    torch.manual_seed(0)
    write_superres(folder, spec, {stage: spec.build().state_dict() for stage in spec.stages})


@pytest.mark.parametrize(("hr_size", "lr_size", "free"), [(64, 16, True), (64, 14, False)])
@pytest.mark.contracts
def test_plain_mlflow_makes_what_the_resolver_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hr_size: int, lr_size: int, free: bool
):
    _package(tmp_path / "package", hr_size, lr_size)
    logged: list[tuple[nn.Module, torch.Tensor]] = []

    def log_model(logger: Any, package: Path, net: nn.Module, example: torch.Tensor, **more: Any) -> str:
        logged.append((net, example))
        return "runs:/r/model"

    monkeypatch.setattr("glioray.engine.on_mlflow.registry.log_model", log_model)
    monkeypatch.setattr("glioray.engine.on_mlflow.card.model_card", lambda *described: "")
    logger: Any = None
    assert session.log_package(load_task("superres"), logger, tmp_path / "package") == "runs:/r/model"
    ((net, example),) = logged
    axes = save_export(net, example, tmp_path / "export", run_id="r")
    assert axes == (("batch", "height", "width") if free else ("batch",))
    loaded = mlflow.pytorch.load_model(str(tmp_path / "export"))
    resolver = SuperResolver.load(tmp_path / "package", "cpu")
    shapes = [(3, 1, lr_size, lr_size), *([(2, 1, 10, 13)] if free else [])]
    for shape in shapes:
        lr = torch.rand(shape)
        with torch.no_grad():
            torch.testing.assert_close(loaded(lr), resolver.images(lr), rtol=1e-4, atol=1e-5)
    assert not torch.equal(resolver.images(lr, blend=0), resolver.images(lr))
