"""A super-resolution model as two files: there and back, what is said of others, and its blends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from glioray.config import with_settings
from glioray.engine.package import SPEC_FILE, WEIGHTS_FILE
from glioray.errors import ModelError
from glioray.tasks import find_task
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.package import (
    FORMAT,
    SuperResSpec,
    parse_superres,
    read_superres,
    write_superres,
)

Make = Callable[..., SuperResolver]


def _written(resolver: SuperResolver, folder: Path) -> Path:
    write_superres(folder, resolver.spec, {stage: net.state_dict() for stage, net in resolver.nets.items()})
    return folder


@pytest.fixture
def package(make_resolver: Make, tmp_path: Path) -> Path:
    return _written(make_resolver(), tmp_path / "package")


@pytest.mark.parametrize("stages", [("psnr",), ("gan",), ("psnr", "gan")], ids=str)
def test_there_and_back(make_resolver: Make, tmp_path: Path, stages: tuple[str, ...]):
    resolver = make_resolver(stages, **{"generator.options.norm": "batch", "degrade.lr_size": 14})
    resolver.spec = replace(
        resolver.spec,
        train_patients=("a", "b"),
        metrics={"psnr": 31.5, "collapse_score": 0.0},
        reason="fidelity",
        extractors={"loss": "vgg16 0123456789ab"},
    )
    lr = torch.rand(3, 1, 14, 11)
    for net in resolver.nets.values():
        net.train()(lr, (48, 40))  # running statistics move
        net.eval().to(memory_format=torch.channels_last)
    _written(resolver, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [SPEC_FILE, WEIGHTS_FILE]
    found, nets = read_superres(tmp_path)
    assert found == resolver.spec
    assert tuple(nets) == stages
    assert find_task((tmp_path / SPEC_FILE).read_text()).name == "superres"
    for stage, net in nets.items():
        assert not net.training
        torch.testing.assert_close(net(lr, (48, 40)), resolver.nets[stage](lr, (48, 40)))
    loaded = SuperResolver.load(tmp_path, "cpu")
    torch.testing.assert_close(loaded.images(lr), resolver.images(lr))


def test_weights_lie_by_stage(package: Path):
    names = safetensors.torch.load((package / WEIGHTS_FILE).read_bytes())
    assert {name.split(".")[0] for name in names} == {"psnr", "gan"}
    assert json.loads((package / SPEC_FILE).read_text())["format"] == FORMAT == "glioray-superres-1"


def test_a_folder_without_a_model(tmp_path: Path):
    with pytest.raises(
        ModelError, match=r"holds no model.safetensors and model.json \(No such.*check the URI"
    ):
        read_superres(tmp_path)


def test_damaged_weights(package: Path):
    data = (package / WEIGHTS_FILE).read_bytes()
    for broken in (data[:-4], data[: len(data) // 2], b"", b"\xff" * 64):
        (package / WEIGHTS_FILE).write_bytes(broken)
        with pytest.raises(
            ModelError, match=r"model.safetensors' is damaged .*fetch or export the model again"
        ):
            read_superres(package)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"3", b"null", b'{"config": {}}', b"\xff\xfe\xfd"])
def test_a_description_that_is_none(package: Path, text: bytes):
    (package / SPEC_FILE).write_bytes(text)
    with pytest.raises(ModelError, match=r"model.json states no format .*export the model again"):
        find_task(text)
    with pytest.raises(ModelError, match=r"model.json is not a model's description .*export the model again"):
        read_superres(package)


def test_a_description_of_another_format(package: Path):
    values = json.loads((package / SPEC_FILE).read_text())
    for name, ours in (("glioray-seg-1", False), ("glioray-superres-9", True)):
        text = json.dumps({**values, "format": name})
        if ours:
            assert find_task(text).name == "superres"
        else:
            with pytest.raises(
                ModelError, match="has the format 'glioray-seg-1'; this version of glioray reads"
            ):
                find_task(text)
        with pytest.raises(
            ModelError, match=f"has the format '{name}'; super-resolution wants 'glioray-superres-1'"
        ):
            parse_superres(text)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda v: {**v, "colour": 1}, "no setting 'colour'; the settings are"),
        (lambda v: {name: value for name, value in v.items() if name != "config"}, "config"),
        (lambda v: {**v, "config": {**v["config"], "mood": 1}}, "no setting 'config.mood'; config has"),
        (lambda v: {**v, "spacing_mm": [1.0]}, r"spacing_mm is \[1.0\]; expected 3 values"),
    ],
    ids=["more", "less", "config", "type"],
)
def test_a_description_with_other_settings(package: Path, change: Any, found: str):
    values = json.loads((package / SPEC_FILE).read_text())
    with pytest.raises(
        ModelError, match=rf"does not fit this version of glioray \(.*{found}.*; use the version"
    ):
        parse_superres(json.dumps(change(values)))


@pytest.mark.parametrize(
    "settings",
    [{"generator.options.width": 5}, {"generator.options.num_blocks": 2}, {"generator.name": "rrdbnet"}],
    ids=str,
)
def test_weights_of_another_generator(package: Path, settings: dict[str, Any]):
    spec = parse_superres((package / SPEC_FILE).read_text())
    other = replace(spec, config=with_settings(spec.config, settings))
    (package / SPEC_FILE).write_text(other.to_json())
    with pytest.raises(
        ModelError, match=r"the psnr weights in '.*' do not fit generator '\w+': \S"
    ) as caught:
        read_superres(package)
    assert "\n" not in str(caught.value)


def test_a_stage_whose_weights_are_not_there(make_resolver: Make, tmp_path: Path):
    folder = _written(make_resolver(("gan",)), tmp_path)
    spec = parse_superres((folder / SPEC_FILE).read_text())
    (folder / SPEC_FILE).write_text(replace(spec, stages=("psnr", "gan")).to_json())
    with pytest.raises(ModelError, match=r"the psnr weights in '.*' do not fit generator 'srresnet'"):
        read_superres(folder)


def test_a_generator_that_is_not_there(package: Path):
    text = (package / SPEC_FILE).read_text().replace('"name": "srresnet"', '"name": "edsr"')
    (package / SPEC_FILE).write_text(text)
    with pytest.raises(ModelError, match="No generator 'edsr'; available: rrdbnet, srresnet"):
        read_superres(package)


def test_a_spec_is_plain(make_resolver: Make):
    spec = make_resolver().spec
    assert parse_superres(spec.to_json()) == spec
    assert parse_superres(spec.to_json().encode()) == spec
    assert SuperResSpec(config=spec.config, spacing_mm=(1, 1, 1), manifest_hash="m").collapse == "unjudged"


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_blend_is_linear_in_the_weights(make_resolver: Make, norm: str):
    resolver = make_resolver(**{"generator.options.norm": norm})
    psnr, gan = (resolver.nets[stage].state_dict() for stage in ("psnr", "gan"))
    assert not torch.equal(psnr["first.0.weight"], gan["first.0.weight"])
    assert resolver.generator(0.0) is resolver.nets["psnr"]
    assert resolver.generator(1.0) is resolver.generator() is resolver.nets["gan"]
    for blend in (0.5, 0.25):
        net = resolver.generator(blend)
        assert not net.training
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                wanted = (1 - blend) * psnr[name] + blend * gan[name]
                torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=1e-7, msg=name)
        assert resolver.generator(blend) is net  # made once
    lr = torch.rand(2, 1, 12, 12)
    made = [resolver.images(lr, blend=blend) for blend in (0.0, 0.5, 1.0)]
    assert not torch.equal(made[0], made[2])
    assert not torch.equal(made[1], made[0])
    torch.testing.assert_close(made[2], resolver.images(lr))


def test_a_blend_that_cannot_be(make_resolver: Make):
    for blend in (-0.1, 1.1, float("nan")):
        with pytest.raises(ModelError, match=r"blend is .*; give 0 \(the PSNR generator\) to 1"):
            make_resolver().generator(blend)
    for stages, blend, lacking in ((("psnr",), 1.0, "gan"), (("gan",), 0.0, "psnr"), (("psnr",), 0.5, "gan")):
        resolver = make_resolver(stages)
        with pytest.raises(
            ModelError, match=f"has no {lacking} generator, only {stages[0]}; blend .* needs it"
        ):
            resolver.generator(blend)
        assert resolver.generator() is resolver.nets[stages[0]]


def test_images_of_one_channel_are_made_one_by_one(make_resolver: Make):
    resolver = make_resolver()
    resolver.batch_size = 3
    lr = torch.rand(2, 4, 12, 10)
    made = resolver.images(lr)
    assert made.shape == (2, 4, 48, 40)
    assert made.dtype == torch.float32
    for number in range(2):
        for channel in range(4):
            alone = resolver.images(lr[number : number + 1, channel : channel + 1])
            torch.testing.assert_close(made[number, channel], alone[0, 0], rtol=1e-4, atol=1e-5)


def test_images_of_several_channels_stay_together(make_resolver: Make):
    resolver = make_resolver(channels="joint")
    lr = torch.rand(2, 4, 12, 12)
    assert resolver.images(lr).shape == (2, 4, 48, 48)
    with pytest.raises(
        ModelError, match=r"have 1 channel\(s\) but the model takes 4 together \(t1, t1c, t2, flair\)"
    ):
        resolver.images(lr[:, :1])


def test_odd_sizes(make_resolver: Make):
    resolver = make_resolver(**{"degrade.lr_size": 11})  # 48 / 11
    assert resolver.images(torch.rand(1, 1, 11, 13)).shape == (1, 1, 48, 57)
    assert resolver.images(torch.rand(1, 2, 9, 13), (31, 45)).shape == (1, 2, 31, 45)


@pytest.mark.parametrize("stages", [[], ["psnr", "critic"]], ids=str)
def test_a_description_without_a_generator(package: Path, stages: list[str]):
    values = json.loads((package / SPEC_FILE).read_text()) | {"stages": stages}
    with pytest.raises(ModelError, match="expected psnr and gan, or one of them"):
        parse_superres(json.dumps(values))
