"""The learning rate's course, what is decayed, and the weights' moving average."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from schedulefree import AdamWScheduleFree
from torch import nn

from glioray.config import OPTIMIZERS, SCHEDULES, OptimConfig
from glioray.engine.optim import MovingAverage, build_optimizer, learning_rate, to_evaluation, to_training
from glioray.errors import UsageError
from glioray.nets import build_net


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


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_rises_to_the_rate_and_ends_at_the_floor(schedule: str):
    config = OptimConfig(lr=2.0, schedule=schedule, warmup=0.25, floor=0.05)
    rates = [learning_rate(config, step / 1000) for step in range(1001)]
    assert rates[250] == max(rates) == 2.0
    assert all(a <= b for a, b in pairwise(rates[:251]))
    assert rates[0] == pytest.approx(0.08 if schedule == "onecycle" else 0.02)
    assert rates[1000] == pytest.approx({"constant": 2.0, "step": 0.125}.get(schedule, 0.1))
    assert learning_rate(config, 1.2) == rates[1000]
    assert min(rates) > 0


def test_step_halves_at_each_milestone():
    config = OptimConfig(lr=2.0, schedule="step", warmup=0.0, milestones=(0.5, 0.75))
    assert [learning_rate(config, p) for p in (0, 0.49, 0.5, 0.74, 0.75, 1.0)] == [2, 2, 1, 1, 0.5, 0.5]


def test_poly_by_hand():
    config = OptimConfig(lr=2.0, schedule="poly", warmup=0.0, floor=0.0, power=0.9)
    assert learning_rate(config, 0.0) == 2.0
    assert learning_rate(config, 0.75) == pytest.approx(2 * 0.25**0.9)
    linear = OptimConfig(lr=2.0, schedule="poly", warmup=0.2, floor=0.1, power=1.0)
    assert learning_rate(linear, 0.6) == pytest.approx(2 * 0.55)


def test_cyclic_restarts_at_equal_parts():
    config = OptimConfig(lr=2.0, schedule="cyclic", warmup=0.2, floor=0.1, cycles=4)
    for cycle in range(4):
        began = 0.2 + 0.2 * cycle
        assert learning_rate(config, began + 1e-9) == pytest.approx(2.0)
        assert learning_rate(config, began + 0.1) == pytest.approx(1.1)
        assert learning_rate(config, began + 0.2 - 1e-6) == pytest.approx(0.2, rel=1e-3)
    one = OptimConfig(lr=2.0, schedule="cyclic", warmup=0.2, floor=0.1, cycles=1)
    cosine = OptimConfig(lr=2.0, schedule="cosine", warmup=0.2, floor=0.1)
    for step in range(101):
        assert learning_rate(one, step / 100) == learning_rate(cosine, step / 100)


def test_onecycle_equals_torchs():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    # Its rates are of the steps 0 to 100, and its last one is in shares of the first.
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2.0, total_steps=101, pct_start=31 / 101, div_factor=25, final_div_factor=4,
        cycle_momentum=False,
    )  # fmt: skip
    config = OptimConfig(lr=2.0, schedule="onecycle", warmup=0.3, floor=0.01)
    for step in range(101):
        assert learning_rate(config, step / 100) == pytest.approx(theirs.get_last_lr()[0], rel=1e-5), step
        optimizer.step()
        if step < 100:
            theirs.step()


CLASSES = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "schedulefree": AdamWScheduleFree,
}


def _config(name: str, **settings: Any) -> OptimConfig:
    free = {"schedule": "constant", "ema": 0.0} if name == "schedulefree" else {}
    return OptimConfig(name=name, **free, **settings)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("norm", ["instance", "batch", "group", "none"])
def test_norms_and_biases_are_not_decayed(name: str, norm: str):
    net = build_net("unet", in_channels=4, out_channels=3, width=4, depth=1, norm=norm)
    optimizer = build_optimizer(net, _config(name, lr=0.1, weight_decay=0.3))
    assert type(optimizer) is CLASSES[name]
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    convolutions = (nn.Conv2d, nn.ConvTranspose2d)
    kernels = {id(module.weight) for module in net.modules() if isinstance(module, convolutions)}
    for key, parameter in net.named_parameters():
        assert decays[id(parameter)] == (0.3 if id(parameter) in kernels else 0.0), key
    assert len(decays) == len(list(net.parameters()))


def test_momentum_is_of_sgd_and_rmsprop():
    net = nn.Conv2d(1, 1, 1)
    for momentum in (0.0, 0.8):
        sgd = build_optimizer(net, OptimConfig(name="sgd", momentum=momentum)).defaults
        assert (sgd["momentum"], sgd["nesterov"]) == (momentum, momentum > 0)
        assert (
            build_optimizer(net, OptimConfig(name="rmsprop", momentum=momentum)).defaults["momentum"]
            == momentum
        )


def _descend(
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer], num_steps: int, rate: Callable[[float], float]
) -> tuple[nn.Module, torch.optim.Optimizer, list[float]]:
    """A small network after some steps on one batch, and its losses before and after."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1))
    images = torch.randn(4, 2, 8, 8)
    wanted = (images[:, :1, 1:-1, 1:-1] > 0).float()

    def loss() -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(net(images), wanted)

    optimizer, first = optimizer_of(net), float(loss().detach())
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = rate((step + 1) / num_steps)
        to_training(optimizer)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    to_evaluation(optimizer)
    return net, optimizer, [first, float(loss().detach())]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_lowers_the_loss_on_a_batch(name: str):
    config = _config(name, lr={"sgd": 0.1, "adagrad": 0.05}.get(name, 0.02))
    _, _, (before, after) = _descend(
        lambda net: build_optimizer(net, config), 80, lambda progress: learning_rate(config, progress)
    )
    assert after < 0.5 * before


