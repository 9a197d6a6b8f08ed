"""What is special to the U-Nets, to FCN, and to their pyramids."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from glioray.nets import build_net
from glioray.nets.blocks import ConvBlock
from glioray.nets.pyramid import ASPP, SpatialPyramid


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kernel_size", "dilation", "reach"), [(3, 1, 2), (3, 2, 4), (3, 5, 10), (1, 3, 0)])
def test_dilation_widens_what_a_block_sees(kernel_size: int, dilation: int, reach: int):
    block = ConvBlock(1, 4, norm="none", kernel_size=kernel_size, dilation=dilation)
    images = _noise(1, 1, 31, 31).requires_grad_()
    output = block(images)
    assert output.shape == (1, 4, 31, 31)
    output[0, :, 15, 15].sum().backward()
    rows = images.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert (int(rows.min()), int(rows.max())) == (15 - reach, 15 + reach)


@pytest.mark.parametrize("build", [ASPP, SpatialPyramid])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_pyramids_take_any_size_and_see_the_whole_image(build: type[ASPP | SpatialPyramid], norm: str):
    pyramid = build(6, 8, norm=norm)
    for size in ((2, 2), (5, 7), (33, 20)):
        assert pyramid(_noise(2, 6, *size)).shape == (2, 8, *size)
    images = _noise(1, 6, 64, 64).requires_grad_()
    pyramid.eval()(images)[0, :, 0, 0].sum().backward()
    assert (images.grad[0].abs().amax(0) > 0).all()


def test_aspp_at_rates_has_a_branch_for_each():
    pyramid = ASPP(6, 8, rates=(1, 2), branch_channels=5, norm="none")
    rates = [
        block.layers[0].dilation[0] for block in pyramid.branches if block.layers[0].kernel_size == (3, 3)
    ]
    assert rates == [1, 2]
    assert sum(p.numel() for p in pyramid.parameters()) == (
        2 * (6 * 5 + 5) + 2 * (9 * 6 * 5 + 5) + (4 * 5 * 8 + 8)
    )


def _keras_count(net: nn.Module) -> int:
    """What Keras would count: a bias in every convolution, and running statistics among the parameters."""
    biases = sum(m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d) and m.bias is None)
    statistics = sum(buffer.numel() for buffer in net.buffers() if buffer.ndim)
    return sum(parameter.numel() for parameter in net.parameters()) + biases + statistics


@pytest.mark.parametrize(("bridge", "expected"), [(True, 46_774_852), (False, 22_117_956)])
def test_three_convolutions_as_keras_counts_them(bridge: bool, expected: int):
    with torch.device("meta"):
        net = build_net("unet", in_channels=4, out_channels=4, norm="batch", num_convs=3, bridge=bridge)
    assert _keras_count(net) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dilation": 0}, "dilation 0"),
        ({"bottleneck": "fpn"}, "'fpn' is not a bottleneck; they are plain, aspp, spp"),
        ({"bottleneck": "aspp", "bridge": False}, "'aspp' without bridge"),
        ({"upsample": "cubic"}, "'cubic' is not a way up; they are nearest, transposed"),
        ({"lean": True, "bridge": False}, "lean has ways of its own"),
    ],
    ids=str,
)
def test_unet_options_out_of_range(options: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        build_net("unet", in_channels=4, out_channels=3, **options)
