"""The same tests for every generator, with every option that changes its shape."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glioray.engine.on_mlflow.export import save_export
from glioray.nets.gan import GENERATORS, FixedScale, build_generator
from glioray.nets.gan.upsample import upsample

pytestmark = pytest.mark.contracts

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "srresnet": [
        {"width": 8, "num_blocks": 2},
        {"width": 8, "num_blocks": 1, "norm": "none", "head_width": 4},
        {"width": 8, "num_blocks": 1, "norm": "instance", "num_ups": 1, "skip": False},
        {"width": 8, "num_blocks": 1, "norm": "group", "num_ups": 3, "head_width": 4},
    ],
    "rrdbnet": [
        {"width": 8, "num_blocks": 1, "growth": 4},
        {"width": 8, "num_blocks": 1, "growth": 4, "head_width": 4, "num_ups": 1, "skip": False},
        {"width": 8, "num_blocks": 1, "growth": 4, "head_width": 4, "num_ups": 3},
    ],
}
"""Small variants of each generator; a new generator is tested by adding them here."""

# A change here means that saved weights no longer load.
NUM_PARAMETERS = {
    # The paper's 1.55 M has two stages of pixel shuffle, each of 64 * 256 * 9 + 256 parameters instead of our
    # 64 * 64 * 9 + 64; its implementations also differ in biases and in the slopes of PReLU.
    "srresnet": 1_325_782,
    "rrdbnet": 16_697_987,  # exactly the published number
}
SIZES = [
    ((28, 28), (128, 128)),
    ((32, 32), (128, 128)),
    ((9, 9), (9, 9)),
    ((13, 17), (37, 53)),
    ((5, 12), (40, 13)),
    ((7, 8), (21, 24)),
]

EVERY = pytest.mark.parametrize("name", VARIANTS)
FIRST = pytest.mark.parametrize(
    ("name", "options"), [(name, VARIANTS[name][0]) for name in VARIANTS], ids=VARIANTS
)


def _images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _build(name: str, options: dict[str, Any], seed: int = 0, channels: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return build_generator(name, channels=channels, **options)


def _bicubic(lr: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(lr, size=size, mode="bicubic", align_corners=False)


def test_every_generator_is_tested():
    assert set(VARIANTS) == set(GENERATORS) == set(NUM_PARAMETERS)


@EVERY
def test_any_size_to_any_size(name: str, subtests: pytest.Subtests):
    for options, (size, out_size), channels in itertools.product(VARIANTS[name], SIZES, (1, 4)):
        with subtests.test(options=options, size=size, out_size=out_size, channels=channels):
            sr = _build(name, options, channels=channels)(_images(2, channels, *size), out_size)
            assert sr.shape == (2, channels, *out_size)
            assert sr.dtype == torch.float32
            assert torch.isfinite(sr).all()


@EVERY
def test_every_parameter_gets_a_finite_gradient(name: str, subtests: pytest.Subtests):
    for options, out_size in itertools.product(VARIANTS[name], [(16, 20), (19, 23)]):
        with subtests.test(options=options, out_size=out_size):
            net, hr = _build(name, options), _images(2, 1, *out_size, seed=1)
            (net(_images(2, 1, 8, 10), out_size) - hr).square().mean().backward()
            for key, parameter in net.named_parameters():
                assert parameter.grad is not None, key
                assert torch.isfinite(parameter.grad).all(), key
                assert parameter.grad.abs().max() > 0, key


@EVERY
def test_a_state_dict_can_be_saved_and_loaded(name: str, subtests: pytest.Subtests):
    for options in VARIANTS[name]:
        with subtests.test(options=options):
            net, other = _build(name, options, seed=1), _build(name, options, seed=2)
            lr = _images(2, 1, 8, 10)
            net(lr, (32, 40))  # updates running statistics
            expected = net.eval()(lr, (32, 40))
            assert not torch.equal(expected, other.eval()(lr, (32, 40)))
            state = net.state_dict()
            other.load_state_dict(state)
            assert torch.equal(other(lr, (32, 40)), expected)
            assert torch.equal(copy.deepcopy(net)(lr, (32, 40)), expected)
            places = [tensor.data_ptr() for tensor in state.values()]
            assert len(set(places)) == len(places), "safetensors rejects tensors that share memory"


@EVERY
def test_batched_equals_one_by_one_and_channels_last(name: str, subtests: pytest.Subtests):
    lr = _images(3, 4, 8, 10).double()
    for options, out_size in itertools.product(VARIANTS[name], [(32, 40), (37, 41)]):
        with subtests.test(options=options, out_size=out_size), torch.no_grad():
            net = _build(name, options, channels=4).eval().double()
            expected = net(lr, out_size)
            single = torch.cat([net(image[None], out_size) for image in lr])
            last = net.to(memory_format=torch.channels_last)(
                lr.contiguous(memory_format=torch.channels_last), out_size
            )
            torch.testing.assert_close(single, expected, rtol=1e-7, atol=1e-9)
            torch.testing.assert_close(last, expected, rtol=1e-7, atol=1e-9)


@EVERY
def test_half_precision_returns_float32_close_to_full_precision(name: str, subtests: pytest.Subtests):
    for options in VARIANTS[name]:
        with subtests.test(options=options):
            net = _build(name, options)
            lr = _images(2, 1, 8, 10)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                sr = net(lr, (37, 41))
            assert sr.dtype == torch.float32
            torch.testing.assert_close(sr, net(lr, (37, 41)), rtol=0, atol=0.05)
            sr.square().mean().backward()
            assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


@EVERY
def test_an_untrained_generator_is_nearly_bicubic(name: str, subtests: pytest.Subtests):
    """With a head of zeros it is exactly bicubic."""
    lr = _images(2, 1, 28, 28)
    bicubic = _bicubic(lr, (128, 128))
    for options in VARIANTS[name]:
        with subtests.test(options=options), torch.no_grad():
            net = _build(name, {**options, "skip": True})
            found = net(lr, (128, 128))
            assert (
                0 < float((found - bicubic).square().mean()) < 0.03**2
            )  # 30 dB; 42 dB with the default width
            for parameter in net.upsampler.head[-1].parameters():
                parameter.zero_()
            assert torch.equal(net(lr, (128, 128)), bicubic)
            assert not _build(name, {**options, "skip": False})(lr, (128, 128)).allclose(bicubic, atol=0.1)


@pytest.mark.parametrize("ratio", [1, 2, 3, 32 / 7, 8])
def test_upsampling_keeps_the_centre(ratio: float):
    x = torch.zeros(1, 1, 28, 28, dtype=torch.float64)
    x[..., 9:12, 15:18] = _images(3, 3).double()
    size = round(28 * ratio)
    found = upsample(x, (size, size))
    for axis in (-1, -2):
        places = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (28, size)]
        before, after = (
            float((image.sum(axis).flatten() * place).sum() / image.sum())
            for image, place in zip((x, found), places, strict=True)
        )
        assert after == pytest.approx(before, abs=2e-3)


def test_integer_ratios_repeat_pixels():
    x = _images(2, 3, 5, 7)
    assert torch.equal(upsample(x, (15, 14)), x.repeat_interleave(3, 2).repeat_interleave(2, 3))
    assert torch.equal(upsample(x, (5, 7)), x)
    assert not torch.equal(upsample(x, (15, 15))[..., :1], x.repeat_interleave(3, 2)[..., :1])


@FIRST
def test_overfits_one_batch(name: str, options: dict[str, Any]):
    hr = F.interpolate(_images(2, 1, 16, 16), size=(36, 36), mode="bicubic").clamp(0, 1)
    lr = F.interpolate(hr, size=(9, 9), mode="bicubic", antialias=True)
    net = _build(name, {**options, "width": 16})
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        loss = (net(lr, (36, 36)) - hr).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5 * float((_bicubic(lr, (36, 36)) - hr).square().mean())


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_the_number_of_parameters(name: str):
    with torch.device("meta"):
        net = build_generator(name, channels=3)
    assert sum(parameter.numel() for parameter in net.parameters()) == NUM_PARAMETERS[name]


def test_a_narrow_head_narrows_only_the_layers_at_full_size():
    wide, narrow = (
        build_generator("rrdbnet", channels=1, width=16, num_blocks=1, growth=4, head_width=head_width)
        for head_width in (None, 4)
    )
    assert [stage[0].weight.shape[:2] for stage in wide.upsampler.stages] == [(16, 16), (16, 16)]
    assert [stage[0].weight.shape[:2] for stage in narrow.upsampler.stages] == [(4, 16), (4, 4)]
    assert wide.blocks.state_dict().keys() == narrow.blocks.state_dict().keys()


@FIRST
def test_an_export_with_an_integer_scale_accepts_any_size(name: str, options: dict[str, Any]):
    net = FixedScale(_build(name, options), 4).eval().double()
    dynamic = {"x": dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)}
    with torch.no_grad():
        program = torch.export.export(net, (_images(2, 1, 16, 16).double(),), dynamic_shapes=dynamic)
        for shape in [(2, 1, 16, 16), (3, 1, 13, 22)]:
            lr = _images(*shape, seed=5).double()
            found = program.module()(lr)
            assert found.shape == (shape[0], 1, 4 * shape[2], 4 * shape[3])
            torch.testing.assert_close(found, net.net(lr, found.shape[-2:]), rtol=1e-7, atol=1e-9)


def test_an_export_with_another_scale_has_one_size(tmp_path: Path):
    """Saved as for MLflow, which compares the exported program with the network."""
    net = FixedScale(_build("srresnet", VARIANTS["srresnet"][0]), 32 / 7)
    assert net(_images(2, 1, 28, 21)).shape == (2, 1, 128, 96)
    assert save_export(net, _images(2, 1, 28, 21), tmp_path / "model", run_id="r") == ("batch",)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("srgan", {}, "No generator 'srgan'; available: rrdbnet, srresnet"),
        ("srresnet", {"growth": 3}, "generator 'srresnet' does not accept these options: .*growth"),
        ("rrdbnet", {"norm": "batch"}, "generator 'rrdbnet' does not accept these options: .*norm"),
        ("srresnet", {"norm": "spectral"}, "norm is 'spectral'; expected one of"),
        ("srresnet", {"num_blocks": 0}, "num_blocks is 0; expected at least 1"),
        ("rrdbnet", {"growth": 0}, "growth is 0; expected at least 1"),
        ("rrdbnet", {"num_ups": 0}, "num_ups is 0; expected at least 1"),
        ("rrdbnet", {"head_width": 0}, "head_width is 0, .*; expected at least 1"),
    ],
)
def test_invalid_names_and_options(name: str, options: dict[str, Any], message: str):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_generator(name, channels=1, **options)


def test_generators_do_not_shrink():
    net = _build("srresnet", VARIANTS["srresnet"][0])
    with pytest.raises(ValueError, match=r"out_size is \(7, 32\); expected at least the image's \(8, 8\)"):
        net(_images(2, 1, 8, 8), (7, 32))
    with pytest.raises(ValueError, match=r"scale is 0\.5; expected at least 1"):
        FixedScale(net, 0.5)
