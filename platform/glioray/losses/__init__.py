"""The losses, by name. They stand alone: plain torch; a weight of 0 says absent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from glioray.losses.segmentation import DiceCELoss, Reduce, RegionDiceBCELoss

SEGMENTATION_LOSSES: dict[str, Callable[..., nn.Module]] = {
    "dice_ce": DiceCELoss,
    "region_dice_bce": RegionDiceBCELoss,
}
"""Names that start with `region_` are for networks that predict WT, TC and ET, the others for classes."""


def build_loss(name: str, *, reduce: Reduce | None = None, **options: Any) -> nn.Module:
    """A loss by its name; `reduce` sums a tensor over ranks and lets gradients through.

    Raises:
        ValueError: a name that is not in the registry, or an option that the loss does not have.
    """
    if name not in SEGMENTATION_LOSSES:
        raise ValueError(f"'{name}' is not a loss; the losses are {', '.join(sorted(SEGMENTATION_LOSSES))}")
    try:
        return SEGMENTATION_LOSSES[name](reduce=reduce, **options)
    except TypeError as error:
        raise ValueError(f"loss '{name}' does not take these options: {error}") from error
