"""Losses of distance to the truth's boundary, each beside a Dice that keeps it from the empty solution.

Distances are in pixels, by MONAI's transforms on the CPU: a step with them takes milliseconds a slice and channel
longer. A slice without a channel, or full of it, has no boundary there and costs nothing.
"""

from __future__ import annotations

from torch import Tensor, nn

from glioray.losses.overlap import dice_scores
from glioray.losses.targets import Compared, Reduce


class _BesideDice(nn.Module):
    """`dice_weight` (1 - mean soft Dice of the tumour's channels) + `weight` `distance(probs, targets)`."""

    def __init__(
        self,
        target: type[Compared],
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
        compared = self.target(logits, masks)
        loss: Tensor = self.weight * self.distance(*compared.foreground)
        if self.dice_weight:
            dice = dice_scores(compared, batch=self.batch_dice, reduce=self.reduce)
            loss = loss + self.dice_weight * (1 - dice.mean())
        return loss


class BoundaryLoss(_BesideDice):
    """`boundary_weight` mean of p times the signed distance to the truth + `dice_weight` (1 - mean soft Dice).

    The distance is negative inside, so that the term may be. MONAI computes it.

    Args:
        target: what logits are compared with.
        boundary_weight: the paper begins with 0.01, the default, and raises it every epoch; here it stays.
        dice_weight: of the overlap; the paper's is a generalised Dice.
        batch_dice: over the batch rather than a sample.
        reduce: sums over ranks.

    Reference: Kervadec et al. 2019 (arXiv 1812.07032).
    """

    def __init__(
        self,
        target: type[Compared],
        *,
        boundary_weight: float = 0.01,
        dice_weight: float = 1.0,
        batch_dice: bool = True,
        reduce: Reduce | None = None,
    ) -> None:
        # Importing MONAI takes seconds, which only those pay who ask for it.
        from monai.losses import BoundaryLoss as Distance

        super().__init__(
            target,
            Distance(),
            boundary_weight,
            dice_weight=dice_weight,
            batch_dice=batch_dice,
            reduce=reduce,
        )


class HausdorffLoss(_BesideDice):
    """`hausdorff_weight` mean of squared errors by distance ^ alpha + `dice_weight` (1 - mean soft Dice).

    The distances are a pixel's to the boundary of the truth and to that of the prediction, cut at 0.5. MONAI
    computes the term.

    Args:
        target: what logits are compared with.
        alpha: power of the distances.
        hausdorff_weight: the paper makes both terms equal again every epoch; here the weight stays, and the
            default makes them alike for predictions some pixels off on slices of 192 x 160.
        dice_weight: of the overlap.
        batch_dice: over the batch rather than a sample.
        reduce: sums over ranks.

    Reference: Karimi and Salcudean 2019 (arXiv 1904.10030), the distance-transform form.
    """

    def __init__(
        self,
        target: type[Compared],
        *,
        alpha: float = 2.0,
        hausdorff_weight: float = 0.01,
        dice_weight: float = 1.0,
        batch_dice: bool = True,
        reduce: Reduce | None = None,
    ) -> None:
        # Importing MONAI takes seconds, which only those pay who ask for it.
        from monai.losses import HausdorffDTLoss

        super().__init__(
            target,
            HausdorffDTLoss(alpha=alpha, include_background=True),
            hausdorff_weight,
            dice_weight=dice_weight,
            batch_dice=batch_dice,
            reduce=reduce,
        )
