"""Losses of single pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from glioray.losses.overlap import TINY
from glioray.losses.targets import Compared, Reduce


def parse_class_weights(class_weights: Sequence[float] | None) -> Tensor | None:
    """The weights as a tensor.

    Raises:
        ValueError: one is not above 0.
    """
    if class_weights is None:
        return None
    if not class_weights or min(class_weights) <= 0:
        raise ValueError(f"class_weights is {list(class_weights)}; expected one above 0 for each channel")
    return torch.tensor(class_weights, dtype=torch.float32)


class CrossEntropyLoss(nn.Module):
    """The mean cross-entropy of a pixel: between classes, or binary for each region.

    Args:
        target: what logits are compared with.
        class_weights: one a class, background first, of a mean that they divide; or one a region, of the
            pixels inside.
        reduce: sums over ranks.
    """

    def __init__(
        self,
        target: type[Compared],
        *,
        class_weights: Sequence[float] | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        super().__init__()
        self.target, self.reduce = target, reduce
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", parse_class_weights(class_weights), persistent=False)

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        compared = self.target(logits, masks)
        return compared.mean(compared.nll, self.class_weights, self.reduce)


class FocalLoss(CrossEntropyLoss):
    """The cross-entropy of pixels times (1 - the probability of the truth) to the power `gamma`.

    Args:
        target: what logits are compared with.
        gamma: 0 is the cross-entropy.
        class_weights: as the cross-entropy's; the paper's alpha-balancing.
        reduce: sums over ranks.

    Reference: Lin et al. 2017 (arXiv 1708.02002). The mean is over pixels; MONAI's also divides by the classes.
    """

    def __init__(
        self,
        target: type[Compared],
        *,
        gamma: float = 2.0,
        class_weights: Sequence[float] | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        super().__init__(target, class_weights=class_weights, reduce=reduce)
        if gamma < 0:
            raise ValueError(f"gamma is {gamma}; expected 0 or more")
        self.gamma = gamma

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        compared = self.target(logits, masks)
        nll = compared.nll
        wrong = -torch.expm1(-nll)
        return compared.mean(wrong.clamp_min(TINY) ** self.gamma * nll, self.class_weights, self.reduce)
