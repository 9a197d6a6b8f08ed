"""Networks for super-resolution GANs, by name: generators and discriminators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from glioray.nets.gan.discriminators import PatchDiscriminator, UNetDiscriminator, VGGDiscriminator
from glioray.nets.gan.rrdbnet import RRDBNet
from glioray.nets.gan.srresnet import SRResNet

GENERATORS: dict[str, Callable[..., nn.Module]] = {
    "srresnet": SRResNet,
    "rrdbnet": RRDBNet,
}
"""Each takes `channels`; its forward takes (B, channels, h, w) in [0, 1] and an `out_size` (H, W) of at least (h, w),
in any ratio, and returns (B, channels, H, W) of the input's type, not clipped to [0, 1]."""

DISCRIMINATORS: dict[str, Callable[..., nn.Module]] = {
    "vgg": VGGDiscriminator,
    "patch": PatchDiscriminator,
    "unet": UNetDiscriminator,
}
"""Each takes `channels`; its forward takes (B, channels, H, W) of at least 32 pixels per side and returns logits
(B, 1, h', w')."""


def build_generator(name: str, *, channels: int, **options: Any) -> nn.Module:
    """Build a generator by name: lr (B, channels, h, w) and (H, W) to sr (B, channels, H, W).

    Args:
        name: in `GENERATORS`.
        channels: of the images: 1, or the number of modalities.
        options: options of the generator.

    Raises:
        ValueError: an unknown name or option, or a value out of range.
    """
    return _build(GENERATORS, "generator", name, channels=channels, **options)


def build_discriminator(name: str, *, channels: int, **options: Any) -> nn.Module:
    """Build a discriminator by name: images (B, channels, H, W) to logits (B, 1, h', w').

    Args:
        name: in `DISCRIMINATORS`.
        channels: of the images.
        options: options of the discriminator.

    Raises:
        ValueError: an unknown name or option, or a value out of range.
    """
    return _build(DISCRIMINATORS, "discriminator", name, channels=channels, **options)


class FixedScale(nn.Module):
    """A generator with a fixed scale: (B, C, h, w) to (B, C, round(scale h), round(scale w)).

    For callers that pass only an image, such as an export. With an integer `scale`, h and w stay dynamic in
    `torch.export`; otherwise they are fixed to those of the example.

    Args:
        net: a generator, as in `GENERATORS`.
        scale: at least 1.

    Raises:
        ValueError: a scale below 1.
    """

    def __init__(self, net: nn.Module, scale: float) -> None:
        super().__init__()
        if not scale >= 1:
            raise ValueError(f"scale is {scale}; expected at least 1")
        self.net, self.scale = net, scale

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if float(self.scale).is_integer():
            size = (int(self.scale) * height, int(self.scale) * width)
        else:
            # Rounding needs numbers, also in an export.
            size = (round(self.scale * int(height)), round(self.scale * int(width)))
        sr: Tensor = self.net(x, size)
        return sr


def _build(
    registry: Mapping[str, Callable[..., nn.Module]], kind: str, name: str, **options: Any
) -> nn.Module:
    if name not in registry:
        raise ValueError(f"No {kind} '{name}'; available: {', '.join(sorted(registry))}")
    try:
        return registry[name](**options)
    except TypeError as error:
        raise ValueError(f"{kind} '{name}' does not accept these options: {error}") from error