def test_schedulefree_holds_other_weights_in_training_than_in_evaluation():
    config = _config("schedulefree", lr=0.02)
    net, optimizer, _ = _descend(lambda net: build_optimizer(net, config), 10, lambda _: 0.02)
    judged = [p.detach().clone() for p in net.parameters()]
    to_evaluation(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(judged, net.parameters(), strict=True))
    to_training(optimizer)
    assert not any(torch.equal(a, b) for a, b in zip(judged, net.parameters(), strict=True))
    to_evaluation(optimizer)
    torch.testing.assert_close([p.detach() for p in net.parameters()], judged)


def test_schedulefrees_warmup_may_be_driven_by_progress():
    """The library's own warm-up is in steps; the rate that we set at each gives the same weights."""
    config = _config("schedulefree", lr=0.02, warmup=0.25, weight_decay=0.01)

    def warmed(net: nn.Module) -> torch.optim.Optimizer:
        optimizer = build_optimizer(net, config)
        for group in optimizer.param_groups:
            group["warmup_steps"] = 10
        return optimizer

    ours, *_ = _descend(
        lambda net: build_optimizer(net, config), 40, lambda progress: learning_rate(config, progress)
    )
    theirs, *_ = _descend(warmed, 40, lambda _: config.lr)
    unwarmed, *_ = _descend(lambda net: build_optimizer(net, config), 40, lambda _: config.lr)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours[0].weight, unwarmed[0].weight, atol=1e-3)


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


def test_moving_average_equals_a_lerp_of_each_tensor_bitwise():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1).double())
    average = MovingAverage(net, 0.9)
    expected = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 100):
        with torch.no_grad():
            for tensor in net.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
        average.update(net)
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                expected[name].lerp_(tensor, 1 - min(0.9, (1 + step) / (10 + step)))
    assert all(torch.equal(average.weights[name], tensor) for name, tensor in expected.items())


def test_moving_average_averages_buffers_and_copies_integers():
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


def test_schedulefree_takes_no_second_average_and_no_schedule():
    with pytest.raises(
        UsageError, match=r"OptimConfig\.ema is 0.9; expected 0 with schedulefree, which averages"
    ):
        OptimConfig(name="schedulefree", schedule="constant", ema=0.9)
    with pytest.raises(
        UsageError, match=r"OptimConfig\.schedule is 'cosine'; expected constant with schedulefree"
    ):
        OptimConfig(name="schedulefree", ema=0.0)
