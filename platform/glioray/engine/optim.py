"""Optimisers, learning-rate schedules and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from schedulefree import AdamWScheduleFree
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from glioray.config import OptimConfig

_ONECYCLE_START = 1 / 25


def build_optimizer(net: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build one of `config.OPTIMIZERS`; biases and normalisation parameters are not decayed.

    sgd (with Nesterov) and rmsprop read `momentum`; adam and adamw read `betas`. Everything else is torch's
    default. schedulefree needs `to_training` and `to_evaluation`, and a norm other than batch norm: running
    statistics belong to the training weights, not to their average.

    Reference: Adam (Kingma, Ba 2014, arXiv 1412.6980), AdamW (Loshchilov, Hutter 2017, arXiv 1711.05101), SGD with
    Nesterov's momentum (Sutskever et al. 2013), RMSprop (Tieleman, Hinton 2012), Adagrad (Duchi et al. 2011),
    schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682; its authors' library).
    """
    decayed = [p for p in net.parameters() if p.ndim > 1]
    undecayed = [p for p in net.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    builders: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": partial(torch.optim.Adam, betas=config.betas),
        "adamw": partial(torch.optim.AdamW, betas=config.betas),
        "sgd": partial(torch.optim.SGD, momentum=config.momentum, nesterov=config.momentum > 0),
        "rmsprop": partial(torch.optim.RMSprop, momentum=config.momentum),
        "adagrad": torch.optim.Adagrad,
        "schedulefree": AdamWScheduleFree,
    }
    return builders[config.name](groups, lr=config.lr)


def to_training(optimizer: torch.optim.Optimizer) -> None:
    """Load the weights at which gradients are taken; call it before each step."""
    if isinstance(optimizer, AdamWScheduleFree):
        optimizer.train()


def to_evaluation(optimizer: torch.optim.Optimizer) -> None:
    """Load the weights to evaluate and to save into the network: schedulefree's average."""
    if isinstance(optimizer, AdamWScheduleFree):
        optimizer.eval()


def learning_rate(config: OptimConfig, progress: float) -> float:
    """The learning rate at `progress` in [0, 1] of the run: warm-up first, then the schedule.

    Not a torch scheduler, since those count steps: here a run may be bounded by the clock, and resuming
    needs no state. The warm-up takes the first `warmup` of the run and rises linearly from 0.01 `lr`, except
    with onecycle. The schedules then end at `floor` times `lr`:

    - constant: stays at `lr`.
    - cosine: half a cosine (Loshchilov, Hutter 2016, arXiv 1608.03983).
    - step: multiplied by `drop` at each of `milestones`; ignores `floor` (BasicSR's ESRGAN halves four times).
    - poly: (1 - t) ^ `power` (DeepLab, Chen et al. 2016, arXiv 1606.00915; nnU-Net with 0.9).
    - cyclic: `cycles` equal parts, each half a cosine down from `lr`. The checkpoints at their ends make a
        snapshot ensemble (Huang et al. 2017, arXiv 1704.00109). They fall there if `warmup` is 0,
        `train.num_validations` is a multiple of `cycles` and `train.max_epochs` is a multiple of both.
    - onecycle: half a cosine up from `lr` / 25 during `warmup` (usually 0.3), then half a cosine down
        (Smith 2018, arXiv 1803.09820, as in torch and fastai; the momentum stays constant).
    """
    if progress < config.warmup:
        warmed_up = progress / config.warmup
        if config.schedule == "onecycle":
            return config.lr * (_ONECYCLE_START + (1 - _ONECYCLE_START) * (1 - _half_cosine(warmed_up)))
        return config.lr * max(warmed_up, 1e-2)
    position = min((progress - config.warmup) / (1 - config.warmup), 1.0)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return config.lr * config.drop ** sum(position >= milestone for milestone in config.milestones)
    if config.schedule == "poly":
        factor = (1 - position) ** config.power
    elif config.schedule == "cyclic":
        factor = _half_cosine(position * config.cycles % 1 if position < 1 else 1.0)
    else:
        factor = _half_cosine(position)
    return config.lr * (config.floor + (1 - config.floor) * factor)


def _half_cosine(position: float) -> float:
    """1 at position 0, falling to 0 at position 1."""
    return 0.5 * (1 + math.cos(math.pi * position))


class MovingAverage:
    """An exponential moving average of weights and buffers; integer buffers are copied.

    The decay is (1 + t) / (10 + t) at step t until it reaches `decay`, so that the random initial weights
    are forgotten. torch's AveragedModel copies the weights at the first update instead, and has one decay
    for all steps; its averaging function, one kernel for all tensors, is used here.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        self.weights = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Average in the network's weights; call it after each optimiser step."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averaged, current = [], []
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                averaged.append(self.weights[name])
                current.append(tensor)
            else:
                self.weights[name].copy_(tensor)
        get_ema_multi_avg_fn(decay)(averaged, current, self.num_updates)
