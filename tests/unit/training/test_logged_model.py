"""What of a run's model is handed to MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from glioray.config import NetConfig, PreprocessConfig, RunConfig
from glioray.inference.package import ModelSpec, write_package
from glioray.training import session

SWIN = {"width": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 3, 3], "window": 4}


@pytest.mark.parametrize(
    ("net", "options", "size"),
    [
        ("unet", {"width": 2, "depth": 1}, (64, 64)),
        ("swin_unetr", SWIN, (48, 96)),
        ("swin_unetr", {**SWIN, "stem_stride": 2}, (48, 96)),
    ],
)
def test_an_export_that_is_for_one_size_is_for_the_slices(
    net: str,
    options: dict[str, Any],
    size: tuple[int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    config = RunConfig(
        recipe="test", preprocess=PreprocessConfig(size=(48, 96)), net=NetConfig(name=net, options=options)
    )
    spec = ModelSpec(config=config, out_channels=4, spacing_mm=(1.0, 1.0, 1.0), manifest_hash="m")
    write_package(tmp_path, spec, spec.build().state_dict())
    examples: list[torch.Tensor] = []

    class Logger:
        def log_json(self, _value: object, _path: str) -> None:
            pass

    monkeypatch.setattr(
        session, "log_model", lambda _logger, _folder, _net, example: examples.append(example)
    )
    session.log_package(Logger(), tmp_path)
    assert [tuple(example.shape) for example in examples] == [(1, 4, *size)]
