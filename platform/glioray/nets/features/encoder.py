"""The encoder of a trained segmentation network as a feature extractor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glioray.nets.blocks import pad_to_multiple
from glioray.nets.features.stack import check_layers
from glioray.nets.folded import FoldedNet
from glioray.nets.unet import UNet

_DARKEST = 0.05
"""Intensities below this fade to background, which is 0 before and after normalisation."""


class EncoderFeatures(nn.Module):
    """The encoder of a U-Net: images (B, C, H, W) in [0, 1] to features (B, K, h, w).

    Levels are named "level1" and so on. C must be the modalities that the network was trained on, in order;
    other extractors take any channels. A network trained on z-scores needs `mean` and `std`, or its features
    would be of images unlike those in training. Computed in float32 even under autocast. Parameters are frozen
    and the network stays in evaluation mode; gradients flow to the images.

    Args:
        net: a trained `UNet`, or a `FoldedNet` around one.
        mean: the mean of each channel of images in [0, 1] inside the brain; subtracted, except in background.
        std: the standard deviation of each channel; divides.

    Raises:
        ValueError: another network, or numbers of means or deviations that differ from its channels.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self, net: nn.Module, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.stride, unet = (net.stride, net.net) if isinstance(net, FoldedNet) else (1, net)
        if not isinstance(unet, UNet):
            raise ValueError(f"the network is a {type(unet).__name__}; expected a UNet, which has an encoder")
        self.down = unet.down.requires_grad_(False)
        self.lean, self.divisor = unet.lean, unet.divisor
        first = next(module for module in self.down.modules() if isinstance(module, nn.Conv2d))
        self.in_channels = first.in_channels // self.stride**2
        self.layers = self.levels = tuple(f"level{level}" for level in range(1, len(self.down) + 1))
        given = [list(values) for values in (mean, std) if values is not None]
        if len(given) == 1 or any(len(values) != self.in_channels for values in given):
            raise ValueError(
                f"mean is {mean} and std is {std}; expected both with one number for each of {self.in_channels} "
                "channels, or neither"
            )
        for name, values in (("mean", mean), ("std", std)):
            column = None if values is None else torch.tensor(list(values)).view(-1, 1, 1)
            self.register_buffer(name, column, persistent=False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever `mode` is."""
        return super().train(False)

    def forward(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Layer -> features (B, K, h, w), of images padded as by the network.

        Raises:
            ValueError: an unknown layer, no layer, or channels other than the network's.
        """
        check_layers(layers, self.layers)
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f"images have {x.shape[1]} channels, but this encoder was trained on {self.in_channels}; pass all its "
                "modalities, or use another extractor"
            )
        found = {}
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if self.mean is not None and self.std is not None:
                x = (x - self.mean) / self.std * (x / _DARKEST).clamp(0, 1)
            if self.stride > 1:
                x = F.pixel_unshuffle(pad_to_multiple(x, self.stride), self.stride)
            x = pad_to_multiple(x, self.divisor, at_least=2 * self.divisor)
            for level, (name, block) in enumerate(zip(self.layers, self.down, strict=True)):
                x = block(x if level == 0 or self.lean else F.max_pool2d(x, 2))
                if name in layers:
                    found[name] = x
                if len(found) == len(set(layers)):
                    break
        return {name: found[name] for name in layers}
