"""Pyramid bottlenecks, which combine features at several scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glioray.nets.blocks import ConvBlock


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: (B, in_channels, H, W) to (B, out_channels, H, W).

    A 1x1 convolution, a 3x3 convolution for each dilation rate and the mean over the image run in parallel; a
    1x1 convolution merges them.

    Reference: Chen et al. 2017 (arXiv 1706.05587). Deviation: the mean's branch has a bias and no
    normalisation, since a single pixel cannot be normalised.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        rates: dilation rates of the 3x3 convolutions.
        branch_channels: channels of each branch; None gives a quarter of out_channels, as the paper's 256 of 1024.
        norm: a name of `blocks.NORMS`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        rates: Sequence[int] = (6, 12, 18),
        branch_channels: int | None = None,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        width = branch_channels or max(1, out_channels // 4)
        self.branches = nn.ModuleList(
            [ConvBlock(in_channels, width, kernel_size=1, norm=norm, num_convs=1)]
            + [ConvBlock(in_channels, width, norm=norm, num_convs=1, dilation=rate) for rate in rates]
        )
        self.mean = ConvBlock(in_channels, width, kernel_size=1, norm="none", num_convs=1)
        self.merge = ConvBlock((len(rates) + 2) * width, out_channels, kernel_size=1, norm=norm, num_convs=1)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        merged: Tensor = self.merge(torch.cat([*(branch(x) for branch in self.branches), mean], dim=1))
        return merged


class SpatialPyramid(nn.Module):
    """Spatial pyramid pooling: (B, in_channels, H, W) to (B, out_channels, H, W).

    The input is averaged over grids of 1x1, 2x2 and 4x4 cells; each grid passes a 1x1 convolution and is
    upsampled to H x W, and a 3x3 convolution merges all of them with the input.

    Reference: He et al. 2014 (arXiv 1406.4729), with averages at their positions as in Zhao et al. 2017 (arXiv
    1612.01105), where the former takes maxima and returns a vector. Deviation: the cells' convolutions have a
    bias and no normalisation, since a single cell cannot be normalised.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        cells: cells along each side of each grid.
        branch_channels: channels of each grid; None gives a quarter of in_channels.
        norm: a name of `blocks.NORMS`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        cells: Sequence[int] = (1, 2, 4),
        branch_channels: int | None = None,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        width = branch_channels or max(1, in_channels // 4)
        self.cells = tuple(cells)
        self.branches = nn.ModuleList(
            ConvBlock(in_channels, width, kernel_size=1, norm="none", num_convs=1) for _ in cells
        )
        self.merge = ConvBlock(in_channels + len(self.cells) * width, out_channels, norm=norm, num_convs=1)

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for cells, branch in zip(self.cells, self.branches, strict=True):
            pooled = branch(F.adaptive_avg_pool2d(x, cells))
            found.append(F.interpolate(pooled, x.shape[-2:], mode="bilinear", align_corners=False))
        merged: Tensor = self.merge(torch.cat(found, dim=1))
        return merged


PYRAMIDS: dict[str, type[ASPP | SpatialPyramid]] = {"aspp": ASPP, "spp": SpatialPyramid}
"""Pyramids by the names in the networks' options."""
