"""The segmentation networks, by name.

They take keyword arguments and depend on torch (some on MONAI), not on configs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from glioray.nets import monai_nets
from glioray.nets.fcn import FCN
from glioray.nets.folded import FoldedNet
from glioray.nets.resunet import ResUNet, ResUNetPlusPlus
from glioray.nets.u2net import U2Net, u2netp
from glioray.nets.unet import UNet
from glioray.nets.unet3p import UNet3P
from glioray.nets.unetpp import UNetPP

SEGMENTATION_NETS: dict[str, Callable[..., nn.Module]] = {
    "fcn": FCN,
    "unet": UNet,
    "unetpp": UNetPP,
    "unet3p": UNet3P,
    "resunet": ResUNet,
    "resunetpp": ResUNetPlusPlus,
    "u2net": U2Net,
    "u2netp": u2netp,
    "dynunet": monai_nets.dynunet,
    "resenc": monai_nets.resenc,
    "segresnet": monai_nets.segresnet,
    "attention_unet": monai_nets.attention_unet,
    "swin_unetr": monai_nets.swin_unetr,
}
"""Each takes in_channels and out_channels, accepts any H and W, and has `heads()`, the convolutions that give
logits. It returns logits (B, out_channels, H, W) or, in training, possibly an `outputs.TrainingOutputs`."""


def build_net(
    name: str,
    *,
    in_channels: int,
    out_channels: int,
    stem_stride: int = 1,
    prior: float | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network by name: (B, in_channels, H, W) to logits (B, out_channels, H, W).

    Args:
        name: in `SEGMENTATION_NETS`.
        in_channels: channels of the images.
        out_channels: channels of the logits.
        stem_stride: 1, 2 or 4; above 1 the network sees squares of pixels folded into channels (`FoldedNet`).
        prior: the initial probability of each output, set by the heads' biases; None keeps torch's biases.
        options: options of the network.

    Raises:
        ValueError: an unknown name or option, or a value out of range.
    """
    if name not in SEGMENTATION_NETS:
        raise ValueError(f"No network '{name}'; available: {', '.join(sorted(SEGMENTATION_NETS))}")
    if stem_stride not in (1, 2, 4):
        raise ValueError(f"stem_stride is {stem_stride}; expected 1, 2 or 4")
    if prior is not None and not 0 < prior < 1:
        raise ValueError(f"prior is {prior}; expected a probability between 0 and 1")
    area = stem_stride**2
    try:
        net = SEGMENTATION_NETS[name](
            in_channels=in_channels * area, out_channels=out_channels * area, **options
        )
    except TypeError as error:
        raise ValueError(f"network '{name}' does not accept these options: {error}") from error
    if prior is not None:
        for head in net.heads():  # type: ignore[operator]
            if head.bias is None:  # its logits are added to those of a head with a bias
                continue
            nn.init.constant_(head.bias, math.log(prior / (1 - prior)))
    return FoldedNet(net, stem_stride) if stem_stride > 1 else net
