"""Sums of overlap and pixel losses; a weight of 0 switches a term off."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from glioray.losses.overlap import TINY, dice_scores
from glioray.losses.pixel import parse_class_weights
from glioray.losses.targets import Prediction, Reduce


class DiceCELoss(nn.Module):
    """`dice_weight` (1 - mean soft Dice of the tumour channels) + `ce_weight` cross-entropy.

    Args:
        target: `Classes` or `Regions`.
        dice_weight: of the overlap.
        ce_weight: of the pixels.
        batch_dice: whether Dice is over the batch instead of each sample.
        class_weights: as in `CrossEntropyLoss`.
        reduce: a differentiable sum over ranks; None for a single rank.
    """

    def __init__(
        self,
        target: type[Prediction],
        *,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        batch_dice: bool = True,
        class_weights: Sequence[float] | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        super().__init__()
        self.target, self.dice_weight, self.ce_weight = target, dice_weight, ce_weight
        self.batch_dice, self.reduce = batch_dice, reduce
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", parse_class_weights(class_weights), persistent=False)

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        prediction = self.target(logits, masks)
        loss = self.ce_weight * self.pixel_loss(prediction)
        if self.dice_weight:
            dice = dice_scores(prediction, batch=self.batch_dice, reduce=self.reduce)
            loss = loss + self.dice_weight * self.overlap_loss(dice)
        return loss

    def overlap_loss(self, dice: Tensor) -> Tensor:
        """The loss for soft Dice scores."""
        return 1 - dice.mean()

    def pixel_loss(self, prediction: Prediction) -> Tensor:
        """The mean loss of pixels."""
        return prediction.mean(prediction.nll, self.class_weights, self.reduce)


class ExpLogLoss(DiceCELoss):
    """`dice_weight` mean (-ln Dice) ^ gamma + `ce_weight` mean (-ln p) ^ gamma.

    The exponential logarithmic loss.

    Args:
        target: `Classes` or `Regions`.
        dice_weight: of the overlap: 0.8 in the paper; 0.2, the default, in the Keras study of U-Nets.
        ce_weight: of the pixels: 0.2 in the paper; 0.7, the default, in the Keras study.
        gamma: 0.3 in the paper; below 1 it emphasises small errors, above 1 large ones.
        batch_dice: whether Dice is over the batch instead of each sample.
        class_weights: of the pixels; in the paper roots of inverse frequencies (`loss.balance` "sqrt").
        reduce: a differentiable sum over ranks; None for a single rank.

    Reference: Wong et al. 2018 (arXiv 1809.00076). Deviations: Dice excludes the background, and is over the batch.
    """

    def __init__(
        self,
        target: type[Prediction],
        *,
        dice_weight: float = 0.2,
        ce_weight: float = 0.7,
        gamma: float = 0.3,
        batch_dice: bool = True,
        class_weights: Sequence[float] | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        super().__init__(
            target,
            dice_weight=dice_weight,
            ce_weight=ce_weight,
            batch_dice=batch_dice,
            class_weights=class_weights,
            reduce=reduce,
        )
        if gamma <= 0:
            raise ValueError(f"gamma is {gamma}; expected more than 0")
        self.gamma = gamma

    def overlap_loss(self, dice: Tensor) -> Tensor:
        loss: Tensor = (-dice.log()).clamp_min(TINY) ** self.gamma
        return loss.mean()

    def pixel_loss(self, prediction: Prediction) -> Tensor:
        return prediction.mean(prediction.nll.clamp_min(TINY) ** self.gamma, self.class_weights, self.reduce)
