"""How near images are to the truth: over the foreground and over all of it.

Images are (N, H, W) float32 in [0, 1]; channels are folded into N. Nothing here clips: `image_figures` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

PerceptualDistance = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(a, b, mask), each (N, 1, H, W), to two times (N,): over the mask and over all; `Lpips.foreground_and_whole`."""

_MIN_MSE = 1e-10  # equal images: 100 dB rather than infinity
_TINY = 1e-12


def psnr(sr: Tensor, hr: Tensor, mask: Tensor | None = None) -> Tensor:
    """(N,) peak signal-to-noise ratio in dB for a peak of 1; 100 for equal images.

    Args:
        sr: (N, H, W).
        hr: likewise, the truth.
        mask: (N, H, W) bool, what counts; None for all of it. An image of which nothing counts has NaN.
    """
    return -10 * torch.log10(_mean((sr - hr).square(), mask).clamp_min(_MIN_MSE))


def nrmse(sr: Tensor, hr: Tensor, mask: Tensor | None = None) -> Tensor:
    """(N,) root of the mean squared error over that of the truth's mean square; arguments as of `psnr`."""
    power = _mean(hr.square(), mask).clamp_min(_TINY)
    return (_mean((sr - hr).square(), mask) / power).sqrt()


def ssim(sr: Tensor, hr: Tensor, mask: Tensor | None = None) -> Tensor:
    """(N,) structural similarity, at most 1: Gaussian window of 11 pixels, sigma 1.5, data range 1.

    Without a mask it is the mean over the windows that lie inside the image; with one, over the windows whose
    middle counts, mirrored at the image's edge. Further arguments as of `psnr`.

    Raises:
        ValueError: an image smaller than its window.

    Reference: Wang et al. 2004, with covariances that are not corrected for the sample, as in the paper.
    """
    reach = 5
    if min(hr.shape[-2:]) <= 2 * reach:
        raise ValueError(f"images of {tuple(hr.shape[-2:])} pixels; expected more than {2 * reach} a side")
    x = torch.arange(-reach, reach + 1, dtype=torch.float32, device=hr.device)
    window = torch.exp(-0.5 * (x / 1.5).square())
    window = window / window.sum()
    maps = _filtered(torch.stack([sr, hr, sr * sr, hr * hr, sr * hr]), window, window)
    mean_a, mean_b, square_a, square_b, product = maps
    c1, c2 = 0.01**2, 0.03**2
    together = product - mean_a * mean_b
    apart = square_a - mean_a.square() + square_b - mean_b.square()
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    similarity = luminance * (2 * together + c2) / (apart + c2)
    if mask is None:
        similarity = similarity[:, reach:-reach, reach:-reach]
    return _mean(similarity, mask)


def hfen(sr: Tensor, hr: Tensor, mask: Tensor | None = None) -> Tensor:
    """(N,) high-frequency error norm: what is wrong with the edges, as a share of the edges; 0 for equal images.

    Edges are what a Laplacian of Gaussian (15 x 15 pixels, sigma 1.5) leaves, mirrored at the image's edge.
    Arguments as of `psnr`.

    Reference: Ravishankar and Bresler 2011, with the norm of each image relative to that of its truth.
    """
    reach, sigma = 7, 1.5
    x = torch.arange(-reach, reach + 1, dtype=torch.float32, device=hr.device)
    bell = torch.exp(-0.5 * (x / sigma).square())
    bell = bell / bell.sum()
    curve = bell * (x.square() - sigma**2) / sigma**4
    curve = curve - curve.sum() * bell  # flat areas have no edges
    both = torch.stack([sr - hr, hr])
    edges = _filtered(both, curve, bell) + _filtered(both, bell, curve)
    wrong, real = edges.square()
    return (_mean(wrong, mask) / _mean(real, mask).clamp_min(_TINY)).sqrt()


def hf_db(sr: Tensor, hr: Tensor, lr_size: tuple[int, int]) -> float:
    """The energy of detail in `sr` against the real one, in dB: 0 is as much, bicubic is far below.

    Detail is what lies above the Nyquist frequency of low resolution, along either axis.

    Args:
        sr: (N, H, W).
        hr: likewise, the truth.
        lr_size: (h, w) of low resolution.
    """
    above = above_nyquist((hr.shape[-2], hr.shape[-1]), lr_size).to(hr.device)
    made, real = (power_spectrum(images)[above].mean() + _TINY for images in (sr, hr))
    return float(10 * torch.log10(made / real))


