"""Overlap and pixel losses for segmentation.

Masks hold internal labels: 0 background, 1 NCR, 2 ED, 3 ET, 4 resection cavity.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Reduce = Callable[[Tensor], Tensor]


def region_targets(masks: Tensor) -> Tensor:
    """(B, H, W) labels to (B, 3, H, W) float32 indicators of WT, TC and ET, nested."""
    core = (masks == 1) | (masks == 3)
    return torch.stack([core | (masks == 2), core, masks == 3], dim=1).float()


def soft_dice(probs: Tensor, targets: Tensor, *, batch: bool, reduce: Reduce | None = None) -> Tensor:
    """Soft Dice of each channel: (C,) over the whole batch, or (B, C) a sample.

    Both are (B, C, H, W) in [0, 1]. Over the batch, a slice without tumour costs only its false positives,
    where a Dice a sample would jump between 0 and 1 for one pixel; `reduce` then makes it the global
    batch's over all ranks. Reference: Milletari et al. 2016 (arXiv 1606.04797), with sums in place of
    squares.
    """
    axes = (0, 2, 3) if batch else (2, 3)
    sums = torch.stack([(probs * targets).sum(axes), probs.sum(axes) + targets.sum(axes)])
    if batch and reduce is not None:
        sums = reduce(sums)
    overlap, total = sums
    return (2 * overlap + 1) / (total + 1)


class _DiceAndPixelLoss(nn.Module):
    """`dice_weight` (1 - mean soft Dice) + `ce_weight` a loss a pixel; what both are of is the subclass's."""

    def __init__(
        self,
        *,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        batch_dice: bool = True,
        reduce: Reduce | None = None,
    ) -> None:
        super().__init__()
        self.dice_weight, self.ce_weight, self.batch_dice, self.reduce = (
            dice_weight,
            ce_weight,
            batch_dice,
            reduce,
        )

    def compare(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The pixel loss, and the probabilities and targets, both (B, C, H, W), that the Dice is of."""
        raise AssertionError("a subclass says what is compared")

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        pixel_loss, probs, targets = self.compare(logits.float(), masks)
        loss = self.ce_weight * pixel_loss
        if self.dice_weight:
            dice = soft_dice(probs, targets, batch=self.batch_dice, reduce=self.reduce)
            loss = loss + self.dice_weight * (1 - dice.mean())
        return loss


class DiceCELoss(_DiceAndPixelLoss):
    """`dice_weight` (1 - mean soft Dice of the tumour labels) + `ce_weight` cross-entropy.

    Takes logits (B, K, H, W) for background and K - 1 labels, and masks (B, H, W); gives a scalar. Labels
    from K on count as background.
    """

    def compare(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        num_classes = logits.shape[1]
        labels = torch.where(masks < num_classes, masks, 0).long()
        targets = F.one_hot(labels, num_classes).movedim(-1, 1)[:, 1:].float()
        return F.cross_entropy(logits, labels), logits.softmax(1)[:, 1:], targets


class RegionDiceBCELoss(_DiceAndPixelLoss):
    """`dice_weight` (1 - mean soft Dice of WT, TC, ET) + `ce_weight` binary cross-entropy.

    Takes logits (B, 3, H, W) and masks (B, H, W); gives a scalar. Reference: the region-wise training of
    the BraTS winners (Isensee et al. 2020, arXiv 2011.00848).
    """

    def compare(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        targets = region_targets(masks)
        return F.binary_cross_entropy_with_logits(logits, targets), logits.sigmoid(), targets
