"""Discriminators: images to logits of being real."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from glioray.nets.blocks import build_norm

# The least pixels per side for any discriminator with its default depth.
MIN_SIZE = 32


class SpectralConv2d(nn.Conv2d):
    """torch's convolution with a weight that is computed in float32 even under autocast.

    On GPUs, autocast would round the power iteration, of which torch runs one step per forward in training.

    Reference: Miyato et al. 2018 (arXiv 1802.05957).
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight
        return self._conv_forward(x, weight, self.bias)


class PatchDiscriminator(nn.Module):
    """PatchGAN: (B, channels, H, W) to logits (B, 1, h', w'), one per patch.

    With 3 layers a patch has 70 x 70 pixels.

    Args:
        channels: of the images.
        width: channels of the first layer; each strided layer doubles them, up to eight times.
        num_layers: strided convolutions.
        norm: "spectral" (all convolutions), "none" or "instance" (all layers but the first and the last).

    Raises:
        ValueError: another norm, a number below 1, or images with a side of less than `min_size` pixels.

    Reference: Isola et al. 2017 (arXiv 1611.07004), there with batch normalisation.
    """

    def __init__(
        self, *, channels: int, width: int = 64, num_layers: int = 3, norm: str = "spectral"
    ) -> None:
        super().__init__()
        _check_options(
            norm, ("spectral", "none", "instance"), channels=channels, width=width, num_layers=num_layers
        )
        self.min_size = max(MIN_SIZE, 3 * 2**num_layers)
        widths = [channels, *(width * min(2**number, 8) for number in range(num_layers + 1))]
        layers: list[nn.Module] = []
        for number, (source, target) in enumerate(pairwise(widths)):
            inner = norm if norm == "spectral" or number > 0 else "none"
            layers += _layer(source, target, inner, kernel=4, stride=2 if number < num_layers else 1)
        layers.append(_conv(norm)(widths[-1], 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        _check_size(x, self.min_size)
        logits: Tensor = self.layers(x)
        return logits


class VGGDiscriminator(nn.Module):
    """SRGAN's discriminator: (B, channels, H, W) to logits (B, 1, 1, 1).

    Args:
        channels: of the images.
        width: channels of the first layer; every second layer halves the size and the next doubles the channels.
        norm: "batch" (over all ranks; not in the first layer), "spectral" (all convolutions) or "none".

    Raises:
        ValueError: another norm, a number below 1, or images with a side of less than 32 pixels.

    Reference: Ledig et al. 2017 (arXiv 1609.04802). Deviation: a mean over positions instead of flattening,
    which would fix the size of images; 5.2 M parameters instead of 23.6 M at 96 x 96.
    """

    def __init__(self, *, channels: int, width: int = 64, norm: str = "batch") -> None:
        super().__init__()
        _check_options(norm, ("batch", "spectral", "none"), channels=channels, width=width)
        widths = [channels, *(width * 2 ** (number // 2) for number in range(8))]
        layers: list[nn.Module] = []
        for number, (source, target) in enumerate(pairwise(widths)):
            inner = norm if norm == "spectral" or number > 0 else "none"
            layers += _layer(source, target, inner, kernel=3, stride=1 + number % 2)
        self.layers = nn.Sequential(*layers)
        conv = _conv(norm)
        self.head = nn.Sequential(
            conv(widths[-1], 16 * width, 1), nn.LeakyReLU(0.2, inplace=True), conv(16 * width, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        _check_size(x, MIN_SIZE)
        logits: Tensor = self.head(self.layers(x).mean((2, 3), keepdim=True))
        return logits


class UNetDiscriminator(nn.Module):
    """Real-ESRGAN's discriminator: (B, channels, H, W) to logits (B, 1, H, W), one per pixel.

    Args:
        channels: of the images.
        width: channels at full size; doubled at each of three levels down.
        norm: "spectral" (except in the first and the last convolution, as in the paper) or "none".

    Raises:
        ValueError: another norm, a number below 1, or images with a side of less than 32 pixels.

    Reference: Wang et al. 2021 (arXiv 2107.10833). Deviation: features are upsampled to the size of the skip
    rather than by two, for odd sizes.
    """

    def __init__(self, *, channels: int, width: int = 64, norm: str = "spectral") -> None:
        super().__init__()
        _check_options(norm, ("spectral", "none"), channels=channels, width=width)
        conv = _conv(norm)
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.downs = nn.ModuleList(
            conv(source, target, 4, 2, padding=1, bias=False) for source, target in pairwise(widths)
        )
        self.ups = nn.ModuleList(
            conv(source, target, 3, padding=1, bias=False) for source, target in pairwise(widths[::-1])
        )
        self.last = nn.ModuleList(conv(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.head = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        _check_size(x, MIN_SIZE)
        x = _leaky(self.first(x))
        skips = []
        for down in self.downs:
            skips.append(x)
            x = _leaky(down(x))
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = _leaky(up(x)) + skip
        for conv in self.last:
            x = _leaky(conv(x))
        logits: Tensor = self.head(x)
        return logits


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def _spectral_conv(*args: Any, **options: Any) -> nn.Module:
    return spectral_norm(SpectralConv2d(*args, **options))


def _conv(norm: str) -> Callable[..., nn.Module]:
    return _spectral_conv if norm == "spectral" else nn.Conv2d


def _layer(source: int, target: int, norm: str, *, kernel: int, stride: int) -> list[nn.Module]:
    """A convolution, a normalisation layer unless the norm is spectral, and a leaky ReLU."""
    bias = norm in ("none", "spectral")
    layers: list[nn.Module] = [_conv(norm)(source, target, kernel, stride, padding=1, bias=bias)]
    if not bias:
        layers.append(build_norm(norm, target))
    return [*layers, nn.LeakyReLU(0.2, inplace=True)]


def _check_options(norm: str, norms: tuple[str, ...], **numbers: int) -> None:
    if norm not in norms:
        raise ValueError(f"norm is '{norm}'; expected one of {', '.join(norms)} for this discriminator")
    if min(numbers.values()) < 1:
        found = ", ".join(f"{name} is {number}" for name, number in numbers.items())
        raise ValueError(f"{found}; expected at least 1 each")


def _check_size(x: Tensor, min_size: int) -> None:
    if min(x.shape[-2:]) < min_size:
        raise ValueError(
            f"images have {tuple(x.shape[-2:])} pixels; this discriminator needs at least {min_size} per side"
        )
