"""The search space around a segmentation recipe."""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from glioray.nets import build_net
from glioray.tasks.segmentation.config import RunConfig


def unet_space(config: RunConfig) -> dict[str, BaseDistribution]:
    """Ranges of learning rate, weight decay, loss weight, width and augmentation strength, by dotted setting.

    The learning rate reaches an order of magnitude above the recipe's, where runs diverge: a search that stays
    below does not show where its limit is. Loss weight and width are searched if the config names them, since not
    every loss and network has them.
    """
    lr, width = config.optim.lr, config.net.options.get("width")
    weight = config.loss.options.get("ce_weight")
    space: dict[str, BaseDistribution] = {
        "optim.lr": FloatDistribution(lr / 10, min(lr * 10, 10.0), log=True),
        "optim.weight_decay": FloatDistribution(1e-5, 1e-1, log=True),
        "augment.strength": FloatDistribution(0.0, 1.5),
    }
    if weight:
        space["loss.options.ce_weight"] = FloatDistribution(weight / 3, weight * 3, log=True)
    if width:
        others = {max(4, width * 3 // 4), width * 3 // 2} - {width}
        choices = sorted([width, *(other for other in others if _can_be_built(config, other))])
        space["net.options.width"] = CategoricalDistribution(choices)
    return space


def _can_be_built(config: RunConfig, width: int) -> bool:
    """Whether the network takes that width; some take only multiples of 4, 8 or 12."""
    return _is_net(config.net.name, json.dumps({**config.net.options, "width": width}))


@functools.lru_cache(maxsize=64)
def _is_net(name: str, options: str) -> bool:
    try:
        with torch.device("meta"):
            build_net(name, in_channels=1, out_channels=1, **json.loads(options))
    except ValueError:
        return False
    return True


def recipe_values(config: RunConfig) -> dict[str, Any]:
    """The recipe's value of each entry that its space may have; None where the recipe has none."""
    return {
        "optim.lr": config.optim.lr,
        "optim.weight_decay": min(max(config.optim.weight_decay, 1e-5), 1e-1),
        "augment.strength": min(config.augment.strength, 1.5),
        "loss.options.ce_weight": config.loss.options.get("ce_weight"),
        "net.options.width": config.net.options.get("width"),
    }
