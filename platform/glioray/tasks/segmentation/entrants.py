"""Entrants of a comparison of segmentation models, given on the command line or as a named study."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glioray.config import with_settings
from glioray.engine.entrants import parse_entrant
from glioray.errors import UsageError
from glioray.tasks.segmentation.config import RunConfig

_COMMON = ("stem_stride", "prior")
"""Options that every network has: an entrant that does not set them takes the recipe's."""


@dataclass(frozen=True)
class Published:
    """The published figures of one of a study's models: means over slices and over classes, background among them."""

    num_parameters: int
    recall: float
    f1: float


@dataclass(frozen=True)
class Entrant:
    """One entrant.

    Attributes:
        label: names it.
        settings: dotted settings by which its config differs from the recipe's.
        published: of a study's entrant.
    """

    label: str
    settings: dict[str, Any] = field(default_factory=dict)
    published: Published | None = None


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
    """The 22 entrants of the recipe `keras_study`: the study's own table, in its order and with its titles.

    "nobridge" is without the deepest level's convolutions, "5channel" has a fifth input. The number behind `ell_loss`
    is taken for the weight of its Dice term, the rest of 1 for that of its pixels. Rows 10 and 11 have one title and
    two counts; the larger one is taken to have the deepest level. Row 19's "e3" is taken for a rate of 1e-3.
    """
    soft: dict[str, Any] = {"loss.name": "soft_dice"}
    weighted: dict[str, Any] = {"loss.name": "ce", "loss.balance": "inverse"}
    # Keras' default rate of Adagrad.
    adagrad: dict[str, Any] = {"optim.name": "adagrad", "optim.lr": 1e-3}
    fifth: dict[str, Any] = {"preprocess.brain_channel": True}
    three = {"num_convs": 3, "norm": "batch"}
    dilated = {"dilation": 2, "upsample": "nearest"}

    def ell(weight: float) -> dict[str, Any]:
        options = {"dice_weight": weight, "ce_weight": round(1 - weight, 1)}
        return {"loss.name": "exp_log", "loss.options": options}

    rows: list[Entrant] = []

    def add(
        title: str,
        net: str,
        options: Mapping[str, Any],
        settings: Mapping[str, Any],
        num_parameters: int,
        recall: float,
        f1: float,
    ) -> None:
        usual = {"width": 64, "norm": "none"} if net == "unet" else {"norm": "batch"}
        chosen = {"net.name": net, "net.options": {**usual, **options}, **settings}
        rows.append(Entrant(f"{len(rows) + 1} {title}", chosen, Published(num_parameters, recall, f1)))

    # fmt: off
    add("3++_unet_nobridge", "unet3p", {"bridge": False}, ell(0.2), 8_907_396, .92805, .92965)
    add("unet_nobridge", "unet", {"bridge": False}, {}, 15_826_116, .92415, .92325)
    add("res-unet++_nobridge", "resunetpp", {}, {}, 4_092_868, .912525, .922825)
    add("unet_ell-loss_nobridge", "unet", {"bridge": False}, ell(0.7), 15_826_116, .92415, .92325)
    add("3cnn_block_unet", "unet", three, ell(0.7), 46_774_852, .90615, .899525)
    add("3cnn_block_unet-nobridge", "unet", {**three, "bridge": False}, ell(0.7), 22_117_956, .917575, .91495)
    add("3cnn_block_unet-nobridge-weightedloss", "unet", {**three, "bridge": False}, weighted, 22_117_956, .912925, .909575)
    add("3cnn_block_unet-5channel", "unet", three, {**fifth, **ell(0.7)}, 46_775_428, .90575, .916925)
    add("3cnn_block_unet-5channel-nobridge", "unet", {**three, "bridge": False}, fifth, 22_118_532, .9116, .916575)
    add("3cnn_block_3++_5channel-nobridge_wloss", "unet3p", {"num_convs": 3}, {**fifth, **soft}, 18_127_940, .922925, .92735)
    add("3cnn_block_3++_5channel-nobridge_wloss", "unet3p", {"num_convs": 3, "bridge": False}, fifth, 12_046_212, .9264, .9286)
    add("3cnn_block_3++_soft", "unet3p", {"num_convs": 3, "bridge": False}, {**fifth, **adagrad}, 12_046_212, .870175, .887325)
    add("unet_dropout", "unet", {"dropout": 0.2}, {}, 31_032_516, .9253, .92805)
    add("unet_nobridge_dropout", "unet", {"bridge": False, "dropout": 0.2}, adagrad, 15_826_116, .656725, .657225)
    add("unet_dropout_soft", "unet", {"dropout": 0.2}, adagrad, 31_032_516, .607625, .64925)
    add("res-unet++-dropout", "resunetpp", {"dropout": 0.2}, {**soft, **adagrad}, 4_092_868, .772875, .78815)
    add("unet_dropout-dilation_rate", "unet", {**dilated, "dropout": 0.2}, {}, 31_379_716, .9169, .92425)
    add("unet_dilation_rate", "unet", dilated, {}, 31_379_716, .926875, .9262)
    add("3++_nobridge-dropout-e3", "unet3p", {"bridge": False, "dropout": 0.2}, {"optim.lr": 1e-3}, 8_907_396, .921925, .928925)
    add("3cnn_block_3++_5channel-nobridge_wloss-ell-dilation_rate=3", "unet3p", {"num_convs": 3, "bridge": False, "dilation": 3}, fifth, 15_911_684, .926275, .923475)
    add("unet_dropout-dilation_rate_nobridge", "unet", {**dilated, "bridge": False, "dropout": 0.2}, {}, 12_046_212, .9117, .924175)
    add("croped_4channel_unet_nobridge", "unet", {"bridge": False}, {"preprocess.size": (128, 128)}, 15_826_116, .7519, .787425)
    # fmt: on
    return tuple(rows)


STUDIES: dict[str, Callable[[], tuple[Entrant, ...]]] = {"keras_study": _keras_study}
"""Recipes that have entrants of their own."""

PUBLISHED: dict[str, Published] = {
    row.label: row.published for build in STUDIES.values() for row in build() if row.published
}
"""The published figures of the entrants, by label."""