def power_spectrum(images: Tensor) -> Tensor:
    """(H, W) the mean of the images' power spectra, under a Hann window; the zero frequency comes first.

    Args:
        images: (N, H, W).
    """
    height, width = images.shape[-2:]
    rows = torch.hann_window(height, device=images.device)
    columns = torch.hann_window(width, device=images.device)
    half = torch.fft.rfft2(images * (rows[:, None] * columns))
    power = torch.view_as_real(half).square().sum(-1).mean(0)
    # Of real images the other half is the same, turned round the zero frequency.
    turned = torch.cat([power[:1], power[1:].flip(0)])
    return torch.cat([power, turned[:, 1 : (width + 1) // 2].flip(1)], 1)


def above_nyquist(size: tuple[int, int], lr_size: tuple[int, int]) -> Tensor:
    """(H, W) bool: the frequencies that images of `lr_size` cannot hold, in the order of `power_spectrum`."""
    beyond = [
        (torch.fft.fftfreq(full, 1 / full).abs() > low / 2) for full, low in zip(size, lr_size, strict=True)
    ]
    return beyond[0][:, None] | beyond[1][None]


def image_figures(
    sr: Tensor,
    hr: Tensor,
    bicubic: Tensor,
    *,
    lr_size: tuple[int, int],
    lpips: PerceptualDistance | None = None,
    known: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Every figure by its name, as means over the images; all finite.

    `psnr`, `ssim`, `nrmse`, `hfen` and, with an extractor at hand, `lpips`: over the foreground, which is where
    the truth is above 0, without the images that have none; over everything with `_whole`; of bicubic
    interpolation with the prefix `bicubic_`. `hf_db` and `bicubic_hf_db`; `gain_psnr` over bicubic; and
    `quality = clip(1 - lpips / bicubic_lpips, -1, 1)`, of `hfen` where there is no extractor.

    Args:
        sr: (N, H, W), and like `bicubic` clipped to [0, 1] here, what is no number as 0.
        hr: (N, H, W) in [0, 1], the truth.
        bicubic: (N, H, W), what interpolation makes of the same low resolution.
        lr_size: (h, w) of that.
        lpips: a distance of images.
        known: what this function returned for other outputs on the same images, whose figures of bicubic are taken
            over: with LPIPS they are half of the time.

    Raises:
        ValueError: no image has a foreground.
    """
    mask = hr > 0
    seen = mask.flatten(1).any(1)
    if not seen.any():
        raise ValueError(f"none of the {len(hr)} images has a foreground; expected values above 0")
    figures = {name: value for name, value in (known or {}).items() if name.startswith("bicubic_")}
    for prefix, images in (("", sr), ("bicubic_", bicubic)):
        if known is not None and prefix:
            continue
        images = torch.nan_to_num(images.float(), nan=0.0).clamp(0, 1)
        for name, figure in (("psnr", psnr), ("ssim", ssim), ("nrmse", nrmse), ("hfen", hfen)):
            figures[f"{prefix}{name}"] = float(figure(images[seen], hr[seen], mask[seen]).mean())
            figures[f"{prefix}{name}_whole"] = float(figure(images, hr).mean())
        if lpips is not None:
            inside, whole = lpips(images[:, None], hr[:, None], mask[:, None])
            figures[f"{prefix}lpips"] = float(inside[seen].mean())
            figures[f"{prefix}lpips_whole"] = float(whole.mean())
        figures[f"{prefix}hf_db"] = hf_db(images, hr, lr_size)
    figures["gain_psnr"] = figures["psnr"] - figures["bicubic_psnr"]
    judge = "hfen" if lpips is None else "lpips"
    ratio = figures[judge] / max(figures[f"bicubic_{judge}"], _TINY)
    figures["quality"] = min(max(1 - ratio, -1.0), 1.0)
    return figures


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """(N,) over the pixels that count."""
    if mask is None:
        return values.flatten(1).mean(1)
    return torch.where(mask, values, 0).flatten(1).sum(1) / mask.flatten(1).sum(1)


def _filtered(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(..., H, W) by one kernel along each axis, mirrored at the edge with its outermost pixels twice.

    As products with banded matrices, which on a CPU are faster than convolutions of one channel.
    """
    height, width = images.shape[-2:]
    return _banded(rows, height) @ images @ _banded(columns, width).T


def _banded(kernel: Tensor, length: int) -> Tensor:
    """(length, length): what multiplies a column so that it is filtered."""
    reach = len(kernel) // 2
    place = torch.arange(length, device=kernel.device)
    source = place[:, None] + torch.arange(-reach, reach + 1, device=kernel.device)
    source = torch.where(
        source < 0, -1 - source, torch.where(source >= length, 2 * length - 1 - source, source)
    )
    matrix = kernel.new_zeros(length, length)
    return matrix.scatter_add_(1, source, kernel.expand(length, -1).contiguous())
