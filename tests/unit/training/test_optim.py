"""The learning rate's course, what is decayed, and the weights' moving average."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from glioray.config import OptimConfig
from glioray.nets import build_net
from glioray.training.optim import MovingAverage, build_optimizer, learning_rate


def test_learning_rate_rises_then_falls_to_the_floor():
    config = OptimConfig(lr=2.0, warmup=0.1, floor=0.05)
    rates = [learning_rate(config, step / 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(0.02)  # never nothing at all
    assert rates[50] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(2.0)
    assert rates[550] == pytest.approx(2 * (0.05 + 0.95 / 2))
    assert rates[1000] == pytest.approx(0.1)
    assert all(a <= b for a, b in pairwise(rates[:101]))
    assert all(a > b for a, b in pairwise(rates[100:]))
    assert max(abs(a - b) for a, b in pairwise(rates)) < 0.021  # no jump
    quarter = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi / 4))
    assert learning_rate(config, 0.1 + 0.9 / 4) == pytest.approx(2 * quarter)
    assert learning_rate(config, 1.2) == pytest.approx(0.1)  # a clock may be a little past the end


def test_learning_rate_without_warmup_and_without_decay():
    assert learning_rate(OptimConfig(lr=2.0, warmup=0.0), 0.0) == 2.0
    constant = OptimConfig(lr=2.0, schedule="constant", warmup=0.1)
    assert [learning_rate(constant, p) for p in (0.05, 0.1, 0.5, 1.0)] == [1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(("name", "cls"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
@pytest.mark.parametrize("norm", ["instance", "batch", "group", "none"])
def test_norms_and_biases_are_not_decayed(name: str, cls: type, norm: str):
    net = build_net("unet", in_channels=4, out_channels=3, width=4, depth=1, norm=norm)
    optimizer = build_optimizer(net, OptimConfig(name=name, lr=0.1, weight_decay=0.3))
    assert type(optimizer) is cls
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    convolutions = (nn.Conv2d, nn.ConvTranspose2d)
    kernels = {id(module.weight) for module in net.modules() if isinstance(module, convolutions)}
    for key, parameter in net.named_parameters():
        assert decays[id(parameter)] == (0.3 if id(parameter) in kernels else 0.0), key
    assert len(decays) == len(list(net.parameters()))


def test_moving_average_by_hand():
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
    average = MovingAverage(net, 0.25)
    expected = 1.0
    # The decay is 2 / 11 and 3 / 12 in the first two steps, then as configured.
    for weight, decay in ((5.0, 2 / 11), (-3.0, 0.25), (2.0, 0.25)):
        with torch.no_grad():
            net.weight.fill_(weight)
        average.update(net)
        expected = decay * expected + (1 - decay) * weight
        assert float(average.weights["weight"]) == pytest.approx(expected)
    assert float(net.weight.detach()) == 2.0


def test_moving_average_takes_buffers_and_copies_integers():
    net = nn.BatchNorm2d(2)
    average = MovingAverage(net, 0.5)
    for number in range(30):
        net(torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(number)) + 3)
        average.update(net)
    weights = average.weights
    assert weights["num_batches_tracked"] == 30
    assert weights["num_batches_tracked"].dtype == torch.int64
    torch.testing.assert_close(weights["running_mean"], net.running_mean, rtol=0.1, atol=0)
    assert not torch.equal(weights["running_mean"], net.running_mean)
    assert all(not tensor.requires_grad for tensor in weights.values())
