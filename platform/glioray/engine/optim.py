"""Optimisers, the learning rate's course, and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from schedulefree import AdamWScheduleFree
from torch import nn

from glioray.config import OptimConfig

_ONECYCLE_START = 1 / 25


def build_optimizer(net: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """One of `config.OPTIMIZERS`; biases and norms are not decayed.

    `momentum` is of sgd, there Nesterov's, and of rmsprop, `betas` of adam and adamw; what else they have is torch's default.
    schedulefree needs `to_training` and `to_evaluation`. A batch norm's running statistics are of the weights in
    training, not of their average: with schedulefree, prefer another norm.

    Reference: Adam (Kingma, Ba 2014, arXiv 1412.6980), AdamW (Loshchilov, Hutter 2017, arXiv 1711.05101), SGD with
    Nesterov's momentum (Sutskever et al. 2013), RMSprop (Tieleman, Hinton 2012), Adagrad (Duchi et al. 2011),
    schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682; its authors' library).
    """
    decayed = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
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
    """Have the network hold the weights that gradients are taken at: before each step."""
    if isinstance(optimizer, AdamWScheduleFree):
        optimizer.train()


def to_evaluation(optimizer: torch.optim.Optimizer) -> None:
    """Have the network hold the weights that it is judged by and kept with: schedulefree's average."""
    if isinstance(optimizer, AdamWScheduleFree):
        optimizer.eval()


def learning_rate(config: OptimConfig, progress: float) -> float:
    """The rate at `progress` in [0, 1] of the run: it rises in the first `warmup`, then follows the schedule.

    The rise is linear from 0.01 `lr`, but onecycle's. What comes then, to `floor` `lr` at the end of the run:

    - constant: stays at `lr`.
    - cosine: half a cosine (Loshchilov, Hutter 2016, arXiv 1608.03983).
    - step: times `drop` at each of `milestones`, whatever `floor` is (halved four times: BasicSR's ESRGAN).
    - poly: (1 - t) ^ `power` (DeepLab, Chen et al. 2016, arXiv 1606.00915; nnU-Net with 0.9).
    - cyclic: `cycles` equal parts, each half a cosine down from `lr`, a restart between them; what is kept at
        their ends are the snapshots of an ensemble (Huang et al. 2017, arXiv 1704.00109). With `warmup` 0,
        `train.num_validations` a multiple of `cycles` and `train.max_epochs` one of both, checkpoints fall on those
        ends.
    - onecycle: up along half a cosine from `lr` / 25 in `warmup`, which is 0.3 usually, and down along half a
        cosine (Smith 2018, arXiv 1803.09820, in the form that torch and fastai gave it; momentum stays).
    """
    if progress < config.warmup:
        risen = progress / config.warmup
        if config.schedule == "onecycle":
            return config.lr * (_ONECYCLE_START + (1 - _ONECYCLE_START) * (1 - _half_cosine(risen)))
        return config.lr * max(risen, 1e-2)
    done = min((progress - config.warmup) / (1 - config.warmup), 1.0)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return config.lr * config.drop ** sum(done >= share for share in config.milestones)
    if config.schedule == "poly":
        left = (1 - done) ** config.power
    elif config.schedule == "cyclic":
        left = _half_cosine(done * config.cycles % 1 if done < 1 else 1.0)
    else:
        left = _half_cosine(done)
    return config.lr * (config.floor + (1 - config.floor) * left)


def _half_cosine(done: float) -> float:
    """From 1 at 0 to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * done))


class MovingAverage:
    """An exponential moving average of a network's weights and buffers.

    The decay starts low and rises to `decay`, (1 + t) / (10 + t) at step t, so that the random first weights
    are forgotten; integer buffers are copied.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        self.weights = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Take in the weights after an optimiser step."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                self.weights[name].lerp_(tensor, 1 - decay)
            else:
                self.weights[name].copy_(tensor)
