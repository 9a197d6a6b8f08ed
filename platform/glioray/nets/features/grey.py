"""Grey images for a network that was trained on colour images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from glioray.nets.features.stack import ConvStack

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class GreyFeatures(nn.Module):
    """Features of each channel as a grey image: (B, C, H, W) in [0, 1] to (B * C, K, h, w).

    A channel is repeated to red, green and blue and normalised by ImageNet's mean and standard deviation, which
    equals LPIPS's own shift and scale for images in [-1, 1]. Computed in float32 even under autocast.
    Parameters are frozen and the network stays in evaluation mode; gradients flow to the images.

    Args:
        net: with its weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: ConvStack) -> None:
        super().__init__()
        self.net = net.requires_grad_(False)
        self.layers, self.levels = net.layers, net.levels
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever `mode` is."""
        return super().train(False)

    def forward(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Layer -> features (B * C, K, h, w); row b * C + c belongs to channel c of image b.

        Raises:
            ValueError: as `ConvStack.forward`.
        """
        with torch.autocast(x.device.type, enabled=False):
            grey = x.float().flatten(0, 1).unsqueeze(1)
            found: dict[str, Tensor] = self.net((grey - self.mean) / self.std, layers)
        return found
