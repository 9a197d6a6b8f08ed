"""The search space around a super-resolution recipe."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from glioray.config import with_settings
from glioray.nets.gan import build_discriminator
from glioray.tasks.superres.config import GanConfig

RATIO = "rate_ratio"
"""The discriminator's learning rate over the generator's, which decides more than either rate which of them wins."""

PENALISED = "r1_on"
"""Whether `loss.r1` counts. `loss.r1` is drawn in any case, as Optuna's spaces of this form have no conditions."""

SHARE = "pretrain.share"

SHARES = (0.0, 0.2, 0.5)
"""Shares of a trial's budget for which its generator is pretrained by pixels alone."""

_PRETRAINING = (
    *("generator", "channels", "preprocess", "sample", "degrade", "train"),
    *("pretrain.source", "pretrain.pixel", "pretrain.rate", "pretrain.schedule", "pretrain.warmup"),
)
"""Settings, or parts of a config, on which the pretraining depends: trials that vary them have none in common."""

_NORM = "discriminator.options.norm"


def gan_space(config: GanConfig, given: Sequence[str] = ()) -> dict[str, BaseDistribution]:
    """Ranges of dotted settings, `RATIO` and `PENALISED`, each wide enough for the recipe's own value.

    The learning rate reaches 1e-2, where GANs collapse: a search that stays below does not show where its limit is.
    The weight of features is searched if the recipe has one, the normalisation if the discriminator takes several,
    the share of pretraining if no `pretrain.source` is given.

    The choices of the average's decay follow the recipe's length: .999 averages over a thousand steps, so that the
    model of a run of a few hundred would stay near its start.

    Args:
        config: of the recipe.
        given: settings that the user searches: `optim_d.lr` replaces `RATIO`, and `loss.r1` always counts then.
    """
    own = recipe_values(config)
    space = {
        "optim_g.lr": _log(1e-5, 1e-2, own["optim_g.lr"]),
        RATIO: _log(0.25, 4.0, own[RATIO]),
        "d_steps": _one_of(own["d_steps"], 1, 2),
        "loss.adversarial": _one_of(own["loss.adversarial"], "vanilla", "ragan", "lsgan", "hinge"),
        "loss.adversarial_weight": _log(1e-4, 1e-1, own["loss.adversarial_weight"]),
        "loss.pixel_weight": _one_of(own["loss.pixel_weight"], 1e-2, 1.0),
        "loss.label_smoothing": _one_of(own["loss.label_smoothing"], 0.0, 0.1),
        PENALISED: CategoricalDistribution((False, True)),
        "loss.r1": _log(0.01, 10.0, own["loss.r1"]),
        "loss.instance_noise": _one_of(own["loss.instance_noise"], 0.0, 0.05),
        "optim_g.ema": _one_of(
            own["optim_g.ema"], *((0.99, 0.999) if config.optim_g.ema >= 0.999 else (0.9, 0.99))
        ),
        "optim_d.name": _one_of(own["optim_d.name"], "adam", "rmsprop"),
    }
    if config.loss.perceptual_weight > 0 and config.loss.extractor != "none":
        space["loss.perceptual_weight"] = _log(1e-2, 1.0, own["loss.perceptual_weight"])
    norms = [norm for norm in ("spectral", "none") if _can_be_built(config, norm)]
    if len(norms) > 1:
        space[_NORM] = _one_of(own[_NORM], *norms)
    if config.pretrain.source is None:
        space[SHARE] = CategoricalDistribution(SHARES)
    meaningless = {
        *([RATIO] if "optim_d.lr" in given else []),
        *([PENALISED] if "loss.r1" in given else []),
        *([SHARE] if "pretrain.source" in given else []),
    }
    return {name: values for name, values in space.items() if name not in meaningless}


def warm_shares(config: GanConfig, space: Mapping[str, BaseDistribution]) -> tuple[float, ...]:
    """Shares of a trial's budget above 0 for which one generator is pretrained for all trials.

    None if a generator is given, or if the trials differ in something that the pretraining depends on; a trial then
    pretrains its own.
    """
    shares = space.get(SHARE)
    if not isinstance(shares, CategoricalDistribution):
        return ()
    if any(name == part or name.startswith(f"{part}.") for name in space for part in _PRETRAINING):
        return ()
    return tuple(sorted(share for share in shares.choices if isinstance(share, float) and share))


