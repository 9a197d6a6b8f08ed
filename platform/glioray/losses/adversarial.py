"""Adversarial losses, by name: logits of real and generated images to a scalar.

Logits are (B, 1, h', w'), one per patch. Each loss is the mean over a rank's batch and its patches, always in
float32, so that the gradients of ranks with equal batches average to those of the whole batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from glioray.losses.targets import Reduce


class GanLoss(ABC):
    """The losses that the discriminator and the generator minimise.

    Args:
        reduce: a differentiable sum over ranks; None for a single rank.
        label_smoothing: the discriminator's target for real images is 1 minus this (one-sided: Salimans et al.
            2016, arXiv 1606.03498); the generator's targets are not smoothed.

    Raises:
        ValueError: a smoothing outside [0, 1).
    """

    def __init__(self, *, reduce: Reduce | None = None, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}; expected at least 0 and below 1")
        self.reduce, self.real_target = reduce, 1 - label_smoothing

    @abstractmethod
    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """The discriminator's loss, for logits of real and of (detached) generated images."""

    @abstractmethod
    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        """The generator's loss; gradients flow through `fake` only."""


class VanillaLoss(GanLoss):
    """Binary cross-entropy; for the generator the non-saturating form, -log D(fake).

    Reference: Goodfellow et al. 2014 (arXiv 1406.2661), as used in SRGAN (arXiv 1609.04802).
    """

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return _bce(real.float(), self.real_target) + _bce(fake.float(), 0.0)

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return _bce(fake.float(), 1.0)


class RelativisticLoss(GanLoss):
    """Binary cross-entropy of being more real than the average of the other kind (RaGAN).

    The average is over the batches of all ranks, of any sizes, and is differentiable. The terms for real and
    generated images are averaged, as in the code of ESRGAN's authors; the paper adds them.

    Reference: Jolicoeur-Martineau 2018 (arXiv 1807.00734); Wang et al. 2018 (arXiv 1809.00219).
    """

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return self._loss(real.float(), fake.float(), self.real_target, 0.0)

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return self._loss(real.detach().float(), fake.float(), 0.0, 1.0)

    def _loss(self, real: Tensor, fake: Tensor, real_target: float, fake_target: float) -> Tensor:
        counts = real.new_tensor([real.numel(), fake.numel()])
        sums = torch.stack([real.sum(), fake.sum(), *counts])
        if self.reduce is not None:
            sums = self.reduce(sums)
        real_mean, fake_mean = sums[:2] / sums[2:]
        return (_bce(real - fake_mean, real_target) + _bce(fake - real_mean, fake_target)) / 2


class LeastSquaresLoss(GanLoss):
    """Half the squared difference from 1 for real and from 0 for generated images (LSGAN).

    Reference: Mao et al. 2017 (arXiv 1611.04076).
    """

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return ((real.float() - self.real_target).square().mean() + fake.float().square().mean()) / 2

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return (fake.float() - 1).square().mean() / 2


class HingeLoss(GanLoss):
    """max(0, 1 - real) + max(0, 1 + fake) for the discriminator, -fake for the generator.

    Raises:
        ValueError: any smoothing, since there is no target to smooth.

    Reference: Lim and Ye 2017 (arXiv 1705.02894).
    """

    def __init__(self, *, reduce: Reduce | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__(reduce=reduce, label_smoothing=label_smoothing)
        if label_smoothing > 0:
            raise ValueError(
                f"label_smoothing is {label_smoothing}; expected 0, since the hinge loss has no target to smooth"
            )

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        return -fake.float().mean()


GAN_LOSSES: dict[str, type[GanLoss]] = {
    "vanilla": VanillaLoss,
    "ragan": RelativisticLoss,
    "lsgan": LeastSquaresLoss,
    "hinge": HingeLoss,
}
"""Adversarial losses by name."""


def build_gan_loss(name: str, *, reduce: Reduce | None = None, label_smoothing: float = 0.0) -> GanLoss:
    """Build an adversarial loss by name.

    Args:
        name: in `GAN_LOSSES`.
        reduce: a differentiable sum over ranks; None for a single rank.
        label_smoothing: of the discriminator's target for real images.

    Raises:
        ValueError: an unknown name, or a smoothing that the loss does not support.
    """
    if name not in GAN_LOSSES:
        raise ValueError(f"No adversarial loss '{name}'; available: {', '.join(sorted(GAN_LOSSES))}")
    return GAN_LOSSES[name](reduce=reduce, label_smoothing=label_smoothing)


def r1_penalty(real: Tensor, real_logits: Tensor) -> Tensor:
    """The mean over samples of the squared norm of d sum(logits) / d real, in float32.

    It can be differentiated again. The usual penalty is gamma / 2 times this.

    Args:
        real: (B, C, H, W), which requires gradients.
        real_logits: the discriminator's logits of `real`.

    Raises:
        ValueError: `real` does not require gradients.

    Reference: Mescheder et al. 2018 (arXiv 1801.04406).
    """
    if not real.requires_grad:
        raise ValueError(
            "real does not require gradients; call real.requires_grad_() before the discriminator"
        )
    (gradient,) = torch.autograd.grad(real_logits.float().sum(), real, create_graph=True)
    return gradient.float().square().sum((1, 2, 3)).mean()


def _bce(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))
