"""Deformation of slices by an affine and an elastic map."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def sampling_grid(theta: Tensor, size: tuple[int, int], displacements_px: Tensor | None = None) -> Tensor:
    """(B, H, W, 2) source positions for `grid_sample`: an affine map, then an elastic one.

    Args:
        theta: (B, 2, 3), for `affine_grid`.
        size: (H, W).
        displacements_px: (B, 2, 3, 3) along (x, y) on a coarse grid from corner to corner, or None.

    Reference:
        Ronneberger et al., U-Net, 2015, arXiv 1505.04597: displacements from a Gaussian of 10 pixels on a
        3 x 3 grid, interpolated bicubically to every pixel.
    """
    height, width = size
    grid = F.affine_grid(theta, [len(theta), 1, height, width], align_corners=False)
    if displacements_px is None:
        return grid
    smooth = F.interpolate(displacements_px, size=size, mode="bicubic", align_corners=True)
    return grid + smooth.movedim(1, -1) * (2 / smooth.new_tensor([width, height]))


def deform(
    images: Tensor, masks: Tensor, grid: Tensor, is_intensity: NDArray[np.bool_]
) -> tuple[Tensor, Tensor]:
    """Sample images at `grid` linearly and masks by nearest neighbour; 0 outside.

    Args:
        images: (B, C, H, W).
        masks: (B, H, W) labels.
        grid: (B, H, W, 2) from `sampling_grid`.
        is_intensity: (C,); the other channels are masks of 0 and 1 and remain so.
    """
    moved = F.grid_sample(images, grid, align_corners=False)
    for channel in np.flatnonzero(~is_intensity):
        moved[:, channel] = (moved[:, channel] > 0.5).to(moved.dtype)
    labels = F.grid_sample(masks[:, None].to(images.dtype), grid, mode="nearest", align_corners=False)
    return moved, labels[:, 0].to(masks.dtype)
