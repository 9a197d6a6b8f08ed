"""Pixel losses for super-resolution, by name: sr and hr, (B, C, H, W), to a scalar."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# Of the Charbonnier loss: smaller differences count by their square, larger ones by their size.
EPSILON = 1e-3


def l1(sr: Tensor, hr: Tensor) -> Tensor:
    """The mean absolute difference, in float32."""
    return _difference(sr, hr).abs().mean()


def mse(sr: Tensor, hr: Tensor) -> Tensor:
    """The mean squared difference, in float32."""
    return _difference(sr, hr).square().mean()


def charbonnier(sr: Tensor, hr: Tensor) -> Tensor:
    """The mean of sqrt(difference^2 + 1e-6), in float32; smooth at 0.

    Reference: Lai et al. 2017 (arXiv 1704.03915).
    """
    return (_difference(sr, hr).square() + EPSILON**2).sqrt().mean()


PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "mse": mse,
    "charbonnier": charbonnier,
}
"""Pixel losses by name."""


def build_pixel_loss(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a pixel loss by name: (sr, hr) to a scalar.

    The loss raises ValueError if shapes differ.

    Raises:
        ValueError: an unknown name.
    """
    if name not in PIXEL_LOSSES:
        raise ValueError(f"No pixel loss '{name}'; available: {', '.join(sorted(PIXEL_LOSSES))}")
    return PIXEL_LOSSES[name]


def _difference(sr: Tensor, hr: Tensor) -> Tensor:
    if sr.shape != hr.shape:
        raise ValueError(f"sr has the shape {tuple(sr.shape)}; expected that of hr, {tuple(hr.shape)}")
    return sr.float() - hr.float()
