"""Deep supervision: a loss on all of a network's outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glioray.losses.targets import Compared
from glioray.nets.outputs import TrainingOutputs

SIDE_WEIGHTS = ("equal", "halving")


def output_weights(num_outputs: int, side_weights: str) -> list[float]:
    """The weights of the logits and the sides, finest first, that add up to 1."""
    weights = [1.0 if side_weights == "equal" else 0.5**number for number in range(num_outputs)]
    return [weight / sum(weights) for weight in weights]


class DeepSupervision(nn.Module):
    """`loss` of plain logits, or of each output of a `TrainingOutputs` by its weight.

    To the latter comes `presence_weight` binary cross-entropy of the presence logits, (B, C') or (B, C', N),
    against whether a slice holds any pixel of each of the last C' channels.

    Args:
        loss: of (logits, masks).
        target: what logits are compared with.
        side_weights: "equal", or "halving": each half of the one before.
        presence_weight: of the classification of slices.

    Reference: Lee et al. 2015 (arXiv 1409.5185); halving is nnU-Net's (Isensee et al. 2021); the presence is
    of UNet 3+'s classification-guided module (Huang et al. 2020, arXiv 2004.08790), there one for all organs.
    """

    def __init__(
        self, loss: nn.Module, target: type[Compared], *, side_weights: str, presence_weight: float
    ) -> None:
        super().__init__()
        if side_weights not in SIDE_WEIGHTS:
            raise ValueError(f"side_weights is '{side_weights}'; expected {' or '.join(SIDE_WEIGHTS)}")
        self.loss, self.target = loss, target
        self.side_weights, self.presence_weight = side_weights, presence_weight

    def forward(self, outputs: Tensor | TrainingOutputs, masks: Tensor) -> Tensor:
        if isinstance(outputs, Tensor):
            plain: Tensor = self.loss(outputs, masks)
            return plain
        maps = [outputs.logits, *outputs.sides]
        weights = output_weights(len(maps), self.side_weights)
        losses = [weight * self.loss(logits, masks) for weight, logits in zip(weights, maps, strict=True)]
        if outputs.presence is not None:
            # With a weight of 0 too: ranks wait for a gradient of every parameter.
            losses.append(self.presence_weight * self._presence_loss(outputs.logits, outputs.presence, masks))
        return torch.stack(losses).sum()

    def _presence_loss(self, logits: Tensor, presence: Tensor, masks: Tensor) -> Tensor:
        held = self.target(logits, masks).targets.amax((2, 3))[:, -presence.shape[1] :]
        if presence.ndim == 3:
            held = held[..., None].expand_as(presence)
        return F.binary_cross_entropy_with_logits(presence.float(), held)
