"""The perceptual loss with the encoder of a small U-Net, and the default layers of published networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from glioray.losses.perceptual import PRESETS, PerceptualLoss, default_layers
from glioray.nets.features import AlexNetFeatures, EncoderFeatures, VggFeatures
from glioray.nets.unet import UNet


@pytest.fixture(scope="module")
def features() -> nn.Module:
    torch.manual_seed(0)
    return EncoderFeatures(UNet(in_channels=1, out_channels=1, width=4, depth=2, norm="none"))


LAYERS = {"level1": 0.1, "level2": 2.0}


@pytest.mark.parametrize("criterion", ["l1", "mse"])
def test_the_loss_is_the_weighted_sum_over_layers(features, criterion):
    sr, hr = torch.rand(2, 3, 1, 24, 20)
    loss = PerceptualLoss(features, LAYERS, criterion=criterion)
    made, real = features(sr, tuple(LAYERS)), features(hr, tuple(LAYERS))
    differences = {name: made[name] - real[name] for name in LAYERS}
    wanted = sum(
        weight * (differences[name].abs() if criterion == "l1" else differences[name].square()).mean()
        for name, weight in LAYERS.items()
    )
    found = loss(sr, hr)
    assert found.shape == ()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)
    assert loss(hr, hr) == 0


def test_gradients_flow_to_sr_only(features):
    sr, hr = torch.rand(2, 3, 1, 24, 20).requires_grad_()
    sr, hr = sr.detach().requires_grad_(), hr.detach().requires_grad_()
    PerceptualLoss(features, LAYERS)(sr, hr).backward()
    assert sr.grad is not None
    assert sr.grad.abs().sum() > 0
    assert hr.grad is None
    assert all(parameter.grad is None for parameter in features.parameters())


def test_minimising_the_loss_recovers_an_image(features):
    hr = torch.rand(1, 1, 16, 16)
    sr = (hr + 0.2 * torch.randn(1, 1, 16, 16)).requires_grad_()
    loss = PerceptualLoss(features, LAYERS)
    optimizer = torch.optim.Adam([sr], 1e-2)
    before = float(loss(sr, hr).detach())
    for _ in range(60):
        optimizer.zero_grad()
        loss(sr, hr).backward()
        optimizer.step()
    assert float(loss(sr, hr).detach()) < before / 2


def _rngs(seed: int) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, row]) for row in range(4)]


def test_crops_are_the_same_square_of_both_images_and_depend_on_the_generator(features):
    seen: list[torch.Tensor] = []

    class Watched(nn.Module):
        layers = features.layers

        def forward(self, x, layers):
            seen.append(x.detach())
            return features(x, layers)

    hr = torch.arange(4 * 24 * 20, dtype=torch.float32).reshape(4, 1, 24, 20)
    loss = PerceptualLoss(Watched(), LAYERS, crop=8)
    loss(hr.clone(), hr, _rngs(1))
    loss(hr.clone(), hr, _rngs(1))
    loss(hr.clone(), hr, _rngs(2))
    assert all(crops.shape == (4, 1, 8, 8) for crops in seen)
    first, second, third, _, fifth, _ = seen
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert not torch.equal(first, fifth)
    corners = first[:, 0, 0, 0].long()
    assert torch.equal(corners // 480, torch.arange(4))
    places = corners % 480
    assert len(set(places.tolist())) > 1
    assert (places // 20 <= 16).all()
    assert (places % 20 <= 12).all()


def test_a_large_crop_is_the_whole_image(features):
    sr, hr = torch.rand(2, 2, 1, 16, 16)
    whole = PerceptualLoss(features, LAYERS)(sr, hr)
    torch.testing.assert_close(PerceptualLoss(features, LAYERS, crop=64)(sr, hr), whole)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["vgg16", "vgg19", "alexnet", "unet"])
def test_default_layers_exist(name, preset):
    nets = {
        "alexnet": AlexNetFeatures,
        "vgg16": lambda: VggFeatures("vgg16"),
        "vgg19": lambda: VggFeatures("vgg19"),
        "unet": lambda: EncoderFeatures(UNet(in_channels=1, out_channels=1, width=1, depth=3)),
    }
    assert set(default_layers(name, preset)) <= set(nets[name]().layers)


def test_default_layers_equal_those_of_the_papers():
    assert default_layers("vgg19", "esrgan") == {"conv5_4": 1}
    assert default_layers("vgg19", "srgan") == {"relu5_4": 1}
    assert default_layers("vgg19") == {
        "conv1_2": 0.1,
        "conv2_2": 0.1,
        "conv3_4": 1,
        "conv4_4": 1,
        "conv5_4": 1,
    }
    with pytest.raises(
        ValueError, match="No default layers for the extractor 'resnet'; available: alexnet, unet"
    ):
        default_layers("resnet")
    with pytest.raises(ValueError, match="preset is 'paper'; expected one of esrgan, srgan"):
        default_layers("vgg19", "paper")


def test_invalid_arguments_are_rejected(features):
    with pytest.raises(ValueError, match=r"expected weights of at least 0, not all 0, of level1, level2"):
        PerceptualLoss(features, {"relu1_1": 1})
    for layers in ({}, {"level1": 0.0}, {"level1": 1.0, "level2": -1.0}):
        with pytest.raises(ValueError, match="expected weights of at least 0"):
            PerceptualLoss(features, layers)
    with pytest.raises(ValueError, match="criterion is 'l2'; expected one of l1, mse"):
        PerceptualLoss(features, LAYERS, criterion="l2")
    with pytest.raises(ValueError, match="crop is -1"):
        PerceptualLoss(features, LAYERS, crop=-1)
    with pytest.raises(
        ValueError, match=r"sr has the shape \(1, 1, 16, 16\); expected that of hr, \(1, 1, 16, 20\)"
    ):
        PerceptualLoss(features, LAYERS)(torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 20))
