"""Named degradations from high to low resolution, and bicubic upsampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glioray.tasks.superres.config import DegradeConfig

Size = tuple[int, int]


def degrade(
    hr: Tensor, size: Size, config: DegradeConfig, rngs: Sequence[np.random.Generator] | None = None
) -> Tensor:
    """Degrade images (B, C, H, W) in [0, 1] to low resolution (B, C, h, w) float32.

    Pixels are areas that fill the same field of view, so the centre stays at the centre whatever the ratio (the
    convention of `interpolate(align_corners=False)`).

    Args:
        hr: the images.
        size: (h, w) of the result.
        config: the degradation, and its noise.
        rngs: one generator per image, to draw its noise; None adds no noise, as when outputs are degraded to compare
            them with their inputs.
    """
    lr = _DEGRADATIONS[config.name](hr.float(), size, config)
    if rngs is None or config.noise == 0:
        return lr
    draws = [torch.from_numpy(rng.standard_normal((2, *lr.shape[1:]), dtype=np.float32)) for rng in rngs]
    noise = config.noise * torch.stack(draws, 1).to(lr.device)
    # A magnitude image: noise is complex until the scanner takes the modulus (Gudbjartsson, Patz 1995).
    return torch.hypot(lr + noise[0], noise[1]) if config.name == "kspace" else lr + noise[0]


def upsample(lr: Tensor, size: Size) -> Tensor:
    """Upsample to (B, C, H, W) by bicubic interpolation, the baseline of every model."""
    return F.interpolate(lr.float(), size=size, mode="bicubic", align_corners=False)


def resize(images: Tensor, size: Size) -> Tensor:
    """Resize to (B, C, h, w) by antialiased bicubic interpolation, clipped to [0, 1]."""
    resized: Tensor = F.interpolate(
        images.float(), size=size, mode="bicubic", align_corners=False, antialias=True
    )
    return resized.clamp(0, 1)


def _bicubic_aa(hr: Tensor, size: Size, config: DegradeConfig) -> Tensor:
    return F.interpolate(hr, size=size, mode="bicubic", align_corners=False, antialias=True)


def _kspace(hr: Tensor, size: Size, config: DegradeConfig) -> Tensor:
    """Crop the centre of the Fourier plane, as a scanner acquires fewer lines, and take the modulus.

    A plain crop samples at the corner of each low-resolution pixel. The linear phase moves samples to its centre,
    (s - 1) / 2 high-resolution pixels further; without it, upsampling would be shifted by that much.
    """
    height, width = hr.shape[-2:]
    plane = torch.fft.fft2(hr)
    for axis, (old, new) in enumerate(((height, size[0]), (width, size[1]))):
        dim = axis - 2
        kept = torch.fft.fftfreq(new, 1 / new, device=hr.device)  # whole numbers, negative ones last
        plane = plane.index_select(dim, kept.long() % old)
        shift_px = (old / new - 1) / 2
        phase = torch.exp(2j * math.pi * kept * shift_px / old)
        if new % 2 == 0:
            # The Nyquist line has no partner of opposite sign: take half of each, its cosine part.
            phase[new // 2] = phase[new // 2].real.clone()
        plane = plane * (phase[:, None] if axis == 0 else phase[None, :])
    return torch.fft.ifft2(plane).abs() * (size[0] * size[1] / (height * width))


def _gaussian(hr: Tensor, size: Size, config: DegradeConfig) -> Tensor:
    """Blur by `sigma` low-resolution pixels, then sample at the centres of low-resolution pixels."""
    blurred = hr
    for dim, (old, new) in ((2, (hr.shape[2], size[0])), (3, (hr.shape[3], size[1]))):
        sigma = config.sigma * old / new
        reach = max(1, math.ceil(3 * sigma))
        x = torch.arange(-reach, reach + 1, dtype=torch.float32, device=hr.device)
        weights = torch.exp(-0.5 * (x / sigma) ** 2)
        kernel = (weights / weights.sum()).repeat(hr.shape[1], 1, 1)
        kernel = kernel[..., None] if dim == 2 else kernel[:, :, None]
        padding = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
        blurred = F.conv2d(F.pad(blurred, padding, mode="replicate"), kernel, groups=hr.shape[1])
    return F.interpolate(blurred, size=size, mode="bilinear", align_corners=False)


_DEGRADATIONS: dict[str, Callable[[Tensor, Size, DegradeConfig], Tensor]] = {
    "bicubic_aa": _bicubic_aa,
    "kspace": _kspace,
    "gaussian": _gaussian,
}
