"""Networks of super-resolution GANs, by name: generators (lr and a size to sr) and discriminators (to logits)."""

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
"""Each takes `channels`, then (B, channels, h, w) in [0, 1] and an `out_size` (H, W) from (h, w) on, in any ratio.
It returns (B, channels, H, W) of the input's type, not clipped to [0, 1]."""

DISCRIMINATORS: dict[str, Callable[..., nn.Module]] = {
    "vgg": VGGDiscriminator,
    "patch": PatchDiscriminator,
    "unet": UNetDiscriminator,
}
"""Each takes `channels`, then (B, channels, H, W) of 32 pixels a side or more; it returns logits (B, 1, h', w')."""


def build_generator(name: str, *, channels: int, **options: Any) -> nn.Module:
    """A generator by its name: lr (B, channels, h, w) and (H, W) to sr (B, channels, H, W).

    Args:
        name: in `GENERATORS`.
        channels: of the images: 1, or the number of modalities.
        options: the generator's own.

    Raises:
        ValueError: a name that is not in the registry, or an option that the generator does not have.
    """
    return _build(GENERATORS, "generator", name, channels=channels, **options)


def build_discriminator(name: str, *, channels: int, **options: Any) -> nn.Module:
    """A discriminator by its name: images (B, channels, H, W) to logits (B, 1, h', w').

    Args:
        name: in `DISCRIMINATORS`.
        channels: of the images.
        options: the discriminator's own.

    Raises:
        ValueError: a name that is not in the registry, or an option that the discriminator does not have.
    """
    return _build(DISCRIMINATORS, "discriminator", name, channels=channels, **options)


class FixedScale(nn.Module):
    """A generator at one ratio: (B, C, h, w) to (B, C, round(scale h), round(scale w)).

    For what calls a network with an image alone, as an export does. A whole `scale` leaves h and w free in
    `torch.export`; any other fixes them to the example's.

    Args:
        net: in `GENERATORS`' way.
        scale: 1 or more.

    Raises:
        ValueError: a scale below 1.
    """

    def __init__(self, net: nn.Module, scale: float) -> None:
        super().__init__()
        if not scale >= 1:
            raise ValueError(f"scale {scale}: expected 1 or more")
        self.net, self.scale = net, scale

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if float(self.scale).is_integer():
            size = (int(self.scale) * height, int(self.scale) * width)
        else:
            # Whether a ratio is whole must be known while exporting.
            size = (round(self.scale * int(height)), round(self.scale * int(width)))
        sr: Tensor = self.net(x, size)
        return sr


def _build(
    registry: Mapping[str, Callable[..., nn.Module]], kind: str, name: str, **options: Any
) -> nn.Module:
    if name not in registry:
        raise ValueError(f"'{name}' is not a {kind}; the {kind}s are {', '.join(sorted(registry))}")
    try:
        return registry[name](**options)
    except TypeError as error:
        raise ValueError(f"{kind} '{name}' does not take these options: {error}") from error
