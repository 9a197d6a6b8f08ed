"""U²-Net and U²-NetP, in which every level is a U-Net (Qin 2020, arXiv 2005.09007)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glioray.nets.blocks import ConvBlock, pad_to_multiple
from glioray.nets.outputs import TrainingOutputs

# Filters inside each block and at its end, in units of the width.
_DOWN = ((1 / 2, 1), (1 / 2, 2), (1, 4), (2, 8), (4, 8), (4, 8))
_UP = ((4, 8), (2, 4), (1, 2), (1 / 2, 1), (1 / 4, 1))
# Levels inside each block; 0 in the deepest blocks, which use dilated convolutions instead of pooling.
_DOWN_DEPTHS, _UP_DEPTHS = (7, 6, 5, 4, 0, 0), (0, 4, 5, 6, 7)


class ResidualUBlock(nn.Module):
    """A U-Net of `depth` levels, added to its input: (B, C, H, W) to (B, out, H, W).

    A depth of 0 gives the paper's RSU-4F: dilations of 1, 2, 4 and 8 instead of pooling.
    """

    def __init__(self, in_channels: int, inner: int, out_channels: int, *, depth: int, norm: str) -> None:
        super().__init__()

        def conv(source: int, target: int, dilation: int = 1) -> ConvBlock:
            return ConvBlock(source, target, norm=norm, num_convs=1, dilation=dilation)

        self.dilated = depth == 0
        dilations = (1, 2, 4, 8) if self.dilated else (*[1] * (depth - 1), 2)
        self.enter = conv(in_channels, out_channels)
        self.down = nn.ModuleList(
            conv(inner if level else out_channels, inner, dilation)
            for level, dilation in enumerate(dilations)
        )
        self.up = nn.ModuleList(
            conv(2 * inner, inner if level else out_channels, dilations[level])
            for level in reversed(range(len(dilations) - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        entered = x = self.enter(x)
        skips = []
        for level, conv in enumerate(self.down):
            # The deepest level is dilated, not pooled.
            pooled = 0 < level < len(self.down) - 1 and not self.dilated
            x = conv(F.max_pool2d(x, 2) if pooled else x)
            skips.append(x)
        skips.pop()
        for conv in self.up:
            skip = skips.pop()
            x = conv(torch.cat([_upsample_like(x, skip), skip], dim=1))
        return x + entered


class U2Net(nn.Module):
    """A U-Net of six levels whose blocks are U-Nets, with an output at each level.

    (B, in_channels, H, W), any H and W, to logits (B, out_channels, H, W): the input is padded with zeros to
    a multiple of 32, at least 64, and the result is cropped. In training it returns the fused logits and, as
    `sides`, the upsampled logits of the six levels.

    Deviations: leaky ReLU instead of ReLU; no biases before a normalisation, which would cancel them (14,400
    parameters fewer than published, 2,848 in U²-NetP); logits instead of sigmoids.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        width: filters of the first level, a multiple of 4.
        small: True gives U²-NetP, in which all levels have the filters of the first.
        norm: a name of `blocks.NORMS`; "batch" in the paper.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        width: int = 64,
        small: bool = False,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if width < 4 or width % 4:
            raise ValueError(f"width is {width}; expected a multiple of 4")

        def widths(level: tuple[float, int]) -> tuple[int, int]:
            return (width // 4, width) if small else (int(level[0] * width), level[1] * width)

        self.down = nn.ModuleList()
        channels, skips = in_channels, []
        for level, depth in zip(_DOWN, _DOWN_DEPTHS, strict=True):
            inner, out = widths(level)
            self.down.append(ResidualUBlock(channels, inner, out, depth=depth, norm=norm))
            channels = out
            skips.append(out)
        skips.pop()
        self.up = nn.ModuleList()
        side_channels = [channels]
        for level, depth in zip(_UP, _UP_DEPTHS, strict=True):
            inner, out = widths(level)
            self.up.append(ResidualUBlock(channels + skips.pop(), inner, out, depth=depth, norm=norm))
            channels = out
            side_channels.append(out)
        # finest first
        self.sides = nn.ModuleList(
            nn.Conv2d(channels, out_channels, 3, padding=1) for channels in reversed(side_channels)
        )
        self.fuse = nn.Conv2d(len(self.sides) * out_channels, out_channels, 1)

    def heads(self) -> list[nn.Conv2d]:
        """The convolutions that give logits."""
        return [self.fuse, *self.sides]

    def forward(self, x: Tensor) -> Tensor | TrainingOutputs:
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, 32, at_least=64)
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        levels = [skips.pop()]
        for block in self.up:
            skip = skips.pop()
            x = block(torch.cat([_upsample_like(x, skip), skip], dim=1))
            levels.append(x)
        finest = levels[-1]
        sides = [
            _upsample_like(side(features), finest)
            for side, features in zip(self.sides, reversed(levels), strict=True)
        ]
        logits: Tensor = self.fuse(torch.cat(sides, dim=1))[..., :height, :width]
        if not self.training:
            return logits
        return TrainingOutputs(logits, tuple(side[..., :height, :width] for side in sides))


def u2netp(*, width: int = 64, **options: Any) -> U2Net:
    """U²-NetP, the paper's small network, with `width` filters at every level.

    Raises:
        ValueError: an argument out of range.
    """
    return U2Net(width=width, small=True, **options)


def _upsample_like(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear")
