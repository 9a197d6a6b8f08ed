"""The same tests for every discriminator, with every option that changes its shape."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glioray.nets.gan import DISCRIMINATORS, build_discriminator
from glioray.nets.gan.discriminators import SpectralConv2d

pytestmark = pytest.mark.contracts

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "vgg": [{"width": 4}, {"width": 4, "norm": "spectral"}, {"width": 4, "norm": "none"}],
    "patch": [
        {"width": 4},
        {"width": 4, "norm": "none", "num_layers": 1},
        {"width": 4, "norm": "instance"},
        {"width": 4, "norm": "instance", "num_layers": 2},
    ],
    "unet": [{"width": 4}, {"width": 4, "norm": "none"}],
}
"""Small variants of each discriminator; a new discriminator is tested by adding them here."""

# For images of three channels; a change here means that saved weights no longer load.
NUM_PARAMETERS = {
    # SRGAN's has 23.6 M at 96 x 96, most of them in the linear layer after flattening.
    "vgg": ({}, 5_213_569),
    # pix2pix's PatchGAN of 70 x 70 has 2,768,705 with six channels; with three it has 3 * 64 * 16 fewer.
    "patch": ({"norm": "instance"}, 2_768_705 - 3 * 64 * 16),
    "unet": ({}, 4_376_897),  # exactly the published number
}

EVERY = pytest.mark.parametrize("name", VARIANTS)
FIRST = pytest.mark.parametrize(
    ("name", "options"), [(name, VARIANTS[name][0]) for name in VARIANTS], ids=VARIANTS
)


def _images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _build(name: str, options: dict[str, Any], seed: int = 0, channels: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return build_discriminator(name, channels=channels, **options)


def test_every_discriminator_is_tested():
    assert set(VARIANTS) == set(DISCRIMINATORS) == set(NUM_PARAMETERS)


@EVERY
def test_images_of_any_size(name: str, subtests: pytest.Subtests):
    sizes = [(32, 32), (96, 131), (33, 47), (128, 128)]
    for options, size, channels in itertools.product(VARIANTS[name], sizes, (1, 4)):
        with subtests.test(options=options, size=size, channels=channels):
            logits = _build(name, options, channels=channels)(_images(2, channels, *size))
            assert logits.shape[:2] == (2, 1)
            if name == "vgg":
                assert logits.shape[2:] == (1, 1)
            elif name == "unet":
                assert logits.shape[2:] == size
            else:
                stride = 2 ** options.get("num_layers", 3)
                assert logits.shape[2:] == (size[0] // stride - 2, size[1] // stride - 2)
            assert torch.isfinite(logits).all()


def test_a_patch_has_70_pixels():
    net = _build("patch", {"width": 4, "norm": "none"})
    images = _images(1, 1, 160, 160).requires_grad_()
    logits = net(images)
    (gradient,) = torch.autograd.grad(logits[0, 0, 9, 9], images)
    rows, columns = gradient[0, 0].nonzero().T
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == 70


@EVERY
def test_every_parameter_gets_a_finite_gradient(name: str, subtests: pytest.Subtests):
    for options in VARIANTS[name]:
        with subtests.test(options=options):
            net = _build(name, options)
            (net(_images(3, 1, 48, 53)) * _images(3, 1, 1, 1, seed=1)).mean().backward()
            for key, parameter in net.named_parameters():
                assert parameter.grad is not None, key
                assert torch.isfinite(parameter.grad).all(), key
                assert parameter.grad.abs().max() > 0, key


@EVERY
def test_a_state_dict_can_be_saved_and_loaded(name: str, subtests: pytest.Subtests):
    """It includes the vectors of the power iteration, so that the next training step is the same."""
    for options in VARIANTS[name]:
        with subtests.test(options=options):
            net, other = _build(name, options, seed=1), _build(name, options, seed=2)
            images = _images(2, 1, 32, 40)
            net(images)
            state = net.state_dict()
            other.load_state_dict(state)
            copied = copy.deepcopy(net)
            for _ in range(2):
                expected = net(images)
                assert torch.equal(other(images), expected)
                assert torch.equal(copied(images), expected)
            assert torch.equal(other.eval()(images), net.eval()(images))
            places = [tensor.data_ptr() for tensor in state.values()]
            assert len(set(places)) == len(places), "safetensors rejects tensors that share memory"


@EVERY
def test_batched_equals_one_by_one_and_channels_last(name: str, subtests: pytest.Subtests):
    images = _images(3, 4, 41, 48).double()
    for options in VARIANTS[name]:
        with subtests.test(options=options), torch.no_grad():
            net = _build(name, options, channels=4).eval().double()
            expected = net(images)
            single = torch.cat([net(image[None]) for image in images])
            last = net.to(memory_format=torch.channels_last)(
                images.contiguous(memory_format=torch.channels_last)
            )
            torch.testing.assert_close(single, expected, rtol=1e-7, atol=1e-9)
            torch.testing.assert_close(last, expected, rtol=1e-7, atol=1e-9)


@EVERY
def test_half_precision_stays_finite(name: str, subtests: pytest.Subtests):
    for options in VARIANTS[name]:
        with subtests.test(options=options):
            net = _build(name, options)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = net(_images(2, 1, 48, 53))
            assert torch.isfinite(logits).all()
            logits.float().square().mean().backward()
            assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


@EVERY
def test_spectral_norm_keeps_the_norm_of_weights_at_one(name: str):
    net = _build(name, {"width": 4, "norm": "spectral"})
    bound = [module for module in net.modules() if isinstance(module, SpectralConv2d)]
    all_convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    # Real-ESRGAN does not normalise its first and last convolution.
    assert len(all_convs) - len(bound) == (2 if name == "unet" else 0)
    with torch.no_grad():
        for conv in bound:
            conv.parametrizations.weight.original.mul_(50)
        for _ in range(50):
            net(_images(2, 1, 32, 32))
        for conv in bound:
            assert float(torch.linalg.matrix_norm(conv.weight.flatten(1), 2)) == pytest.approx(1, abs=0.02)
        before = [conv.weight.clone() for conv in bound]
        net.eval()(_images(2, 1, 32, 32))
        assert all(map(torch.equal, before, (conv.weight for conv in bound))), "evaluation changes nothing"


def test_a_spectral_convolution_equals_torchs_with_the_normalised_weight():
    conv = _build("patch", {"width": 4}).layers[2].eval()
    images = _images(2, 4, 12, 12)
    assert torch.equal(conv(images), F.conv2d(images, conv.weight, conv.bias, 2, 1))


@FIRST
def test_learns_to_distinguish_two_kinds_of_images(name: str, options: dict[str, Any]):
    sharp = _images(8, 1, 32, 32)
    smooth = F.interpolate(F.avg_pool2d(sharp, 4), size=(32, 32), mode="bilinear")
    net = _build(name, {**options, "width": 8})
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        real, fake = net(torch.cat([sharp, smooth])).chunk(2)
        (F.softplus(-real).mean() + F.softplus(fake).mean()).backward()
        optimizer.step()
    assert float(real.detach().mean()) > 1
    assert float(fake.detach().mean()) < -1


@pytest.mark.parametrize("name", sorted(DISCRIMINATORS))
def test_the_number_of_parameters(name: str):
    options, expected = NUM_PARAMETERS[name]
    net = build_discriminator(name, channels=3, **options)
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pixel", {}, "No discriminator 'pixel'; available: patch, unet, vgg"),
        ("vgg", {"num_layers": 3}, "discriminator 'vgg' does not accept these options: .*num_layers"),
        ("vgg", {"norm": "instance"}, "norm is 'instance'; expected one of batch, spectral, none"),
        ("patch", {"norm": "batch"}, "norm is 'batch'; expected one of spectral, none, instance"),
        ("unet", {"norm": "batch"}, "norm is 'batch'; expected one of spectral, none"),
        ("patch", {"num_layers": 0}, "num_layers is 0; expected at least 1"),
        ("unet", {"width": 0}, "width is 0; expected at least 1"),
    ],
)
def test_invalid_names_and_options(name: str, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        build_discriminator(name, channels=1, **options)


@FIRST
def test_images_that_are_too_small_are_rejected(name: str, options: dict[str, Any]):
    with pytest.raises(ValueError, match=r"images have \(31, 40\) pixels; .* needs at least 32 per side"):
        _build(name, options)(_images(2, 1, 31, 40))
    if name == "patch":
        net = _build(name, {**options, "num_layers": 4})
        assert net(_images(2, 1, 48, 48)).shape == (2, 1, 1, 1)
        with pytest.raises(ValueError, match="needs at least 48"):
            net(_images(2, 1, 47, 48))
