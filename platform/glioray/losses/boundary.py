"""Losses of distances to the boundary of the truth, combined with Dice.

Dice prevents empty predictions. Distances are in pixels and computed by MONAI on the CPU, which takes
milliseconds per slice and channel. A slice in which a channel is empty or full has no boundary, and its
distance term is 0.
"""

from __future__ import annotations

from torch import Tensor, nn

from glioray.losses.overlap import dice_scores
from glioray.losses.targets import Prediction, Reduce


class _DistanceAndDice(nn.Module):
    """`dice_weight` (1 - mean soft Dice) + `weight` `distance(probs, targets)`."""

    def __init__(
        self,
        target: type[Prediction],
        distance: nn.Module,
        weight: float,
        *,
        dice_weight: float,
        batch_dice: bool,
        reduce: Reduce | None,
    ) -> None:
        super().__init__()
        self.target, self.distance, self.weight = target, distance, weight
        self.dice_weight, self.batch_dice, self.reduce = dice_weight, batch_dice, reduce

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        prediction = self.target(logits, masks)
        loss: Tensor = self.weight * self.distance(*prediction.foreground)
        if self.dice_weight:
            dice = dice_scores(prediction, batch=self.batch_dice, reduce=self.reduce)
            loss = loss + self.dice_weight * (1 - dice.mean())
        return loss


class BoundaryLoss(_DistanceAndDice):
    """The mean of p times the signed distance to the truth, plus soft Dice.

    The distance is negative inside, so the term may be negative.

    Args:
        target: `Classes` or `Regions`.
        boundary_weight: constant; the paper starts with the default, 0.01, and increases it every epoch.
        dice_weight: of the overlap; the paper uses generalised Dice.
        batch_dice: whether Dice is over the batch instead of each sample.
        reduce: a differentiable sum over ranks; None for a single rank.

    Reference: Kervadec et al. 2019 (arXiv 1812.07032).
    """

    def __init__(
        self,
        target: type[Prediction],
        *,
        boundary_weight: float = 0.01,
        dice_weight: float = 1.0,
        batch_dice: bool = True,
        reduce: Reduce | None = None,
    ) -> None:
        # MONAI takes seconds to import, so it is imported only when needed.
        from monai.losses import BoundaryLoss as Distance

        super().__init__(
            target,
            Distance(),
            boundary_weight,
            dice_weight=dice_weight,
            batch_dice=batch_dice,
            reduce=reduce,
        )


class HausdorffLoss(_DistanceAndDice):
    """The mean of squared errors times distance ^ alpha, plus soft Dice.

    Distances of a pixel are to the boundaries of the truth and of the prediction, thresholded at 0.5.

    Args:
        target: `Classes` or `Regions`.
        alpha: power of the distances.
        hausdorff_weight: constant; the paper makes both terms equal every epoch. With the default they are similar
            for predictions a few pixels off on slices of 192 x 160.
        dice_weight: of the overlap.
        batch_dice: whether Dice is over the batch instead of each sample.
        reduce: a differentiable sum over ranks; None for a single rank.

    Reference: Karimi and Salcudean 2019 (arXiv 1904.10030), the distance-transform form.
    """

    def __init__(
        self,
        target: type[Prediction],
        *,
        alpha: float = 2.0,
        hausdorff_weight: float = 0.01,
        dice_weight: float = 1.0,
        batch_dice: bool = True,
        reduce: Reduce | None = None,
    ) -> None:
        # MONAI takes seconds to import, so it is imported only when needed.
        from monai.losses import HausdorffDTLoss

        super().__init__(
            target,
            HausdorffDTLoss(alpha=alpha, include_background=True),
            hausdorff_weight,
            dice_weight=dice_weight,
            batch_dice=batch_dice,
            reduce=reduce,
        )
