"""Adversarial losses: values by hand, several ranks compared with one, and the R1 penalty."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import glioray
from glioray.losses.adversarial import GAN_LOSSES, build_gan_loss, r1_penalty

NAMES = sorted(GAN_LOSSES)


def _softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def _logits(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_values_by_hand():
    real, fake = _logits(2.0, -1.0), _logits(0.5, -0.5)
    expected = {
        "vanilla": (
            (_softplus(-2) + _softplus(1)) / 2 + (_softplus(0.5) + _softplus(-0.5)) / 2,
            (_softplus(-0.5) + _softplus(0.5)) / 2,
        ),
        # The means are 0.5 and 0.
        "ragan": (
            ((_softplus(-2) + _softplus(1)) / 2 + (_softplus(0.0) + _softplus(-1.0)) / 2) / 2,
            ((_softplus(2) + _softplus(-1)) / 2 + (_softplus(-0.0) + _softplus(1.0)) / 2) / 2,
        ),
        "lsgan": ((1 + 4) / 4 + (0.25 + 0.25) / 4, (0.25 + 2.25) / 4),
        "hinge": ((0 + 2) / 2 + (1.5 + 0.5) / 2, 0.0),
    }
    assert set(expected) == set(GAN_LOSSES)
    for name, (discriminator, generator) in expected.items():
        loss = build_gan_loss(name)
        assert float(loss.discriminator(real, fake)) == pytest.approx(discriminator, abs=1e-6), name
        assert float(loss.generator(real, fake)) == pytest.approx(generator, abs=1e-6), name


def test_smoothing_changes_only_the_discriminators_target_for_real_images():
    """Its loss is smallest at the smoothed target; the terms for fakes and the generator are unchanged."""
    real, fake = _logits(2.0, -1.0), _logits(0.5, -0.5)
    for name in ("vanilla", "ragan", "lsgan"):
        plain, smooth = build_gan_loss(name), build_gan_loss(name, label_smoothing=0.1)
        assert torch.equal(plain.generator(real, fake), smooth.generator(real, fake))
        # d/dx of t * softplus(-x) + (1 - t) * softplus(x) is sigmoid(x) - t.
        gradients = []
        for loss in (plain, smooth):
            given = [real.clone().requires_grad_(), fake.clone().requires_grad_()]
            loss.discriminator(*given).backward()
            gradients.append([logits.grad for logits in given])
        half = {"vanilla": 0.05, "ragan": 0.025, "lsgan": 0.05}[name]
        torch.testing.assert_close(gradients[1][0] - gradients[0][0], torch.full_like(real, half))
        if name == "ragan":  # whose fake logits are in the real half's mean
            torch.testing.assert_close(gradients[1][1] - gradients[0][1], torch.full_like(fake, -half))
        else:
            assert torch.equal(gradients[1][1], gradients[0][1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_finite_and_in_float32_for_any_input(name: str, scale: float, dtype: torch.dtype):
    loss = build_gan_loss(name)
    for player in (loss.discriminator, loss.generator):
        real, fake = ((scale * _noise(3, 1, 4, 4, seed=seed)).to(dtype).requires_grad_() for seed in (0, 1))
        with torch.autocast("cpu", torch.bfloat16):
            found = player(real, fake)
        assert found.dtype == torch.float32
        assert found.shape == ()
        assert torch.isfinite(found)
        assert float(found.detach()) == float(player(real.detach().float(), fake.detach().float()))
        found.backward()
        assert fake.grad.dtype == dtype
        assert all(torch.isfinite(x.grad).all() for x in (real, fake) if x.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_the_discriminator_separates_logits_and_the_generator_joins_them(name: str):
    loss = build_gan_loss(name)
    real, fake = (0.5 + 0.1 * _noise(3, 1, 4, 4, seed=seed) for seed in (0, 1))
    real.requires_grad_()
    fake.requires_grad_()
    loss.discriminator(real, fake).backward()
    assert (real.grad < 0).all(), "descent raises real logits"
    assert (fake.grad > 0).all()
    real.grad = fake.grad = None
    loss.generator(real, fake).backward()
    assert real.grad is None, "the generator learns through its own images alone"
    assert (fake.grad < 0).all()


@pytest.mark.parametrize("shares", [(4, 4), (3, 5), (1, 7)], ids=str)
def test_the_relativistic_mean_is_over_all_ranks(shares: tuple[int, int]):
    """Simulated ranks: `reduce` adds the sums of the other one. The next test has real ranks."""
    real, fake = _noise(8, 1, 3, 3), 2 * _noise(8, 1, 3, 3, seed=1) + 1
    halves = [slice(0, shares[0]), slice(shares[0], 8)]
    for player in ("discriminator", "generator"):
        sums: list[Tensor] = []

        def keep(tensor: Tensor, sums: list[Tensor] = sums) -> Tensor:
            sums.append(tensor.detach())
            return tensor

        for half in halves:
            getattr(build_gan_loss("ragan", reduce=keep), player)(real[half], fake[half])
        values = [
            getattr(build_gan_loss("ragan", reduce=lambda t, other=other: t + other), player)(
                real[half], fake[half]
            )
            for half, other in zip(halves, reversed(sums), strict=True)
        ]
        whole = getattr(build_gan_loss("ragan"), player)(real, fake)
        weighted = sum(value * share / 8 for value, share in zip(values, shares, strict=True))
        torch.testing.assert_close(weighted, whole)


@pytest.mark.contracts
def test_two_ranks_have_the_gradients_of_one(tmp_path: Path):
    """Real processes over gloo: every loss, R1, spectral and batch norm, averaged as by DDP."""
    script = Path(__file__).with_name("gan_ranks.py")
    spec = importlib.util.spec_from_file_location("gan_ranks", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    env = {**os.environ, "PYTHONPATH": str(Path(glioray.__file__).parents[1])}
    processes = [
        subprocess.Popen([sys.executable, str(script), str(tmp_path), str(rank), "2"], env=env)
        for rank in (0, 1)
    ]
    try:
        one = module.gradients()
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    two = torch.load(tmp_path / "rank-0.pt")
    assert one.keys() == two.keys()
    for title, expected in one.items():
        # A single gradient may be nothing but rounding: RaGAN does not feel the last bias.
        largest = max(float(gradient.abs().max()) for gradient in expected)
        assert largest > 1e-6, title
        for found, wanted in zip(two[title], expected, strict=True):
            assert float((found - wanted).abs().max()) < 1e-4 * largest, title


def test_r1_of_a_linear_discriminator_is_the_squared_norm_of_its_weights():
    weight = _noise(2, 5, 5).requires_grad_()
    for dtype in (torch.float32, torch.bfloat16):
        real = _noise(3, 2, 5, 5, seed=1).requires_grad_()
        logits = (real * weight).sum((1, 2, 3)).view(-1, 1, 1, 1).to(dtype)
        penalty = r1_penalty(real, logits)
        assert penalty.dtype == torch.float32
        torch.testing.assert_close(penalty, weight.square().sum())
        (gradient,) = torch.autograd.grad(penalty, weight)
        torch.testing.assert_close(gradient, 2 * weight.detach())


def test_r1_sums_patches_and_averages_samples():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Softplus(), nn.Conv2d(3, 1, 3)).double()
    images = _noise(4, 1, 9, 9).double().requires_grad_()
    found = r1_penalty(images, net(images))
    single = [r1_penalty(image, net(image)) for image in images.detach()[:, None].requires_grad_()]
    torch.testing.assert_close(found, torch.stack(single).mean())
    found.backward()
    before = net[0].weight.grad[0, 0, 0, 0].clone()
    step = 1e-3
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            net[0].weight[0, 0, 0, 0] += sign * step
        values.append(float(r1_penalty(images, net(images)).detach()))
        with torch.no_grad():
            net[0].weight[0, 0, 0, 0] -= sign * step
    assert float(before) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-2)


@pytest.mark.parametrize(
    ("name", "smoothing", "message"),
    [
        ("wgan", 0.0, "No adversarial loss 'wgan'; available: hinge, lsgan, ragan, vanilla"),
        ("hinge", 0.1, "label_smoothing is 0.1; expected 0, since the hinge loss has no target to smooth"),
        ("vanilla", 1.0, "label_smoothing is 1.0; expected at least 0 and below 1"),
        ("lsgan", -0.1, "label_smoothing is -0.1; expected"),
    ],
)
def test_invalid_names_and_smoothing(name: str, smoothing: float, message: str):
    with pytest.raises(ValueError, match=message):
        build_gan_loss(name, label_smoothing=smoothing)


def test_r1_needs_images_that_require_gradients():
    images = _noise(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"call real\.requires_grad_"):
        r1_penalty(images, F.avg_pool2d(images, 4))
