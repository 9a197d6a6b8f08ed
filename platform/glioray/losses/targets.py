"""Logits beside the truth: what a loss compares, for networks that predict classes and for those of regions.

Masks (B, H, W) hold internal labels: 0 background, 1 NCR, 2 ED, 3 ET, 4 resection cavity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over ranks and lets gradients through."""


def region_targets(masks: Tensor) -> Tensor:
    """(B, H, W) labels to (B, 3, H, W) float32 indicators of WT, TC and ET, nested."""
    core = (masks == 1) | (masks == 3)
    return torch.stack([core | (masks == 2), core, masks == 3], dim=1).float()


class Compared(ABC):
    """One batch of logits, in float32 whatever they came in, and its truth.

    Attributes:
        logits: (B, C, H, W).
        targets: (B, C, H, W), 1 where a pixel belongs to the channel and 0 elsewhere.
        num_background: leading channels that are no tumour: overlap is of the others.
    """

    num_background: int

    def __init__(self, logits: Tensor, targets: Tensor) -> None:
        self.logits, self.targets = logits.float(), targets

    @property
    @abstractmethod
    def probs(self) -> Tensor:
        """(B, C, H, W) in [0, 1]."""

    @property
    @abstractmethod
    def nll(self) -> Tensor:
        """The negative log-likelihood of each decision: (B, H, W) between classes, (B, C, H, W) for regions."""

    @abstractmethod
    def mean(self, values: Tensor, class_weights: Tensor | None, reduce: Reduce | None) -> Tensor:
        """The mean of `nll`'s like, weighted by the true class."""

    @property
    def foreground(self) -> tuple[Tensor, Tensor]:
        """Probabilities and targets of the tumour's channels."""
        return self.probs[:, self.num_background :], self.targets[:, self.num_background :]

    def _weights(self, class_weights: Tensor) -> Tensor:
        """(C, 1, 1)."""
        if len(class_weights) != self.logits.shape[1]:
            raise ValueError(
                f"class_weights has {len(class_weights)} values for logits of {self.logits.shape[1]} channels; "
                "give one a channel"
            )
        return class_weights.to(self.logits.device).view(-1, 1, 1)


class Classes(Compared):
    """A softmax over background and labels: logits (B, K, H, W). Labels from K on count as background."""

    num_background = 1

    def __init__(self, logits: Tensor, masks: Tensor) -> None:
        num_classes = logits.shape[1]
        self.labels = torch.where(masks < num_classes, masks, 0).long()
        numbers = torch.arange(num_classes, device=masks.device).view(-1, 1, 1)
        super().__init__(logits, (self.labels[:, None] == numbers).float())

    @property
    def probs(self) -> Tensor:
        return self.logits.softmax(1)

    @property
    def nll(self) -> Tensor:
        return F.cross_entropy(self.logits, self.labels, reduction="none")

    def mean(self, values: Tensor, class_weights: Tensor | None, reduce: Reduce | None) -> Tensor:
        """Over pixels; with weights divided by their sum over the batch, as torch's cross-entropy does."""
        if class_weights is None:
            return values.mean()
        weights = self._weights(class_weights)[self.labels, 0, 0]
        sums = torch.stack([(weights * values).sum(), weights.sum()])
        if reduce is not None:
            sums = reduce(sums)
        return sums[0] / sums[1]


class Regions(Compared):
    """A sigmoid each for WT, TC and ET: logits (B, 3, H, W).

    Reference: the region-wise training of the BraTS winners (Isensee et al. 2020, arXiv 2011.00848).
    """

    num_background = 0

    def __init__(self, logits: Tensor, masks: Tensor) -> None:
        if logits.shape[1] != 3:
            raise ValueError(
                f"logits have {logits.shape[1]} channels; expected 3 (WT, TC, ET) by a loss of regions: build the "
                "network with out_channels 3 or take a loss without 'region_'"
            )
        super().__init__(logits, region_targets(masks))

    @property
    def probs(self) -> Tensor:
        return self.logits.sigmoid()

    @property
    def nll(self) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.logits, self.targets, reduction="none")

    def mean(self, values: Tensor, class_weights: Tensor | None, reduce: Reduce | None) -> Tensor:
        """Over pixels and regions; weights are of the pixels inside, as torch's `pos_weight`: no sum divides."""
        if class_weights is None:
            return values.mean()
        return (values * (1 + (self._weights(class_weights) - 1) * self.targets)).mean()
