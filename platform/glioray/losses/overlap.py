"""Overlap losses: ratios of sums over pixels, for each tumour channel.

With `batch_dice` the sums are over the batch (of all ranks, by `reduce`), so that a slice without tumour costs
only its false positives; a ratio per sample would jump between 0 and 1 for one pixel. One pixel is added to the
numerator and the denominator of every ratio, so that an empty channel predicted as empty scores 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glioray.losses.targets import Prediction, Reduce

# The least error that is raised to a power, since the slope would be infinite at 0.
TINY = 1e-6


def overlap_sums(
    probs: Tensor, targets: Tensor, *, batch: bool, reduce: Reduce | None, squared: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The overlap, predicted mass and true mass of each channel, (C,), or (B, C) per sample.

    Args:
        probs: (B, C, H, W) in [0, 1].
        targets: (B, C, H, W) in [0, 1].
        batch: whether to sum over the batch instead of each sample.
        reduce: a differentiable sum over ranks, used if `batch`; None for a single rank.
        squared: whether the masses (not the overlap) are sums of squares.
    """
    axes = (0, 2, 3) if batch else (2, 3)
    predicted, true = (probs.square(), targets.square()) if squared else (probs, targets)
    sums = torch.stack([(probs * targets).sum(axes), predicted.sum(axes), true.sum(axes)])
    if batch and reduce is not None:
        sums = reduce(sums)
    overlap, mass, truth = sums
    return overlap, mass, truth


def dice_scores(
    prediction: Prediction, *, batch: bool, reduce: Reduce | None, squared: bool = False
) -> Tensor:
    """The soft Dice of each tumour channel in (0, 1]: (C,), or (B, C) per sample."""
    overlap, mass, truth = overlap_sums(*prediction.foreground, batch=batch, reduce=reduce, squared=squared)
    return (2 * overlap + 1) / (mass + truth + 1)


class DiceLoss(nn.Module):
    """1 - mean soft Dice of the tumour channels.

    Args:
        target: `Classes` or `Regions`.
        squared: whether the denominator has squares, as in Milletari, instead of plain sums, as is usual today.
        batch_dice: whether Dice is over the batch instead of each sample.
        reduce: a differentiable sum over ranks; None for a single rank.

    Reference: Milletari et al. 2016 (arXiv 1606.04797).
    """

    def __init__(
        self,
        target: type[Prediction],
        *,
        squared: bool = False,
        batch_dice: bool = True,
        reduce: Reduce | None = None,
    ) -> None:
        super().__init__()
        self.target, self.squared, self.batch_dice, self.reduce = target, squared, batch_dice, reduce

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        prediction = self.target(logits, masks)
        return (
            1
            - dice_scores(prediction, batch=self.batch_dice, reduce=self.reduce, squared=self.squared).mean()
        )


class TverskyLoss(nn.Module):
    """The mean over the tumour channels of (1 - Tversky index) to the power 1 / gamma.

    Args:
        target: `Classes` or `Regions`.
        alpha: weight of false positives.
        beta: weight of false negatives; alpha = beta = 0.5 gives Dice.
        gamma: 1, or above 1 for the focal loss, which emphasises channels with small errors.
        batch_dice: whether sums are over the batch instead of each sample.
        reduce: a differentiable sum over ranks; None for a single rank.

    Raises:
        ValueError: an argument out of range.

    Reference: Salehi et al. 2017 (arXiv 1706.05721), with its best alpha and beta as defaults; Abraham and Khan
    2019 (arXiv 1810.07842) with gamma 4/3, whose alpha is our beta.
    """

    def __init__(
        self,
        target: type[Prediction],
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
                f"alpha is {alpha}, beta is {beta}, gamma is {gamma}; expected alpha >= 0, beta >= 0 and gamma > 0"
            )
        self.target, self.alpha, self.beta, self.gamma = target, alpha, beta, gamma
        self.batch_dice, self.reduce = batch_dice, reduce

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        overlap, mass, truth = overlap_sums(
            *self.target(logits, masks).foreground, batch=self.batch_dice, reduce=self.reduce
        )
        errors = self.alpha * (mass - overlap) + self.beta * (truth - overlap)
        loss = 1 - (overlap + 1) / (overlap + errors + 1)
        if self.gamma != 1:
            loss = loss.clamp_min(TINY) ** (1 / self.gamma)
        return loss.mean()


class GeneralisedDiceLoss(nn.Module):
    """1 - one Dice over all channels, each weighted by 1 / (its true pixels) squared.

    The background is one of the channels. A channel that is absent from the truth has the weight of the
    smallest channel present (MONAI's rule), since its own would be infinite. If all are absent, all weights
    are equal.

    Args:
        target: `Classes` or `Regions`.
        batch_dice: whether Dice is over the batch instead of each sample.
        reduce: a differentiable sum over ranks; None for a single rank.

    Reference: Sudre et al. 2017 (arXiv 1707.03237).
    """

    def __init__(
        self, target: type[Prediction], *, batch_dice: bool = True, reduce: Reduce | None = None
    ) -> None:
        super().__init__()
        self.target, self.batch_dice, self.reduce = target, batch_dice, reduce

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        prediction = self.target(logits, masks)
        overlap, mass, truth = overlap_sums(
            prediction.probs, prediction.targets, batch=self.batch_dice, reduce=self.reduce
        )
        smallest = torch.where(truth > 0, truth, torch.inf).amin(-1, keepdim=True)
        sizes = torch.where(truth > 0, truth, smallest)
        # Relative to the smallest channel, so that the pixel added to the ratio is one of that channel.
        weights = torch.where(sizes.isfinite(), smallest / sizes, 1.0).square()
        dice = (2 * (weights * overlap).sum(-1) + 1) / ((weights * (mass + truth)).sum(-1) + 1)
        return 1 - dice.mean()
