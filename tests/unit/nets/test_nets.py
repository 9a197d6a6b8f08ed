"""One tester over every network of the registry, in every option that changes its shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from glioray.nets import SEGMENTATION_NETS, build_net

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "unet": [
        {"width": 4, "depth": 2},
        {"width": 4, "depth": 4, "max_width": 8},
        {"width": 4, "depth": 2, "stem_stride": 2},
        {"width": 4, "depth": 1, "stem_stride": 4},
        {"width": 6, "depth": 2, "norm": "group"},
        {"width": 4, "depth": 2, "norm": "batch"},
        {"width": 4, "depth": 2, "norm": "none"},
        {"width": 4, "depth": 2, "residual": True, "stem_stride": 2},
        {"width": 4, "depth": 2, "num_convs": 3, "dropout": 0.2},
        {"width": 4, "depth": 2, "stem_stride": 2, "lean": True, "norm": "batch", "prior": 0.12},
        {"width": 4, "depth": 2, "lean": True, "residual": True},
        {"width": 4, "depth": 2, "bridge": False, "dilation": 2, "upsample": "nearest"},
        {"width": 4, "depth": 2, "bottleneck": "aspp"},
        {"width": 4, "depth": 2, "bottleneck": "spp"},
    ],
}
"""Small options of each network: a new one is tested by adding its line."""

# What a change of architecture must say out loud: published checkpoints would no longer load.
NUM_PARAMETERS = {
    ("unet", "width 64, depth 4"): ({}, 4, 3, 31_038_339),
    ("unet", "half resolution"): ({"width": 32, "depth": 3, "stem_stride": 2}, 4, 3, 1_931_116),
    ("unet", "lean"): ({"width": 32, "depth": 3, "stem_stride": 2, "lean": True}, 4, 3, 1_414_348),
    ("unet", "residual"): ({"width": 8, "depth": 2, "residual": True}, 12, 4, 31_676),
    ("unet", "batch norm"): ({"width": 8, "depth": 2, "norm": "batch"}, 4, 3, 29_715),
    ("unet", "no norm"): ({"width": 8, "depth": 2, "norm": "none"}, 4, 3, 29_555),
    # The counts of a Keras study of U-Nets on BraTS; nets/README.md explains them.
    ("unet", "study"): ({"norm": "none"}, 4, 4, 31_032_516),
    ("unet", "study, dropout"): ({"norm": "none", "dropout": 0.2}, 4, 4, 31_032_516),
    ("unet", "study, dilation"): (
        {"norm": "none", "dilation": 2, "upsample": "nearest"},
        4,
        4,
        31_379_716,
    ),
    ("unet", "study, without bridge"): ({"norm": "none", "bridge": False}, 4, 4, 15_826_116),
}

EVERY = [
    pytest.param(name, options, id=f"{name}-{'-'.join(f'{k}={v}' for k, v in options.items())}")
    for name, variants in VARIANTS.items()
    for options in variants
]


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_every_network_is_tested():
    assert set(VARIANTS) == set(SEGMENTATION_NETS)


@pytest.mark.parametrize(("name", "options"), EVERY)
@pytest.mark.parametrize("size", [(32, 48), (37, 53)], ids=str)
def test_logits_have_the_images_size(name: str, options: dict[str, Any], size: tuple[int, int]):
    net = build_net(name, in_channels=4, out_channels=3, **options).eval()
    logits = net(_noise(2, 4, *size))
    assert logits.shape == (2, 3, *size)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(("name", "options"), EVERY)
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (3, 70)], ids=str)
def test_images_smaller_than_the_deepest_level(name: str, options: dict[str, Any], size: tuple[int, int]):
    net = build_net(name, in_channels=4, out_channels=3, **options)
    assert net(_noise(2, 4, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("in_channels", [4, 12, 20])
@pytest.mark.parametrize("out_channels", [3, 4, 5])
def test_channels_of_neighbours_and_of_labels(in_channels: int, out_channels: int):
    for name, variants in VARIANTS.items():
        net = build_net(name, in_channels=in_channels, out_channels=out_channels, **variants[0])
        assert net(_noise(1, in_channels, 32, 32)).shape == (1, out_channels, 32, 32)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_every_parameter_gets_a_finite_gradient(name: str, options: dict[str, Any]):
    torch.manual_seed(0)
    net = build_net(name, in_channels=4, out_channels=3, **options)
    (net(_noise(2, 4, 37, 53)) * _noise(2, 3, 37, 53, seed=1)).mean().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_a_state_dict_goes_there_and_back(name: str, options: dict[str, Any]):
    torch.manual_seed(1)
    net = build_net(name, in_channels=4, out_channels=3, **options)
    net(_noise(2, 4, 32, 32))  # running statistics move
    torch.manual_seed(2)
    other = build_net(name, in_channels=4, out_channels=3, **options)
    images = _noise(2, 4, 32, 32, seed=3)
    assert not torch.equal(net.eval()(images), other.eval()(images))
    state = net.state_dict()
    other.load_state_dict(state)
    assert torch.equal(net(images), other(images))
    # safetensors refuses tensors that share memory, as a module registered twice would.
    places = [tensor.data_ptr() for tensor in state.values()]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_batched_equals_one_by_one(name: str, options: dict[str, Any]):
    net = build_net(name, in_channels=4, out_channels=3, **options).eval()
    images = _noise(3, 4, 37, 40)
    single = torch.cat([net(image[None]) for image in images])
    torch.testing.assert_close(net(images), single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_channels_last_changes_nothing(name: str, options: dict[str, Any]):
    net = build_net(name, in_channels=4, out_channels=3, **options).eval()
    images = _noise(2, 4, 32, 40)
    expected = net(images)
    last = net.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)


def _learned(net: nn.Module) -> float:
    """The share of a batch's pixels that a network gets right after sixty steps on it."""
    images = _noise(2, 4, 8, 8, seed=4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    targets = (images[:, :3] + images[:, 1:] > 0).float()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(net(images), targets).backward()
        optimizer.step()
    return float(((net(images) > 0) == targets.bool()).float().mean())


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_overfits_one_batch(name: str, options: dict[str, Any]):
    torch.manual_seed(0)
    net = build_net(name, in_channels=4, out_channels=3, **{**options, "width": 16, "dropout": 0.0})
    assert _learned(net) > 0.9


# Exporting takes seconds: two variants stand for the others.
@pytest.mark.parametrize(("name", "options"), [EVERY[7], EVERY[9]])
def test_the_export_equals_the_network(name: str, options: dict[str, Any]):
    net = build_net(name, in_channels=4, out_channels=3, **options).eval()
    dynamic = {"x": {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}}
    with torch.no_grad():
        program = torch.export.export(net, (_noise(2, 4, 64, 64),), dynamic_shapes=dynamic)
        for shape in ((2, 4, 64, 64), (3, 4, 96, 160)):
            images = _noise(*shape, seed=5)
            torch.testing.assert_close(program.module()(images), net(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key", NUM_PARAMETERS, ids=" ".join)
def test_number_of_parameters(key: tuple[str, str]):
    options, in_channels, out_channels, expected = NUM_PARAMETERS[key]
    with torch.device("meta"):
        net = build_net(key[0], in_channels=in_channels, out_channels=out_channels, **options)
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


def test_an_unknown_name_lists_the_networks():
    with pytest.raises(ValueError, match=r"'resnet9000' is not a network; the networks are .*unet"):
        build_net("resnet9000", in_channels=4, out_channels=3)


def test_an_option_that_a_network_does_not_have():
    with pytest.raises(ValueError, match=r"network 'unet' does not take these options: .*'girth'"):
        build_net("unet", in_channels=4, out_channels=3, girth=3)


@pytest.mark.parametrize(
    "options",
    [{"width": 0}, {"depth": 0}, {"depth": 8}, {"stem_stride": 3}, {"norm": "layer"}, {"prior": 1.0}],
    ids=str,
)
def test_options_out_of_range(options: dict[str, Any]):
    with pytest.raises(
        ValueError,
        match=r"expected width from 1|stem_stride 3|is not a normalisation; they are batch|expected a probability",
    ):
        build_net("unet", in_channels=4, out_channels=3, **options)


@pytest.mark.parametrize("stem_stride", [1, 2, 4])
def test_the_stem_keeps_pixels_in_place(stem_stride: int):
    """Made the identity, the network gives each pixel back where it was."""
    net = build_net(
        "unet",
        in_channels=3,
        out_channels=3,
        width=3 * stem_stride**2,
        depth=1,
        norm="none",
        stem_stride=stem_stride,
    )
    area = stem_stride**2
    unet = net.net if stem_stride > 1 else net
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        # Each convolution hands its channels on; the merge hears the skip alone.
        for block in (unet.down[0], unet.merge[0]):
            for layer in block.layers:
                if isinstance(layer, nn.Conv2d):
                    for channel in range(3 * area):
                        layer.weight[channel, channel, 1, 1] = 1
        unet.head.weight[:, :, 0, 0] = torch.eye(3 * area)
    images = _noise(2, 3, 21, 34).abs()  # positive values pass the activations unchanged
    torch.testing.assert_close(net(images), images, rtol=0, atol=0)


@pytest.mark.parametrize("prior", [0.12, 0.9])
def test_the_prior_is_what_outputs_begin_with(prior: float):
    net = build_net("unet", in_channels=4, out_channels=3, width=4, depth=1, prior=prior)
    with torch.no_grad():
        net.head.weight.zero_()
    probs = net(_noise(1, 4, 16, 16)).sigmoid()
    torch.testing.assert_close(probs, torch.full_like(probs, prior))
