"""Deep supervision: a loss of all outputs of a network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glioray.losses.targets import Prediction
from glioray.nets.outputs import TrainingOutputs

SIDE_WEIGHTS = ("equal", "halving")


def output_weights(num_outputs: int, side_weights: str) -> list[float]:
    """The weights of the logits and the side outputs, finest first; they add up to 1."""
    weights = [1.0 if side_weights == "equal" else 0.5**number for number in range(num_outputs)]
    return [weight / sum(weights) for weight in weights]


class DeepSupervision(nn.Module):
    """Apply `loss` to logits, or to each output of a `TrainingOutputs` with its weight.

    For the latter, `presence_weight` times the binary cross-entropy of the presence logits, (B, C') or (B, C', N),
    is added; their target is whether a slice has any pixel of each of the last C' channels.

    Args:
        loss: of (logits, masks).
        target: `Classes` or `Regions`.
        side_weights: "equal", or "halving", in which each weight is half of the one before.
        presence_weight: of the classification of slices.

    Raises:
        ValueError: other `side_weights`.

    Reference: Lee et al. 2015 (arXiv 1409.5185); halving as in nnU-Net (Isensee et al. 2021); presence as in the
    classification-guided module of UNet 3+ (Huang et al. 2020, arXiv 2004.08790), which has one for all organs.
    """

    def __init__(
        self, loss: nn.Module, target: type[Prediction], *, side_weights: str, presence_weight: float
    ) -> None:
        super().__init__()
        if side_weights not in SIDE_WEIGHTS:
            raise ValueError(f"side_weights is '{side_weights}'; expected {' or '.join(SIDE_WEIGHTS)}")
        self.loss, self.target = loss, target
        self.side_weights, self.presence_weight = side_weights, presence_weight

    def forward(self, outputs: Tensor | TrainingOutputs, masks: Tensor) -> Tensor:
        if isinstance(outputs, Tensor):
            loss: Tensor = self.loss(outputs, masks)
            return loss
        maps = [outputs.logits, *outputs.sides]
        weights = output_weights(len(maps), self.side_weights)
        losses = [weight * self.loss(logits, masks) for weight, logits in zip(weights, maps, strict=True)]
        if outputs.presence is not None:
            # Also with a weight of 0, since DDP waits for gradients of all parameters.
            losses.append(self.presence_weight * self._presence_loss(outputs.logits, outputs.presence, masks))
        return torch.stack(losses).sum()

    def _presence_loss(self, logits: Tensor, presence: Tensor, masks: Tensor) -> Tensor:
        present = self.target(logits, masks).targets.amax((2, 3))[:, -presence.shape[1] :]
        if presence.ndim == 3:
            present = present[..., None].expand_as(presence)
        return F.binary_cross_entropy_with_logits(presence.float(), present)