def apply_gan_point(
    config: GanConfig, point: Mapping[str, Any], sources: Mapping[float, str] | None = None
) -> GanConfig:
    """The config with a point's settings.

    A share of pretraining with a source is taken off the run's length: that generator was trained before, for all
    trials, and the run continues with the adversarial stage. So every trial has the same budget in all.

    Args:
        config: the recipe's.
        point: of any part of `gan_space`, with any other settings.
        sources: the pretrained model by its share.
    """
    settings = dict(point)
    if RATIO in settings:
        settings["optim_d.lr"] = settings.get("optim_g.lr", config.optim_g.lr) * settings.pop(RATIO)
    if not settings.pop(PENALISED, True):
        settings["loss.r1"] = 0.0
    if settings.get("loss.adversarial", config.loss.adversarial) == "hinge":
        settings["loss.label_smoothing"] = 0.0  # it has no targets to smooth
    if settings.get("optim_d.name") == "rmsprop" and config.optim_d.name != "rmsprop":
        # A recipe with Adam does not use its momentum, and the default would make the rate a tenfold one.
        settings.setdefault("optim_d.momentum", 0.0)
    share = settings.get(SHARE, 0.0)
    if sources and share in sources:
        settings |= {**_part(config, share, 1.0), SHARE: 0.0, "pretrain.source": sources[share]}
    return with_settings(config, settings)


def pretraining(config: GanConfig, begin: float, end: float, source: str | None) -> GanConfig:
    """The config of the pixel stage from one share of a trial's budget to another, from which trials start.

    Args:
        config: the recipe's.
        begin: share that `source` was trained for; 0 without one.
        end: share that it is trained to.
        source: the model to continue.
    """
    settings = {SHARE: 1.0, "pretrain.source": source, "use.segmenter": None, "use.weight": 0.0}
    return with_settings(config, settings | _part(config, begin, end))


def _part(config: GanConfig, begin: float, end: float) -> dict[str, Any]:
    """Settings of the length of a run from one share of a trial's budget to another.

    Epochs are rounded where one part ends and the next begins, so that all parts add up to the whole.
    """
    epochs, minutes = config.train.max_epochs, config.train.minutes
    return {
        "train.max_epochs": max(1, round(end * epochs) - round(begin * epochs)),
        "train.minutes": None if minutes is None else (end - begin) * minutes,
    }


def recipe_values(config: GanConfig) -> dict[str, Any]:
    """The recipe's value of each entry that its space may have, with the nearest of `SHARES`."""
    loss = config.loss
    return {
        "optim_g.lr": config.optim_g.lr,
        RATIO: config.optim_d.lr / config.optim_g.lr,
        "d_steps": config.d_steps,
        "loss.adversarial": loss.adversarial,
        "loss.adversarial_weight": loss.adversarial_weight or 5e-3,
        "loss.perceptual_weight": loss.perceptual_weight,
        "loss.pixel_weight": loss.pixel_weight,
        "loss.label_smoothing": loss.label_smoothing,
        PENALISED: loss.r1 > 0,
        "loss.r1": loss.r1 or 1.0,
        "loss.instance_noise": loss.instance_noise,
        "optim_g.ema": config.optim_g.ema,
        "optim_d.name": config.optim_d.name,
        _NORM: config.discriminator.options.get("norm", "spectral"),
        SHARE: min(SHARES, key=lambda share: abs(share - config.pretrain.share)),
    }


def _log(low: float, high: float, own: float) -> FloatDistribution:
    return FloatDistribution(min(low, own), max(high, own), log=True)


def _one_of(own: Any, *choices: Any) -> CategoricalDistribution:
    return CategoricalDistribution(choices if own in choices else (own, *choices))


def _can_be_built(config: GanConfig, norm: str) -> bool:
    net = config.discriminator
    return _is_discriminator(net.name, config.num_channels, json.dumps({**net.options, "norm": norm}))


@functools.lru_cache(maxsize=64)
def _is_discriminator(name: str, channels: int, options: str) -> bool:
    try:
        with torch.device("meta"):
            build_discriminator(name, channels=channels, **json.loads(options))
    except ValueError:
        return False
    return True
