"""Pixel losses: cross-entropy and focal loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from glioray.losses.overlap import TINY
from glioray.losses.targets import Prediction, Reduce


def parse_class_weights(class_weights: Sequence[float] | None) -> Tensor | None:
    """The weights as a float32 tensor, or None.

    Raises:
        ValueError: the list is empty, or a weight is not above 0.
    """
    if class_weights is None:
        return None
    if not class_weights or min(class_weights) <= 0:
        raise ValueError(
            f"class_weights is {list(class_weights)}; expected a number above 0 for each channel"
        )
    return torch.tensor(class_weights, dtype=torch.float32)


class CrossEntropyLoss(nn.Module):
    """The mean cross-entropy of pixels: between classes, or binary for each region.

    Args:
        target: `Classes` or `Regions`.
        class_weights: one per class, background first, for a weighted mean; or one per region, for the pixels
            inside it.
        reduce: a differentiable sum over ranks; None for a single rank.
    """

    def __init__(
        self,
        target: type[Prediction],
        *,
        class_weights: Sequence[float] | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        super().__init__()
        self.target, self.reduce = target, reduce
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", parse_class_weights(class_weights), persistent=False)

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        prediction = self.target(logits, masks)
        return prediction.mean(prediction.nll, self.class_weights, self.reduce)


class FocalLoss(CrossEntropyLoss):
    """The cross-entropy of pixels times (1 - true class's probability) ^ `gamma`.

    Args:
        target: `Classes` or `Regions`.
        gamma: 0 gives the cross-entropy.
        class_weights: as in `CrossEntropyLoss`; the alpha-balancing of the paper.
        reduce: a differentiable sum over ranks; None for a single rank.

    Raises:
        ValueError: a negative gamma.

    Reference: Lin et al. 2017 (arXiv 1708.02002). The mean is over pixels; MONAI's is over pixels and classes.
    """

    def __init__(
        self,
        target: type[Prediction],
        *,
        gamma: float = 2.0,
        class_weights: Sequence[float] | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        super().__init__(target, class_weights=class_weights, reduce=reduce)
        if gamma < 0:
            raise ValueError(f"gamma is {gamma}; expected at least 0")
        self.gamma = gamma

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        prediction = self.target(logits, masks)
        nll = prediction.nll
        error = -torch.expm1(-nll)
        return prediction.mean(error.clamp_min(TINY) ** self.gamma * nll, self.class_weights, self.reduce)
