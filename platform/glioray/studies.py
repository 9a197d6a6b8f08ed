"""What a tournament compares: rows of settings around a recipe, typed by hand or kept as a named study."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from glioray.config import with_settings
from glioray.errors import UsageError
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.recipes import build_gan_recipe

_COMMON = ("stem_stride", "prior")
"""Options of any network: those of the recipe hold for every entrant that does not say otherwise."""

_ENTRANTS_OWN = ("generator", "discriminator", "loss", "pretrain", "optim_g", "optim_d", "d_steps")

_ENDLESS = 1_000_000
_COMMA = re.compile(r",(?![^\[]*\])")
"""One that does not lie within a list in brackets."""


@dataclass(frozen=True)
class Entrant:
    """One row of a tournament: its label, and the dotted settings that make it out of the base config."""

    label: str
    settings: dict[str, Any] = field(default_factory=dict)


def product_entrants(
    nets: Sequence[str], losses: Sequence[str], optimizers: Sequence[str]
) -> tuple[Entrant, ...]:
    """Every network with every loss and every optimiser; an empty list means the recipe's own.

    Each is written NAME or NAME:OPTION=VALUE,OPTION=VALUE, such as `unetpp:width=16,deep_supervision=true`,
    `resenc:blocks=[1,2,2]` or `sgd:lr=0.01`; `recipe` among the networks is the recipe's own network with its options.

    Raises:
        UsageError: text that is not of that form, or the same entrant twice.
    """
    rows = []
    for net, loss, optimizer in itertools.product(nets or [""], losses or [""], optimizers or [""]):
        settings: dict[str, Any] = {}
        if net and net != "recipe":
            name, options = _parse(net)
            settings |= {"net.name": name, "net.options": options}
        if loss:
            name, options = _parse(loss)
            settings |= {"loss.name": name, "loss.options": options}
        if optimizer:
            name, options = _parse(optimizer)
            settings["optim.name"] = name
            if name == "schedulefree":
                settings |= {"optim.schedule": "constant", "optim.ema": 0.0}
            settings |= {f"optim.{key}": value for key, value in options.items()}
        rows.append(
            Entrant(" / ".join(part for part in (net, loss, optimizer) if part) or "recipe", settings)
        )
    if len({row.label for row in rows}) < len(rows):
        twice = next(row.label for row in rows if sum(other.label == row.label for other in rows) > 1)
        raise UsageError(f"'{twice}' is in the tournament twice; name each entrant once")
    return tuple(rows)


def entrant_config(config: RunConfig, entrant: Entrant, *, width: int | None = None) -> RunConfig:
    """The config of one row; `width` is every network's, to cut a study down.

    Raises:
        UsageError: a setting that cannot be, with the row's label.
    """
    settings = dict(entrant.settings)
    if "net.options" in settings:
        common = {key: value for key, value in config.net.options.items() if key in _COMMON}
        settings["net.options"] = {**common, **settings["net.options"]}
    if width is not None:
        settings["net.options"] = {**settings.get("net.options", config.net.options), "width": width}
        if settings.get("net.name", config.net.name) == "unet3p":
            # The paper's scales are as wide as its first level.
            settings["net.options"]["cat_channels"] = width
    try:
        return with_settings(config, settings)
    except UsageError as error:
        raise UsageError(f"entrant '{entrant.label}': {error}") from error


def gan_entrant_config(ground: GanConfig, entrant: str) -> GanConfig:
    """What a super-resolution recipe brings of its own, on the ground of another: same images, same budget, same judge.

    Networks, losses, both stages and both optimisers are the entrant's; how slices are prepared, sampled and degraded,
    how long it takes and how it is judged are the ground's.

    Args:
        ground: the config of what is alike.
        entrant: RECIPE or RECIPE:KEY=VALUE,KEY=VALUE, such as `esrgan_small:optim_g.lr=0.001`.

    Raises:
        UsageError: no such recipe, a setting that cannot be or is the ground's, or text that is not of that form.
    """
    name, settings = _parse(entrant)
    own = build_gan_recipe(name)
    if alien := [path for path in settings if path.partition(".")[0] not in _ENTRANTS_OWN]:
        raise UsageError(
            f"entrant '{entrant}' sets {alien[0]}, which is alike for all; set it by --set, or one of "
            f"{', '.join(_ENTRANTS_OWN)}"
        )
    parts = {part: getattr(own, part) for part in _ENTRANTS_OWN}
    try:
        return with_settings(dataclasses.replace(ground, recipe=name, **parts), settings)
    except UsageError as error:
        raise UsageError(f"entrant '{entrant}': {error}") from error


def budget_settings(
    config: RunConfig | GanConfig, *, minutes: float | None = None, num_slices: int | None = None
) -> dict[str, Any]:
    """The settings that end a run of `config` after so many minutes or slices; none of either changes nothing.

    Raises:
        UsageError: both are given.
    """
    if minutes is not None and num_slices is not None:
        raise UsageError("--minutes-each and --slices-each are both given; an equal budget is one of them")
    if minutes is not None:
        return {"train.minutes": minutes, "train.max_epochs": _ENDLESS}
    if num_slices is None:
        return {}
    # An epoch a validation.
    num_steps = -(-num_slices // config.train.batch_size)
    epochs = min(config.train.num_validations, num_steps)
    return {
        "train.minutes": None,
        "train.max_epochs": epochs,
        "sample.steps_per_epoch": -(-num_steps // epochs),
    }


def budget_text(
    config: RunConfig | GanConfig, *, minutes: float | None = None, num_slices: int | None = None
) -> str:
    """The budget of `budget_settings` in words; that of the recipe where none is named."""
    if minutes is not None:
        return f"{minutes:,.10g} minutes"
    if num_slices is not None:
        return f"{num_slices:,} slices"
    own = config.train
    limit = f" or {own.minutes:g} minutes" if own.minutes else ""
    return f"the recipe's {own.max_epochs:,} epochs{limit}"


def split_names(text: str | None) -> list[str]:
    """The names of a comma-separated list, in which options follow a colon: `a,b:x=1,y=2,c` is a, b:x=1,y=2, c."""
    names: list[str] = []
    for part in _COMMA.split(text or ""):
        if "=" in part and ":" not in part and names:
            names[-1] += f",{part}"
        elif part.strip():
            names.append(part.strip())
    return names


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for item in _COMMA.split(rest) if rest else []:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"'{text}' is not an entrant; write NAME or NAME:OPTION=VALUE,OPTION=VALUE")
        try:
            options[key.strip()] = json.loads(value)
        except ValueError:
            options[key.strip()] = value
    return name.strip(), options


def _keras_study() -> tuple[Entrant, ...]:
    """The 22 rows of the recipe `keras_study`: U-Net variants, losses and optimisers."""
    plain = {"width": 64, "norm": "none"}

    def unet(label: str, settings: dict[str, Any] | None = None, **options: Any) -> Entrant:
        return Entrant(label, {"net.name": "unet", "net.options": {**plain, **options}, **(settings or {})})

    def other(label: str, name: str, **options: Any) -> Entrant:
        return Entrant(label, {"net.name": name, "net.options": options})

    return (
        unet("U-Net"),
        unet("U-Net, batch norm", norm="batch"),
        unet("U-Net, dropout", dropout=0.2),
        unet("U-Net, dilation 2", dilation=2, upsample="nearest"),
        unet("U-Net, ASPP", bottleneck="aspp"),
        unet("U-Net, spatial pyramid", bottleneck="spp"),
        unet("U-Net without bridge", bridge=False),
        unet("U-Net, three convolutions", num_convs=3, norm="batch"),
        unet("U-Net, three convolutions, without bridge", num_convs=3, norm="batch", bridge=False),
        unet("U-Net, five channels", {"preprocess.brain_channel": True}),
        other("U-Net 3+", "unet3p", norm="batch"),
        other("U-Net 3+ without bridge", "unet3p", norm="batch", bridge=False),
        other("U-Net 3+, three convolutions", "unet3p", norm="batch", num_convs=3),
        other(
            "U-Net 3+, three convolutions, without bridge", "unet3p", norm="batch", num_convs=3, bridge=False
        ),
        other("ResUNet++", "resunetpp"),
        other("ResUNet++ without bridge", "resunetpp", bridge=False),
        unet("U-Net, soft Dice", {"loss.name": "soft_dice"}),
        unet("U-Net, weighted cross-entropy", {"loss.name": "ce", "loss.balance": "inverse"}),
        unet("U-Net, focal", {"loss.name": "focal"}),
        unet("U-Net, exponential logarithmic", {"loss.name": "exp_log"}),
        unet("U-Net, RMSprop", {"optim.name": "rmsprop"}),
        unet("U-Net, SGD, cyclic", {"optim.name": "sgd", "optim.lr": 1e-2, "optim.schedule": "cyclic"}),
    )


STUDIES: dict[str, Callable[[], tuple[Entrant, ...]]] = {"keras_study": _keras_study}
"""Recipes that come with rows of their own."""
