"""Optimisers, the learning rate's course, and the moving average of weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from glioray.config import OptimConfig


def build_optimizer(net: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Adam (Kingma, Ba 2014) or AdamW (Loshchilov, Hutter 2017); biases and norms are not decayed."""
    decayed = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return cls(groups, lr=config.lr)


def learning_rate(config: OptimConfig, progress: float) -> float:
    """The rate at `progress` in [0, 1] of the run: a linear warm-up, then half a cosine to `floor`."""
    if progress < config.warmup:
        return config.lr * max(progress / config.warmup, 1e-2)
    if config.schedule == "constant":
        return config.lr
    done = min((progress - config.warmup) / (1 - config.warmup), 1.0)
    return config.lr * (config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * done)))


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
