"""Losses of overlap: ratios of sums over the tumour's channels.

Over the batch (`batch_dice`), a slice without tumour costs only its false positives, where a ratio a sample
would jump between 0 and 1 for one pixel; `reduce` then makes it the global batch's over all ranks. A pixel is
added above and below every ratio, so that an empty channel that is left empty is a perfect one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glioray.losses.targets import Compared, Reduce

# Below this a power of an error counts as constant: its slope would be infinite at 0.
TINY = 1e-6


def overlap_sums(
    probs: Tensor, targets: Tensor, *, batch: bool, reduce: Reduce | None, squared: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap, predicted and true mass of each channel: each (C,) over the whole batch, or (B, C) a sample.

    Takes (B, C, H, W) in [0, 1]; `squared` sums the squares of the masses, not of the overlap.
    """
    axes = (0, 2, 3) if batch else (2, 3)
    predicted, true = (probs.square(), targets.square()) if squared else (probs, targets)
    sums = torch.stack([(probs * targets).sum(axes), predicted.sum(axes), true.sum(axes)])
    if batch and reduce is not None:
        sums = reduce(sums)
    overlap, mass, truth = sums
    return overlap, mass, truth


def dice_scores(compared: Compared, *, batch: bool, reduce: Reduce | None, squared: bool = False) -> Tensor:
    """The soft Dice of each of the tumour's channels, (C,) or (B, C), in (0, 1]."""
    overlap, mass, truth = overlap_sums(*compared.foreground, batch=batch, reduce=reduce, squared=squared)
    return (2 * overlap + 1) / (mass + truth + 1)


class DiceLoss(nn.Module):
    """1 - mean soft Dice of the tumour's channels.

    Args:
        target: what logits are compared with.
        squared: squares in the denominator, as Milletari has them; without, sums as most have them today.
        batch_dice: over the batch rather than a sample.
        reduce: sums over ranks.

    Reference: Milletari et al. 2016 (arXiv 1606.04797).
    """

    def __init__(
        self,
        target: type[Compared],
        *,
        squared: bool = False,
        batch_dice: bool = True,
        reduce: Reduce | None = None,
    ) -> None:
        super().__init__()
        self.target, self.squared, self.batch_dice, self.reduce = target, squared, batch_dice, reduce

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        compared = self.target(logits, masks)
        return (
            1 - dice_scores(compared, batch=self.batch_dice, reduce=self.reduce, squared=self.squared).mean()
        )


class TverskyLoss(nn.Module):
    """Mean over the tumour's channels of (1 - Tversky index) to the power 1 / gamma.

    Args:
        target: what logits are compared with.
        alpha: weight of false positives.
        beta: weight of false negatives; Dice is alpha = beta = 0.5.
        gamma: 1 for the plain loss; above 1 the focal one, which learns longer from channels that are nearly
            right than from those that are all wrong.
        batch_dice: over the batch rather than a sample.
        reduce: sums over ranks.

    Reference: Salehi et al. 2017 (arXiv 1706.05721), whose best alpha and beta are the defaults; Abraham and
    Khan 2019 (arXiv 1810.07842) with gamma 4/3, whose alpha is our beta.
    """

    def __init__(
        self,
        target: type[Compared],
        *,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 1.0,
        batch_dice: bool = True,
        reduce: Reduce | None = None,
    ) -> None:
        super().__init__()
        if alpha < 0 or beta < 0 or gamma <= 0:
            raise ValueError(
                f"alpha {alpha}, beta {beta}, gamma {gamma}: expected 0 or more, and a gamma above 0"
            )
        self.target, self.alpha, self.beta, self.gamma = target, alpha, beta, gamma
        self.batch_dice, self.reduce = batch_dice, reduce

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        overlap, mass, truth = overlap_sums(
            *self.target(logits, masks).foreground, batch=self.batch_dice, reduce=self.reduce
        )
        missed = self.alpha * (mass - overlap) + self.beta * (truth - overlap)
        loss = 1 - (overlap + 1) / (overlap + missed + 1)
        if self.gamma != 1:
            loss = loss.clamp_min(TINY) ** (1 / self.gamma)
        return loss.mean()


class GeneralisedDiceLoss(nn.Module):
    """1 - one Dice over all channels, the background too, each weighted by 1 / (its true pixels) squared.

    A channel that the truth does not hold weighs as the smallest that it does (MONAI's rule): its own weight
    would be infinite. Where there is none at all, all weigh alike.

    Args:
        target: what logits are compared with.
        batch_dice: over the batch rather than a sample.
        reduce: sums over ranks.

    Reference: Sudre et al. 2017 (arXiv 1707.03237).
    """

    def __init__(
        self, target: type[Compared], *, batch_dice: bool = True, reduce: Reduce | None = None
    ) -> None:
        super().__init__()
        self.target, self.batch_dice, self.reduce = target, batch_dice, reduce

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        compared = self.target(logits, masks)
        overlap, mass, truth = overlap_sums(
            compared.probs, compared.targets, batch=self.batch_dice, reduce=self.reduce
        )
        smallest = torch.where(truth > 0, truth, torch.inf).amin(-1, keepdim=True)
        sizes = torch.where(truth > 0, truth, smallest)
        # Only ratios of weights count but for the pixel added: relative to the smallest, that is one of its own.
        weights = torch.where(sizes.isfinite(), smallest / sizes, 1.0).square()
        dice = (2 * (weights * overlap).sum(-1) + 1) / ((weights * (mass + truth)).sum(-1) + 1)
        return 1 - dice.mean()
