"""What of a run's model is handed to MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from glioray.config import NetConfig, PreprocessConfig
from glioray.engine import run as session
from glioray.tasks import load_task
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.package import ModelSpec, write_package


@pytest.mark.contracts
def test_an_export_takes_the_slices_that_the_model_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """FCN pads 48 x 80 pixels, which is what a square of 2 x 2 in 96 x 160 folds to, and 32 x 32 it does not."""
    config = RunConfig(
        recipe="test",
        preprocess=PreprocessConfig(size=(96, 160)),
        net=NetConfig(name="fcn", options={"width": 2, "stem_stride": 2}),
    )
    spec = ModelSpec(config=config, out_channels=4, spacing_mm=(1.0, 1.0, 1.0), manifest_hash="m")
    write_package(tmp_path, spec, spec.build().state_dict())
    logged: list[tuple[nn.Module, torch.Tensor]] = []

    class Logger:
        def log_json(self, _value: object, _path: str) -> None:
            pass

    monkeypatch.setattr(
        "glioray.engine.on_mlflow.registry.log_model",
        lambda _logger, _folder, *model, **_: logged.append(model),
    )
    monkeypatch.setattr("glioray.engine.on_mlflow.card.model_card", lambda *described: "")
    session.log_package(load_task("segmentation"), Logger(), tmp_path)
    ((net, example),) = logged
    assert example.shape == (1, 4, 96, 160)
    rows = example.repeat(2, 1, 1, 1)
    dynamic = {"x": dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)}
    with torch.no_grad():
        program = torch.export.export(net, (rows,), dynamic_shapes=dynamic)
        assert program.module()(rows).shape == (2, 4, 96, 160)
