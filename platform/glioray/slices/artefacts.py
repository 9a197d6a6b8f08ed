"""MRI artefacts for a batch on its device, with separate parameters per sample.

MONAI's k-space transforms take one image and one set of parameters per call and include neither ghosts nor
motion; TorchIO's transforms take one subject on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def simulate_low_resolution(images: Tensor, factors: NDArray[np.float64]) -> Tensor:
    """Downsample rows and columns by nearest neighbour, then upsample linearly.

    Args:
        images: (B, C, H, W).
        factors: (B, C), at least 1; how many times fewer samples along each axis. 1 changes nothing.

    Reference:
        Isensee et al., nnU-Net, 2021, supplement: low-resolution simulation, there with cubic interpolation.
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
        weight = torch.as_tensor(place - below, dtype=images.dtype, device=images.device)
        images = ends[0].lerp(ends[1], _along(weight, axis))
    return images


def add_ghosts(images: Tensor, shares: Tensor, periods: Tensor, axes: Tensor) -> Tensor:
    """Add two ghosts to each image, shifted to either side, as pulsation and breathing do.

    The lines of k-space are multiplied by a cosine along one axis. The line of frequency 0, and so the mean,
    is unchanged.

    Args:
        images: (B, C, H, W) with background 0; the result is undefined in the background.
        shares: (B, C), the fraction in [0, 1] of the image that moves to its ghosts.
        periods: (B,), the period of the cosine in lines; ghosts are shifted by (length / period) pixels.
        axes: (B,), the axis of the shift: 0 for rows, 1 for columns.
    """
    lines = _lines(images, axes)
    weights = 1 - shares[..., None, None] * (1 - torch.cos(2 * math.pi * lines / _wide(periods)))
    return _in_k_space(images, lambda spectrum: spectrum * weights)


def add_motion(images: Tensor, shifts_px: Tensor, starts: Tensor, axes: Tensor) -> Tensor:
    """Simulate a head that moves during the scan.

    The lines of k-space from a starting line outwards, on one side, come from the shifted head. The central
    lines, which determine positions, come from the head before it moved, so that masks remain valid.

    Args:
        images: (B, C, H, W) with background 0; the result is undefined in the background.
        shifts_px: (B, C, 2), along rows and columns.
        starts: (B, C), the first line of the shifted head as a fraction in (0, 0.5] of all lines.
        axes: (B,), the axis along which lines are numbered: 0 for rows, 1 for columns.
    """
    height, width = images.shape[2:]
    rows = torch.fft.fftfreq(height, device=images.device)[:, None] * shifts_px[..., 0, None, None]
    columns = torch.fft.fftfreq(width, device=images.device) * shifts_px[..., 1, None, None]
    shift = torch.polar(torch.ones_like(images), -2 * math.pi * (rows + columns))
    num_lines = torch.tensor([height, width], device=images.device)[axes]
    moved = _lines(images, axes) >= starts[..., None, None] * _wide(num_lines)
    return _in_k_space(images, lambda spectrum: torch.where(moved, spectrum * shift, spectrum))


def _in_k_space(images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `change` to the spectrum of the images and return magnitude images.

    Air is the darkest part of a scan, but in z-scores its 0 equals the mean of the brain, which would give the
    brain a false outline. So the brain is raised above 0 before the transform and lowered afterwards.
    """
    darkest = images.amin((2, 3), keepdim=True)
    lifted = torch.where(images == 0, 0, images - darkest)
    return torch.fft.ifft2(change(torch.fft.fft2(lifted))).abs() + darkest


def _lines(images: Tensor, axes: Tensor) -> Tensor:
    """(B, 1, H, W), the signed number of each frequency's line along the sample's axis."""
    height, width = images.shape[2:]
    rows = (torch.fft.fftfreq(height, device=images.device) * height)[:, None]
    columns = torch.fft.fftfreq(width, device=images.device) * width
    return torch.where(_wide(axes) == 0, rows, columns)


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _along(values: Tensor, axis: int) -> Tensor:
    """Reshape (B, C, length) to broadcast over the other axis of (B, C, H, W)."""
    return values[..., None] if axis == 2 else values[..., None, :]
