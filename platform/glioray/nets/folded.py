"""Any network at a half or a quarter of the resolution, without averaging pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from glioray.nets.blocks import pad_to_multiple
from glioray.nets.outputs import TrainingOutputs


class FoldedNet(nn.Module):
    """Folds squares of pixels into channels before a network and unfolds its output.

    The network runs at 1 / stride of the resolution, for about 1 / stride^2 of the cost. It must take
    in_channels * stride^2 channels and give out_channels * stride^2 channels.

    Reference: Shi et al. 2016 (arXiv 1609.05158).
    """

    def __init__(self, net: nn.Module, stride: int) -> None:
        super().__init__()
        self.net, self.stride = net, stride

    def heads(self) -> list[nn.Conv2d]:
        """The convolutions that give logits."""
        found: list[nn.Conv2d] = self.net.heads()  # type: ignore[operator]
        return found

    def forward(self, x: Tensor) -> Tensor | TrainingOutputs:
        height, width = x.shape[-2:]
        if getattr(self.net, "fixed", False):
            # As in `monai_nets.MonaiNet`, but before other sizes are derived from these.
            height, width = int(height), int(width)

        def unfold(logits: Tensor) -> Tensor:
            return F.pixel_shuffle(logits, self.stride)[..., :height, :width]

        found = self.net(F.pixel_unshuffle(pad_to_multiple(x, self.stride), self.stride))
        if not isinstance(found, TrainingOutputs):
            return unfold(found)
        presence = found.presence
        if presence is not None:
            # Each pixel of a square has its own gate: with only the largest, the others would not be trained.
            presence = presence.unflatten(1, (-1, self.stride**2))
        return TrainingOutputs(unfold(found.logits), tuple(unfold(side) for side in found.sides), presence)
