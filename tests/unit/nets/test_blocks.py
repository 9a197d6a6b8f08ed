"""Blocks compared with torch's own layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from glioray.nets.blocks import NORMS, ConvBlock, GlobalBatchNorm2d, PointwiseConv2d, build_norm


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_on_one_rank_equals_torchs(training: bool):
    ours, theirs = GlobalBatchNorm2d(5), nn.BatchNorm2d(5)
    for number in range(3):
        images = 3 * _noise(4, 5, 6, 7, seed=number) + 2
        outputs, gradients = [], []
        for norm in (ours, theirs):
            given = images.clone().requires_grad_()
            output = norm.train(training)(given)
            (output * _noise(*output.shape, seed=9)).sum().backward()
            outputs.append(output)
            gradients.append(given.grad)
        assert torch.equal(*outputs)
        assert torch.equal(*gradients)
    for (name, mine), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("channels", [1, 3, 6, 8, 20])
def test_norms_accept_any_number_of_channels(name: str, channels: int):
    images = 5 * _noise(3, channels, 8, 9) + 7
    output = build_norm(name, channels)(images)
    assert output.shape == images.shape
    if name == "none":
        assert torch.equal(output, images)
    else:
        assert abs(float(output.detach().mean())) < 1e-4
        assert float(output.detach().std()) == pytest.approx(1, abs=0.02)


def test_a_residual_block_without_weights_returns_its_input():
    block = ConvBlock(4, 4, residual=True)
    plain = ConvBlock(4, 4)
    for module in (block, plain):
        nn.init.zeros_(module.layers[-1].weight)  # the last norm's scale
    images = _noise(2, 4, 9, 9).abs()
    assert torch.equal(block(images), images)
    assert not plain(images).any()


def test_dropout_drops_whole_channels_in_training_only():
    torch.manual_seed(0)
    block = ConvBlock(2, 64, dropout=0.5)
    images = _noise(1, 2, 8, 8)
    dropped = (block(images) == 0).all(dim=(2, 3)).float().mean()
    assert 0.3 < float(dropped) < 0.7
    assert not (block.eval()(images) == 0).all(dim=(2, 3)).any()


@pytest.mark.parametrize(("in_channels", "out_channels"), [(24, 8), (40, 16), (32, 16), (16, 8)])
def test_gradients_of_dilated_convolutions_in_bf16_are_close_to_float32(in_channels: int, out_channels: int):
    torch.manual_seed(0)
    block = ConvBlock(in_channels, out_channels, norm="none", num_convs=1, dilation=2)
    block = block.to(memory_format=torch.channels_last)
    images = torch.randn(2, in_channels, 40, 32).contiguous(memory_format=torch.channels_last)
    found = []
    for enabled in (False, True):
        block.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs = block(images)
        outputs.float().square().mean().backward()
        found.append(block.layers[0].weight.grad.clone())
    exact, rounded = found
    assert torch.isfinite(rounded).all()
    assert (rounded - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("size", [(12, 10), (13, 9), (1, 1)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_pointwise_convolution_equals_a_strided_convolution(stride: int, size: tuple[int, int]):
    ours = PointwiseConv2d(8, 16, stride).double()
    theirs = nn.Conv2d(8, 16, 1, stride).double()
    theirs.load_state_dict(ours.state_dict())
    images = _noise(2, 8, *size).double()
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-12, atol=1e-12)


def test_the_backward_pass_of_a_pointwise_convolution_stays_within_bounds():
    # torch's strided convolution crashes here.
    conv = PointwiseConv2d(8, 16, 2, bias=False).to(memory_format=torch.channels_last)
    images = _noise(16, 8, 192, 160).contiguous(memory_format=torch.channels_last).requires_grad_()
    for _ in range(3):
        conv(images).square().mean().backward()
    assert torch.isfinite(conv.weight.grad).all()
