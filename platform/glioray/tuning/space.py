"""What a search varies, around a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from glioray.config import RunConfig, override


def unet_space(config: RunConfig) -> dict[str, BaseDistribution]:
    """Dotted settings and their ranges: learning rate, weight decay, loss weight, width, augmentation.

    The learning rate reaches an order of magnitude above the recipe's, where runs diverge: a search that
    never meets its limits does not show where they are.
    """
    lr, width = config.optim.lr, int(config.net.options.get("width", 64))
    weight = float(config.loss.options.get("ce_weight", 1.0))
    return {
        "optim.lr": FloatDistribution(lr / 10, lr * 10, log=True),
        "optim.weight_decay": FloatDistribution(1e-5, 1e-1, log=True),
        "loss.options.ce_weight": FloatDistribution(weight / 3, weight * 3, log=True),
        "net.options.width": CategoricalDistribution(sorted({max(4, width * 3 // 4), width, width * 3 // 2})),
        "augment.strength": FloatDistribution(0.0, 1.5),
    }


def recipe_point(config: RunConfig) -> dict[str, Any]:
    """The recipe itself as a point of the space: the first trial, so that a search never ends below it."""
    return {
        "optim.lr": config.optim.lr,
        "optim.weight_decay": min(max(config.optim.weight_decay, 1e-5), 1e-1),
        "loss.options.ce_weight": config.loss.options.get("ce_weight", 1.0),
        "net.options.width": int(config.net.options.get("width", 64)),
        "augment.strength": config.augment.strength,
    }


def apply_point(config: RunConfig, point: Mapping[str, Any]) -> RunConfig:
    """The config with a point's settings."""
    return override(config, **point)
