"""What scanners and restless patients do to an image, for a batch at once, each sample with draws of its own.

MONAI's k-space transforms and bias field take one image and one draw a call, know neither ghosts nor motion, and
TorchIO's work on one subject on the CPU; these few lines take (B, C, H, W) where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def low_resolution(images: Tensor, factors: NDArray[np.float64]) -> Tensor:
    """Images (B, C, H, W) with `factors` (B, C), each at least 1, times fewer samples along rows and columns.

    Taken by the nearest neighbour and brought back linearly. A factor of 1 changes nothing.

    Reference:
        Isensee et al., nnU-Net, 2021, supplement: the low-resolution simulation, there with cubic interpolation.
    """
    for axis in (2, 3):
        length = images.shape[axis]
        num_samples = np.maximum(np.round(length / factors), 1)[..., None]
        place = (np.arange(length) + 0.5) * num_samples / length - 0.5
        below = np.floor(place)
        ends = []
        for sample in (below, below + 1):
            nearest = (np.clip(sample, 0, num_samples - 1) + 0.5) * length / num_samples
            index = torch.as_tensor(nearest.astype(np.int64), device=images.device)
            ends.append(torch.take_along_dim(images, _along(index, axis), axis))
        share = torch.as_tensor(place - below, dtype=images.dtype, device=images.device)
        images = ends[0].lerp(ends[1], _along(share, axis))
    return images


def ghosts(images: Tensor, shares: Tensor, periods: Tensor, axes: Tensor) -> Tensor:
    """Images (B, C, H, W) of which two ghosts, shifted to either side, hold a share.

    Lines of k-space are weighed by a cosine along one axis, as pulse and breath do; the line of frequency 0
    stays, and with it the mean.

    Args:
        images: background 0; what is returned holds anything there.
        shares: (B, C) of the image, in [0, 1], that goes to its ghosts.
        periods: (B,) of the cosine in lines: the ghosts lie (length / period) pixels off.
        axes: (B,) 0 for rows and 1 for columns, along which they lie.
    """
    lines = _lines(images, axes)
    weights = 1 - shares[..., None, None] * (1 - torch.cos(2 * math.pi * lines / _wide(periods)))
    return _in_k_space(images, lambda spectrum: spectrum * weights)


def motion(images: Tensor, shifts_px: Tensor, starts: Tensor, axes: Tensor) -> Tensor:
    """Images (B, C, H, W) of heads that were shifted before the scan was over.

    The lines of k-space from one on are those of the shifted head. They are outer lines of one side: the middle,
    and with it where things are, is that of the head before it moved, so that the masks still hold.

    Args:
        images: background 0; what is returned holds anything there.
        shifts_px: (B, C, 2) along rows and columns.
        starts: (B, C) first line of the shifted head, as a share of all lines, in (0, 0.5].
        axes: (B,) 0 or 1, along which lines are numbered.
    """
    height, width = images.shape[2:]
    rows = torch.fft.fftfreq(height, device=images.device)[:, None] * shifts_px[..., 0, None, None]
    columns = torch.fft.fftfreq(width, device=images.device) * shifts_px[..., 1, None, None]
    shift = torch.polar(torch.ones_like(images), -2 * math.pi * (rows + columns))
    num_lines = torch.tensor([height, width], device=images.device)[axes]
    moved = _lines(images, axes) >= starts[..., None, None] * _wide(num_lines)
    return _in_k_space(images, lambda spectrum: torch.where(moved, spectrum * shift, spectrum))


def _in_k_space(images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The magnitude image of a changed spectrum.

    Air is the darkest in a scan, but in z-scores it is as bright as the mean of the brain: it would lend the brain
    an outline that is none. So the brain is lifted above it for as long.
    """
    darkest = images.amin((2, 3), keepdim=True)
    lifted = torch.where(images == 0, 0, images - darkest)
    return torch.fft.ifft2(change(torch.fft.fft2(lifted))).abs() + darkest


def _lines(images: Tensor, axes: Tensor) -> Tensor:
    """(B, 1, H, W) signed number of each frequency's line along each sample's axis."""
    height, width = images.shape[2:]
    rows = (torch.fft.fftfreq(height, device=images.device) * height)[:, None]
    columns = torch.fft.fftfreq(width, device=images.device) * width
    return torch.where(_wide(axes) == 0, rows, columns)


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _along(values: Tensor, axis: int) -> Tensor:
    """(B, C, length) as what broadcasts over the other axis of (B, C, H, W)."""
    return values[..., None] if axis == 2 else values[..., None, :]
