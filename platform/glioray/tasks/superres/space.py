"""What a search for super-resolution GANs varies, around a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from glioray.config import with_settings
from glioray.errors import UsageError
from glioray.nets.gan import build_discriminator
from glioray.tasks.superres.config import GanConfig

RATIO = "rate_ratio"
"""The discriminator's learning rate over the generator's, which says more than either about which of them wins."""

PENALISED = "r1_on"
"""Whether `loss.r1` counts. It is drawn in any case: a space of Optuna's that is a dict knows no conditions."""

SHARE = "pretrain.share"

SHARES = (0.0, 0.2, 0.5)
"""Of a trial's budget, that its generator has been trained for by pixels alone."""

_NORM = "discriminator.options.norm"


def gan_space(config: GanConfig) -> dict[str, BaseDistribution]:
    """Dotted settings, `RATIO` and `PENALISED`, and their ranges, each wide enough for the recipe's own value.

    The learning rate reaches 1e-2, where GANs collapse: a search that never meets its limits does not show where
    they are. The weight of features is searched where the recipe has one, the normalisation where the discriminator
    can do with and without, the share of pretraining where no `pretrain.source` is named.

    The average's decay goes with the length that the recipe is made for: .999 remembers a thousand steps, and the
    model of a run of a few hundred would be the one that it began with, however it went on.
    """
    own = _values(config)
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
    return space


def recipe_point(config: GanConfig) -> dict[str, Any]:
    """The recipe itself as a point of the space, but for the share of pretraining, which is the nearest there is."""
    values = _values(config)
    return {name: values[name] for name in gan_space(config)}


def complete_point(config: GanConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's point with some of its values replaced.

    Raises:
        UsageError: a name that is not searched, or a value that is out of its range.
    """
    space = gan_space(config)
    for name, value in given.items():
        if name not in space:
            raise UsageError(f"'{name}' is not searched; a point has {', '.join(sorted(space))}")
        distribution = space[name]
        if isinstance(distribution, CategoricalDistribution):
            allowed = value in distribution.choices
            expected = f"one of {', '.join(map(str, distribution.choices))}"
        else:
            assert isinstance(distribution, FloatDistribution)
            allowed = isinstance(value, int | float) and distribution.low <= value <= distribution.high
            expected = f"{distribution.low:g} to {distribution.high:g}"
        if not allowed:
            raise UsageError(f"{name} of a point is {value!r}; expected {expected}")
    return {**recipe_point(config), **given}


def first_points(
    config: GanConfig, given: Sequence[Mapping[str, Any]], num_trials: int
) -> list[dict[str, Any]]:
    """The points that a search begins with: the recipe's, then those that are given.

    Raises:
        UsageError: as `complete_point`, or there are more of them than trials.
    """
    points = [complete_point(config, point) for point in ({}, *given)]
    if len(points) > num_trials:
        raise UsageError(
            f"{len(given)} points are given, and the recipe's own is tried too, but there are {num_trials} trials; "
            f"ask for at least {len(points)}"
        )
    return points


def apply_gan_point(
    config: GanConfig, point: Mapping[str, Any], sources: Mapping[float, str] | None = None
) -> GanConfig:
    """The config with a point's settings.

    A share of pretraining is taken off the run's length: it was trained before, for all trials, and the run goes on
    from there against the discriminator. So every trial has the same budget in all.

    Args:
        config: the recipe's.
        point: of `gan_space`.
        sources: the pretrained model by its share, for shares above 0.
    """
    settings = dict(point)
    settings["optim_d.lr"] = settings["optim_g.lr"] * settings.pop(RATIO)
    if not settings.pop(PENALISED):
        settings["loss.r1"] = 0.0
    if settings["loss.adversarial"] == "hinge":
        settings["loss.label_smoothing"] = 0.0  # it has no targets to smooth
    if settings["optim_d.name"] == "rmsprop" and config.optim_d.name != "rmsprop":
        # That of a recipe with Adam is not in use there, and its default makes a rate a tenfold one.
        settings["optim_d.momentum"] = 0.0
    if SHARE in settings:
        share = settings[SHARE]
        settings |= _part(config, share, 1.0)
        settings |= {SHARE: 0.0, "pretrain.source": (sources or {})[share] if share else None}
    return with_settings(config, settings)


def pretraining(config: GanConfig, begin: float, end: float, source: str | None) -> GanConfig:
    """The config of the pixel stage from one share of a trial's budget to another, which trials begin with.

    Args:
        config: the recipe's.
        begin: share that `source` was trained for; 0 without one.
        end: share that it is trained to.
        source: the model to go on with.
    """
    settings = {SHARE: 1.0, "pretrain.source": source, "use.segmenter": None, "use.weight": 0.0}
    return with_settings(config, settings | _part(config, begin, end))


def _part(config: GanConfig, begin: float, end: float) -> dict[str, Any]:
    """The length of a run that is the part of a trial's budget from one share of it to another.

    Epochs are rounded where one part ends and the next begins, so that all parts add up to the whole.
    """
    epochs, minutes = config.train.max_epochs, config.train.minutes
    return {
        "train.max_epochs": max(1, round(end * epochs) - round(begin * epochs)),
        "train.minutes": None if minutes is None else (end - begin) * minutes,
    }


def _values(config: GanConfig) -> dict[str, Any]:
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
    try:
        with torch.device("meta"):
            build_discriminator(net.name, channels=config.num_channels, **{**net.options, "norm": norm})
    except ValueError:
        return False
    return True
