"""Logits with their targets, for networks that predict classes or regions.

Masks (B, H, W) hold internal labels: 0 background, 1 NCR, 2 ED, 3 ET, 4 resection cavity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""A differentiable sum of a tensor over ranks."""


def region_targets(masks: Tensor) -> Tensor:
    """(B, H, W) labels to (B, 3, H, W) float32, 1 inside WT, TC and ET, which are nested."""
    core = (masks == 1) | (masks == 3)
    return torch.stack([core | (masks == 2), core, masks == 3], dim=1).float()


class Prediction(ABC):
    """A batch of logits, converted to float32, with its targets.

    Attributes:
        logits: (B, C, H, W).
        targets: (B, C, H, W), 1 where a pixel belongs to the channel, 0 elsewhere.
        num_background: the number of leading channels that are not tumour; overlap losses exclude them.
    """

    num_background: int

    def __init__(self, logits: Tensor, targets: Tensor) -> None:
        self.logits, self.targets = logits.float(), targets

    @property
    @abstractmethod
    def probs(self) -> Tensor:
        """Probabilities, (B, C, H, W) in [0, 1]."""

    @property
    @abstractmethod
    def nll(self) -> Tensor:
        """Negative log-likelihoods: (B, H, W) between classes, or (B, C, H, W) for regions."""

    @abstractmethod
    def mean(self, values: Tensor, class_weights: Tensor | None, reduce: Reduce | None) -> Tensor:
        """The mean of values shaped like `nll`, weighted by the true class."""

    @property
    def foreground(self) -> tuple[Tensor, Tensor]:
        """Probabilities and targets of the tumour channels."""
        return self.probs[:, self.num_background :], self.targets[:, self.num_background :]

    def _weights(self, class_weights: Tensor) -> Tensor:
        """(C, 1, 1)."""
        if len(class_weights) != self.logits.shape[1]:
            raise ValueError(
                f"class_weights has {len(class_weights)} numbers; expected one for each of the "
                f"{self.logits.shape[1]} channels of the logits"
            )
        return class_weights.to(self.logits.device).view(-1, 1, 1)


class Classes(Prediction):
    """A softmax over background and labels, for logits (B, K, H, W).

    Labels from K on count as background.
    """

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
        """The mean over pixels; weights are divided by their sum, as in torch's cross-entropy."""
        if class_weights is None:
            return values.mean()
        weights = self._weights(class_weights)[self.labels, 0, 0]
        sums = torch.stack([(weights * values).sum(), weights.sum()])
        if reduce is not None:
            sums = reduce(sums)
        return sums[0] / sums[1]


class Regions(Prediction):
    """A sigmoid each for WT, TC and ET, for logits (B, 3, H, W).

    Reference: region-based training (Isensee et al. 2020, arXiv 2011.00848).
    """

    num_background = 0

    def __init__(self, logits: Tensor, masks: Tensor) -> None:
        if logits.shape[1] != 3:
            raise ValueError(
                f"logits have {logits.shape[1]} channels; expected 3 (WT, TC, ET) for a loss of regions, so build the "
                "network with 3 output channels or use a loss of classes"
            )
        super().__init__(logits, region_targets(masks))

    @property
    def probs(self) -> Tensor:
        return self.logits.sigmoid()

    @property
    def nll(self) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.logits, self.targets, reduction="none")

    def mean(self, values: Tensor, class_weights: Tensor | None, reduce: Reduce | None) -> Tensor:
        """The mean over pixels and regions; weights are as torch's `pos_weight`."""
        if class_weights is None:
            return values.mean()
        return (values * (1 + (self._weights(class_weights) - 1) * self.targets)).mean()
