"""The networks, by name. Builders take flat keyword arguments and stand alone: plain torch, no config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from glioray.nets.unet import UNet

SEGMENTATION_NETS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
}


def build_net(name: str, *, in_channels: int, out_channels: int, **options: Any) -> nn.Module:
    """A network by its name: (B, in_channels, H, W) to logits (B, out_channels, H, W).

    Raises:
        ValueError: a name that is not in the registry, or an option that the network does not have.
    """
    if name not in SEGMENTATION_NETS:
        raise ValueError(
            f"'{name}' is not a network; the networks are {', '.join(sorted(SEGMENTATION_NETS))}"
        )
    try:
        return SEGMENTATION_NETS[name](in_channels=in_channels, out_channels=out_channels, **options)
    except TypeError as error:
        raise ValueError(f"network '{name}' does not take these options: {error}") from error
