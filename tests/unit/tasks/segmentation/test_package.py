"""A model as two files: there and back, and what is said of files that are not one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from glioray.config import with_settings
from glioray.engine.package import SPEC_FILE, WEIGHTS_FILE
from glioray.errors import ModelError
from glioray.tasks.segmentation.package import ModelSpec, parse_spec, read_package, write_package
from glioray.tasks.segmentation.recipes import build_recipe

Specs = Callable[..., ModelSpec]


@pytest.fixture
def package(make_spec: Specs, tmp_path: Path) -> Path:
    spec = make_spec(**{"net.options.norm": "batch"})
    torch.manual_seed(3)
    write_package(tmp_path / "package", spec, spec.build().state_dict())
    return tmp_path / "package"


def test_there_and_back(make_spec: Specs, tmp_path: Path):
    spec = replace(
        make_spec(**{"net.options.norm": "batch", "postprocess.min_et_ml": 0.3}),
        train_patients=("a", "b"),
        metrics={"dice_wt": 0.75},
        val_cases={"c": {"wt": 0.75}},
    )
    net = spec.build()
    images = torch.randn(2, 4, 48, 48)
    net(images)  # running statistics move
    net.to(memory_format=torch.channels_last)  # as in training; safetensors wants plain memory
    write_package(tmp_path, spec, net.state_dict())
    assert sorted(file.name for file in tmp_path.iterdir()) == [SPEC_FILE, WEIGHTS_FILE]
    found, read = read_package(tmp_path)
    assert found == spec
    assert not read.training
    assert torch.equal(read(images), net.to(memory_format=torch.contiguous_format).eval()(images))


def test_a_folder_without_a_model(tmp_path: Path):
    with pytest.raises(
        ModelError, match=r"holds no model.safetensors and model.json \(No such file.*check the URI"
    ):
        read_package(tmp_path)


def test_damaged_weights(package: Path):
    data = (package / WEIGHTS_FILE).read_bytes()
    for broken in (data[:-4], data[: len(data) // 2], b"", b"\xff" * 64):
        (package / WEIGHTS_FILE).write_bytes(broken)
        with pytest.raises(
            ModelError, match=r"model.safetensors' is damaged .*fetch or export the model again"
        ):
            read_package(package)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"3", b'{"config": {}}', b"\xff\xfe\xfd"])
def test_a_description_that_is_none(package: Path, text: bytes):
    (package / SPEC_FILE).write_bytes(text)
    with pytest.raises(ModelError, match=r"model.json is not a model's description .*export the model again"):
        read_package(package)


def test_a_description_of_another_format(package: Path):
    values = json.loads((package / SPEC_FILE).read_text())
    with pytest.raises(
        ModelError, match=r"has the format 'other-9'; this version of glioray reads 'glioray-seg"
    ):
        parse_spec(json.dumps({**values, "format": "other-9"}))


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda v: {**v, "colour": 1}, "no setting 'colour'; the settings are"),
        (lambda v: _without(v, "config"), "config"),
        (lambda v: {**v, "config": {**v["config"], "mood": 1}}, "no setting 'config.mood'; config has"),
        (lambda v: {**v, "out_channels": "three"}, "out_channels is 'three'; expected a whole number"),
    ],
)
def test_a_description_with_other_settings(package: Path, change: Any, found: str):
    values = json.loads((package / SPEC_FILE).read_text())
    with pytest.raises(
        ModelError, match=rf"does not fit this version of glioray \(.*{found}.*; use the version"
    ):
        parse_spec(json.dumps(change(values)))


def test_a_network_that_is_not_there(package: Path):
    text = (package / SPEC_FILE).read_text().replace('"name": "unet"', '"name": "unet9"')
    (package / SPEC_FILE).write_text(text)
    with pytest.raises(ModelError, match=r"cannot be built \(No network 'unet9'; available:"):
        read_package(package)


@pytest.mark.parametrize("options", [{"width": 5}, {"depth": 3}, {"norm": "none"}], ids=str)
def test_weights_of_another_network(package: Path, make_spec: Specs, options: dict[str, Any]):
    spec = make_spec(**{f"net.options.{name}": value for name, value in options.items()})
    (package / SPEC_FILE).write_text(spec.to_json())
    with pytest.raises(ModelError, match=r"the weights in '.*' do not fit network 'unet': \S") as caught:
        read_package(package)
    assert "\n" not in str(caught.value)


def test_a_trained_model_needs_no_file_of_first_weights():
    config = with_settings(
        build_recipe("unet_tiny"),
        {"net.name": "fcn", "net.options": {"width": 4, "fc": False, "weights": "/gone/vgg16.safetensors"}},
    )
    spec = ModelSpec(
        config=config, out_channels=3, spacing_mm=(1.0, 1.0, 1.0), manifest_hash="x", train_patients=()
    )
    assert spec.build()(torch.zeros(1, 4, 32, 32)).shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"weights is '/gone/vgg16.safetensors', which does not exist"):
        spec.build(pretrained=True)
