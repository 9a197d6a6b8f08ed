"""An ensemble averages the probabilities of its members."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from glioray.nets import build_net
from glioray.nets.ensemble import Ensemble


def _net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = build_net("unet", in_channels=4, out_channels=3, width=4, depth=2)
    with torch.no_grad():
        net.head.weight *= 6  # type: ignore[operator, union-attr]
    return net.eval()


def _probs(logits: Tensor, target: str) -> Tensor:
    return logits.softmax(1) if target == "classes" else logits.sigmoid()


TARGETS = pytest.mark.parametrize("target", ["classes", "regions"])


@TARGETS
@torch.no_grad()
def test_an_ensemble_gives_the_mean_of_the_probabilities(target: str):
    nets = [_net(seed) for seed in range(3)]
    images = torch.randn(2, 4, 32, 48)
    expected = torch.stack([_probs(net(images), target) for net in nets]).mean(0)
    assert expected.std() > 0.1
    found = _probs(Ensemble(nets, target).eval()(images), target)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@TARGETS
@torch.no_grad()
def test_an_ensemble_of_one_equals_its_member(target: str):
    net, images = _net(0), torch.randn(2, 4, 32, 32)
    found = Ensemble([net], target).eval()(images)
    expected = net(images).log_softmax(1) if target == "classes" else net(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class _Constant(nn.Module):
    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0] * 0 + self.logit, x[:, 0] * 0 - self.logit], 1)


@TARGETS
def test_extreme_logits_stay_finite(target: str):
    x = torch.zeros(1, 1, 2, 2)
    logits = Ensemble([_Constant(1e4), _Constant(-1e4)], target).eval()(x)
    torch.testing.assert_close(_probs(logits, target), torch.full((1, 2, 2, 2), 0.5))
    combined = Ensemble([_Constant(300.0), _Constant(200.0)], target).eval()(x)
    assert torch.isfinite(combined).all()
    # The probabilities differ from 1 by e^-200 and e^-300, which a sigmoid in float32 cannot represent.
    assert float((combined[0, 0] - combined[0, 1]).mean()) == pytest.approx(
        400 if target == "classes" else 401, rel=0.01
    )


@TARGETS
@torch.no_grad()
def test_half_precision_members_are_averaged_in_float32(target: str):
    nets, images = [_net(0), _net(1)], torch.randn(1, 4, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = Ensemble(nets, target).eval()(images)
        expected = torch.stack([_probs(net(images).float(), target) for net in nets]).mean(0)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(_probs(logits, target), expected, rtol=0, atol=1e-6)


def test_invalid_ensembles_are_rejected():
    with pytest.raises(ValueError, match="the ensemble has no members; expected at least one network"):
        Ensemble([], "classes")
    with pytest.raises(ValueError, match="target is 'voxels'; expected classes or regions"):
        Ensemble([_net(0)], "voxels")
    with pytest.raises(AssertionError, match="only predicts"):
        Ensemble([_net(0)], "classes").train()(torch.zeros(1, 4, 32, 32))
