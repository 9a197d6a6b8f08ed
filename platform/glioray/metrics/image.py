"""Metrics of image quality, over the foreground and over whole images.

Images are (N, H, W) float32 in [0, 1], with channels folded into N; only `image_metrics` clips them. In torch, for
a batch at once and with masks; MONAI's and scikit-image's metrics take no mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

PerceptualDistance = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(a, b, mask), each (N, 1, H, W), to two (N,), inside the mask and overall; as `Lpips.foreground_and_whole`."""

_MIN_MSE = 1e-10  # equal images give 100 dB rather than infinity
_TINY = 1e-12


def psnr(sr: Tensor, hr: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB with a peak of 1, (N,); 100 for equal images.

    Args:
        sr: (N, H, W).
        hr: (N, H, W), the truth.
        mask: (N, H, W) bool, the pixels that count; None for all. An image with an empty mask gives NaN.
    """
    return -10 * torch.log10(_mean((sr - hr).square(), mask).clamp_min(_MIN_MSE))


def nrmse(sr: Tensor, hr: Tensor, mask: Tensor | None = None) -> Tensor:
    """The root mean squared error over the truth's root mean square, (N,).

    Arguments as in `psnr`.
    """
    power = _mean(hr.square(), mask).clamp_min(_TINY)
    return (_mean((sr - hr).square(), mask) / power).sqrt()


def ssim(sr: Tensor, hr: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity, (N,), at most 1.

    The window is a Gaussian of 11 pixels with sigma 1.5; the data range is 1. Without a mask, the mean is
    over windows inside the image; with one, over windows whose centre is in the mask, with images mirrored at
    their edges. Arguments as in `psnr`.

    Raises:
        ValueError: images smaller than the window.

    Reference: Wang et al. 2004, with population covariances as in the paper.
    """
    reach = 5
    if min(hr.shape[-2:]) <= 2 * reach:
        raise ValueError(
            f"images have {tuple(hr.shape[-2:])} pixels; expected more than {2 * reach} per side"
        )
    x = torch.arange(-reach, reach + 1, dtype=torch.float32, device=hr.device)
    window = torch.exp(-0.5 * (x / 1.5).square())
    window = window / window.sum()
    maps = _filtered(torch.stack([sr, hr, sr * sr, hr * hr, sr * hr]), window, window)
    mean_a, mean_b, square_a, square_b, product = maps
    c1, c2 = 0.01**2, 0.03**2
    covariance = product - mean_a * mean_b
    variances = square_a - mean_a.square() + square_b - mean_b.square()
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    similarity = luminance * (2 * covariance + c2) / (variances + c2)
    if mask is None:
        similarity = similarity[:, reach:-reach, reach:-reach]
    return _mean(similarity, mask)


def hfen(sr: Tensor, hr: Tensor, mask: Tensor | None = None) -> Tensor:
    """High-frequency error norm, (N,): the error of edges relative to the edges.

    Edges are found by a Laplacian of Gaussian (15 x 15 pixels, sigma 1.5), with images mirrored at their edges.
    Arguments as in `psnr`.

    Reference: Ravishankar and Bresler 2011, with the norm of each image relative to that of its truth.
    """
    reach, sigma = 7, 1.5
    x = torch.arange(-reach, reach + 1, dtype=torch.float32, device=hr.device)
    gaussian = torch.exp(-0.5 * (x / sigma).square())
    gaussian = gaussian / gaussian.sum()
    second = gaussian * (x.square() - sigma**2) / sigma**4
    second = second - second.sum() * gaussian  # no response to flat areas
    both = torch.stack([sr - hr, hr])
    edges = _filtered(both, second, gaussian) + _filtered(both, gaussian, second)
    error, real = edges.square()
    return (_mean(error, mask) / _mean(real, mask).clamp_min(_TINY)).sqrt()


def hf_db(sr: Tensor, hr: Tensor, lr_size: tuple[int, int]) -> float:
    """The energy of fine detail in `sr` relative to the truth, in dB.

    0 means equal energy; bicubic interpolation is far below. Fine detail is above the Nyquist frequency of
    the low resolution, along either axis.

    Args:
        sr: (N, H, W).
        hr: (N, H, W), the truth.
        lr_size: (h, w) of the low resolution.
    """
    above = above_nyquist((hr.shape[-2], hr.shape[-1]), lr_size).to(hr.device)
    generated, real = (power_spectrum(images)[above].mean() + _TINY for images in (sr, hr))
    return float(10 * torch.log10(generated / real))


def power_spectrum(images: Tensor) -> Tensor:
    """The mean power spectrum of images, (H, W), with the zero frequency first.

    Images are multiplied by a Hann window.

    Args:
        images: (N, H, W).
    """
    height, width = images.shape[-2:]
    rows = torch.hann_window(height, device=images.device)
    columns = torch.hann_window(width, device=images.device)
    half = torch.fft.rfft2(images * (rows[:, None] * columns))
    power = torch.view_as_real(half).square().sum(-1).mean(0)
    # The spectrum of a real image is symmetric about the zero frequency.
    rotated = torch.cat([power[:1], power[1:].flip(0)])
    return torch.cat([power, rotated[:, 1 : (width + 1) // 2].flip(1)], 1)


def above_nyquist(size: tuple[int, int], lr_size: tuple[int, int]) -> Tensor:
    """(H, W) bool, the frequencies above those of images of `lr_size`.

    In the order of `power_spectrum`.
    """
    beyond = [
        (torch.fft.fftfreq(full, 1 / full).abs() > low / 2) for full, low in zip(size, lr_size, strict=True)
    ]
    return beyond[0][:, None] | beyond[1][None]


def image_metrics(
    sr: Tensor,
    hr: Tensor,
    bicubic: Tensor,
    *,
    lr_size: tuple[int, int],
    lpips: PerceptualDistance | None = None,
    previous: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """All metrics by name, as means over the images; all finite.

    `psnr`, `ssim`, `nrmse`, `hfen` and, if given, `lpips` are over the foreground (where the truth is above 0),
    without images that have none. `..._whole` are over whole images, `bicubic_...` those of bicubic interpolation.
    Further: `hf_db` and `bicubic_hf_db`; `gain_psnr` over bicubic; and `quality`, which is
    `clip(1 - lpips / bicubic_lpips, -1, 1)`, or with `hfen` if there is no `lpips`.

    Args:
        sr: (N, H, W); clipped to [0, 1], with NaN as 0.
        hr: (N, H, W) in [0, 1], the truth.
        bicubic: (N, H, W), the interpolation of the same low resolution; clipped as `sr`.
        lr_size: (h, w) of the low resolution.
        lpips: a distance of images, or None.
        previous: a result for other outputs on the same images; its bicubic metrics are reused, which saves half
            of the time with LPIPS.

    Raises:
        ValueError: no image has a foreground.
    """
    mask = hr > 0
    has_foreground = mask.flatten(1).any(1)
    if not has_foreground.any():
        raise ValueError(f"none of the {len(hr)} images has a foreground; expected values above 0")
    metrics = {name: value for name, value in (previous or {}).items() if name.startswith("bicubic_")}
    for prefix, images in (("", sr), ("bicubic_", bicubic)):
        if previous is not None and prefix:
            continue
        images = torch.nan_to_num(images.float(), nan=0.0).clamp(0, 1)
        for name, metric in (("psnr", psnr), ("ssim", ssim), ("nrmse", nrmse), ("hfen", hfen)):
            inside = metric(images[has_foreground], hr[has_foreground], mask[has_foreground])
            metrics[f"{prefix}{name}"] = float(inside.mean())
            metrics[f"{prefix}{name}_whole"] = float(metric(images, hr).mean())
        if lpips is not None:
            inside, whole = lpips(images[:, None], hr[:, None], mask[:, None])
            metrics[f"{prefix}lpips"] = float(inside[has_foreground].mean())
            metrics[f"{prefix}lpips_whole"] = float(whole.mean())
        metrics[f"{prefix}hf_db"] = hf_db(images, hr, lr_size)
    metrics["gain_psnr"] = metrics["psnr"] - metrics["bicubic_psnr"]
    distance = "hfen" if lpips is None else "lpips"
    ratio = metrics[distance] / max(metrics[f"bicubic_{distance}"], _TINY)
    metrics["quality"] = min(max(1 - ratio, -1.0), 1.0)
    return metrics


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of each image over its mask, (N,)."""
    if mask is None:
        return values.flatten(1).mean(1)
    return torch.where(mask, values, 0).flatten(1).sum(1) / mask.flatten(1).sum(1)


def _filtered(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Filter (..., H, W) by one kernel along each axis, with mirrored edges.

    Products with banded matrices are faster on a CPU than convolutions of a single channel.
    """
    height, width = images.shape[-2:]
    return _banded(rows, height) @ images @ _banded(columns, width).T


def _banded(kernel: Tensor, length: int) -> Tensor:
    """(length, length), the matrix that filters a column by `kernel`."""
    reach = len(kernel) // 2
    place = torch.arange(length, device=kernel.device)
    source = place[:, None] + torch.arange(-reach, reach + 1, device=kernel.device)
    source = torch.where(
        source < 0, -1 - source, torch.where(source >= length, 2 * length - 1 - source, source)
    )
    matrix = kernel.new_zeros(length, length)
    return matrix.scatter_add_(1, source, kernel.expand(length, -1).contiguous())
