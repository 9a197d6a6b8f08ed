"""The losses, by name. They stand alone: plain torch; a weight of 0 says absent."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from glioray.losses.boundary import BoundaryLoss, HausdorffLoss
from glioray.losses.deep import DeepSupervision
from glioray.losses.mixed import DiceCELoss, ExpLogLoss
from glioray.losses.overlap import DiceLoss, GeneralisedDiceLoss, TverskyLoss
from glioray.losses.pixel import CrossEntropyLoss, FocalLoss
from glioray.losses.targets import Classes, Compared, Reduce, Regions

_FOCAL_TVERSKY = partial(TverskyLoss, gamma=4 / 3)
_SOFT_DICE = partial(DiceLoss, squared=True)

SEGMENTATION_LOSSES: dict[str, Callable[..., nn.Module]] = {
    "boundary": BoundaryLoss,
    "ce": CrossEntropyLoss,
    "dice": DiceLoss,
    "dice_ce": DiceCELoss,
    "exp_log": ExpLogLoss,
    "focal": FocalLoss,
    "focal_tversky": _FOCAL_TVERSKY,
    "generalised_dice": GeneralisedDiceLoss,
    "hausdorff": HausdorffLoss,
    "soft_dice": _SOFT_DICE,
    "tversky": TverskyLoss,
    "region_bce": CrossEntropyLoss,
    "region_boundary": BoundaryLoss,
    "region_dice": DiceLoss,
    "region_dice_bce": DiceCELoss,
    "region_exp_log": ExpLogLoss,
    "region_focal": FocalLoss,
    "region_focal_tversky": _FOCAL_TVERSKY,
    "region_generalised_dice": GeneralisedDiceLoss,
    "region_hausdorff": HausdorffLoss,
    "region_soft_dice": _SOFT_DICE,
    "region_tversky": TverskyLoss,
}
"""Names that start with `region_` are for networks that predict WT, TC and ET, the others for classes."""


def build_loss(
    name: str,
    *,
    reduce: Reduce | None = None,
    side_weights: str = "halving",
    presence_weight: float = 1.0,
    **options: Any,
) -> nn.Module:
    """A loss by its name: (logits or `Supervised`, masks (B, H, W) of internal labels) to a scalar.

    Args:
        name: in `SEGMENTATION_LOSSES`.
        reduce: sums a tensor over ranks and lets gradients through; None for one rank.
        side_weights: of side outputs, finest first: "equal" or "halving".
        presence_weight: of the classification of slices, where the network has one.
        options: the loss's own.

    Raises:
        ValueError: a name that is not in the registry, or an option that the loss does not have.
    """
    target: type[Compared] = Regions if name.startswith("region_") else Classes
    try:
        loss = _entry(name)(target, reduce=reduce, **options)
    except TypeError as error:
        raise ValueError(f"loss '{name}' does not take these options: {error}") from error
    return DeepSupervision(loss, target, side_weights=side_weights, presence_weight=presence_weight)


def takes_class_weights(name: str) -> bool:
    """Whether a loss has the option `class_weights`.

    Raises:
        ValueError: a name that is not in the registry.
    """
    return "class_weights" in inspect.signature(_entry(name)).parameters


def _entry(name: str) -> Callable[..., nn.Module]:
    if name not in SEGMENTATION_LOSSES:
        raise ValueError(f"'{name}' is not a loss; the losses are {', '.join(sorted(SEGMENTATION_LOSSES))}")
    return SEGMENTATION_LOSSES[name]
