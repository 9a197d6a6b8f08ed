"""Entrants of a comparison of segmentation models, given on the command line or as a named study."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from glioray.config import with_settings
from glioray.engine.entrants import parse_entrant
from glioray.errors import UsageError
from glioray.tasks.segmentation.config import RunConfig

_COMMON = ("stem_stride", "prior")
"""Options that every network has: an entrant that does not set them takes the recipe's."""


@dataclass(frozen=True)
class Entrant:
    """One entrant: its label, and the dotted settings by which its config differs from the recipe's."""

    label: str
    settings: dict[str, Any] = field(default_factory=dict)


def product_entrants(
    nets: Sequence[str], losses: Sequence[str], optimizers: Sequence[str]
) -> tuple[Entrant, ...]:
    """Combine every network with every loss and every optimiser; an empty list stands for the recipe's own.

    Each is written NAME or NAME:OPTION=VALUE,OPTION=VALUE, such as `unetpp:width=16,deep_supervision=true`,
    `resenc:blocks=[1,2,2]` or `sgd:lr=0.01`; the network `recipe` is the recipe's own with its options.

    Raises:
        UsageError: a text of another form, or the same entrant twice.
    """
    rows = []
    for net, loss, optimizer in itertools.product(nets or [""], losses or [""], optimizers or [""]):
        settings: dict[str, Any] = {}
        if net and net != "recipe":
            name, options = parse_entrant(net)
            settings |= {"net.name": name, "net.options": options}
        if loss:
            name, options = parse_entrant(loss)
            settings |= {"loss.name": name, "loss.options": options}
        if optimizer:
            name, options = parse_entrant(optimizer)
            settings["optim.name"] = name
            if name == "schedulefree":
                settings |= {"optim.schedule": "constant", "optim.ema": 0.0}
            settings |= {f"optim.{key}": value for key, value in options.items()}
        rows.append(
            Entrant(" / ".join(part for part in (net, loss, optimizer) if part) or "recipe", settings)
        )
    if len({row.label for row in rows}) < len(rows):
        twice = next(row.label for row in rows if sum(other.label == row.label for other in rows) > 1)
        raise UsageError(f"entrant '{twice}' is given twice; name each entrant once")
    return tuple(rows)


def entrant_config(config: RunConfig, entrant: Entrant, *, width: int | None = None) -> RunConfig:
    """Build the config of an entrant.

    Args:
        config: of the recipe.
        entrant: the settings by which it differs.
        width: of every network, to make a study smaller.

    Raises:
        UsageError: an invalid setting; names the entrant.
    """
    settings = dict(entrant.settings)
    if "net.options" in settings:
        common = {key: value for key, value in config.net.options.items() if key in _COMMON}
        settings["net.options"] = {**common, **settings["net.options"]}
    if width is not None:
        settings["net.options"] = {**settings.get("net.options", config.net.options), "width": width}
        if settings.get("net.name", config.net.name) == "unet3p":
            # As in the paper, each scale contributes as many channels as the first level has.
            settings["net.options"]["cat_channels"] = width
    try:
        return with_settings(config, settings)
    except UsageError as error:
        raise UsageError(f"entrant '{entrant.label}': {error}") from error


def _keras_study() -> tuple[Entrant, ...]:
    """The 22 entrants of the recipe `keras_study`: U-Net variants, losses and optimisers."""
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
"""Recipes that have entrants of their own."""
