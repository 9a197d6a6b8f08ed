"""The segmentation losses, by name; a weight of 0 switches a term off.

MONAI's losses reduce within one process. These take sums over all ranks before ratios are formed, so that
several ranks give the loss and the gradients of one rank with the whole batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from glioray.losses.boundary import BoundaryLoss, HausdorffLoss
from glioray.losses.deep import DeepSupervision
from glioray.losses.mixed import DiceCELoss, ExpLogLoss
from glioray.losses.overlap import DiceLoss, GeneralisedDiceLoss, TverskyLoss
from glioray.losses.pixel import CrossEntropyLoss, FocalLoss
from glioray.losses.targets import Classes, Prediction, Reduce, Regions

Target = Literal["classes", "regions"]
"""A network's output: one softmax over background and labels, or a sigmoid each for WT, TC and ET."""

_PREDICTIONS: dict[Target, type[Prediction]] = {"classes": Classes, "regions": Regions}


@dataclass(frozen=True)
class LossEntry:
    """A loss in the registry.

    Attributes:
        build: builds the module from a subclass of `Prediction`, `reduce` and the loss's options.
        targets: the targets that the loss supports, the default first.
    """

    build: Callable[..., nn.Module]
    targets: tuple[Target, ...]


_FOCAL_TVERSKY = partial(TverskyLoss, gamma=4 / 3)
_SOFT_DICE = partial(DiceLoss, squared=True)

SEGMENTATION_LOSSES: dict[str, LossEntry] = {
    "boundary": LossEntry(BoundaryLoss, ("classes",)),
    "ce": LossEntry(CrossEntropyLoss, ("classes",)),
    "dice": LossEntry(DiceLoss, ("classes",)),
    "dice_ce": LossEntry(DiceCELoss, ("classes",)),
    "exp_log": LossEntry(ExpLogLoss, ("classes",)),
    "focal": LossEntry(FocalLoss, ("classes",)),
    "focal_tversky": LossEntry(_FOCAL_TVERSKY, ("classes",)),
    "generalised_dice": LossEntry(GeneralisedDiceLoss, ("classes",)),
    "hausdorff": LossEntry(HausdorffLoss, ("classes",)),
    "soft_dice": LossEntry(_SOFT_DICE, ("classes",)),
    "tversky": LossEntry(TverskyLoss, ("classes",)),
    "region_bce": LossEntry(CrossEntropyLoss, ("regions",)),
    "region_boundary": LossEntry(BoundaryLoss, ("regions",)),
    "region_dice": LossEntry(DiceLoss, ("regions",)),
    "region_dice_bce": LossEntry(DiceCELoss, ("regions",)),
    "region_exp_log": LossEntry(ExpLogLoss, ("regions",)),
    "region_focal": LossEntry(FocalLoss, ("regions",)),
    "region_focal_tversky": LossEntry(_FOCAL_TVERSKY, ("regions",)),
    "region_generalised_dice": LossEntry(GeneralisedDiceLoss, ("regions",)),
    "region_hausdorff": LossEntry(HausdorffLoss, ("regions",)),
    "region_soft_dice": LossEntry(_SOFT_DICE, ("regions",)),
    "region_tversky": LossEntry(TverskyLoss, ("regions",)),
}


def build_loss(
    name: str,
    *,
    target: Target | None = None,
    reduce: Reduce | None = None,
    side_weights: str = "halving",
    presence_weight: float = 1.0,
    **options: Any,
) -> nn.Module:
    """Build a loss by name: (logits or `TrainingOutputs`, masks) to a scalar.

    Masks are (B, H, W) of internal labels.

    Args:
        name: in `SEGMENTATION_LOSSES`.
        target: the output of the network; None for the loss's default.
        reduce: a differentiable sum over ranks; None for a single rank.
        side_weights: the weights of side outputs, finest first: "equal" or "halving".
        presence_weight: the weight of the classification of slices, if the network has one.
        options: options of the loss.

    Raises:
        ValueError: an unknown name, target or option, or a value out of range.
    """
    entry = _entry(name)
    if target is not None and target not in entry.targets:
        raise ValueError(
            f"loss '{name}' does not support the target '{target}'; expected {' or '.join(entry.targets)}"
        )
    prediction = _PREDICTIONS[target or entry.targets[0]]
    try:
        loss = entry.build(prediction, reduce=reduce, **options)
    except TypeError as error:
        raise ValueError(f"loss '{name}' does not accept these options: {error}") from error
    return DeepSupervision(loss, prediction, side_weights=side_weights, presence_weight=presence_weight)


def takes_class_weights(name: str) -> bool:
    """Whether a loss has the option `class_weights`.

    Raises: ValueError if the name is unknown.
    """
    return "class_weights" in inspect.signature(_entry(name).build).parameters


def _entry(name: str) -> LossEntry:
    if name not in SEGMENTATION_LOSSES:
        raise ValueError(f"No loss '{name}'; available: {', '.join(sorted(SEGMENTATION_LOSSES))}")
    return SEGMENTATION_LOSSES[name]
