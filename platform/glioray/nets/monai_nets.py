"""Networks of MONAI, adapted to any H and W and to `TrainingOutputs`.

MONAI takes seconds to import, so it is imported only when one of these is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glioray.nets.blocks import GlobalBatchNorm2d, pad_to_multiple
from glioray.nets.outputs import TrainingOutputs

NORMS: dict[str, Any] = {
    "instance": ("instance", {"affine": True}),
    "group": ("group", {"num_groups": 8}),
    "batch": "batch",
}
"""Normalisation layers by name, as arguments for MONAI."""


class MonaiNet(nn.Module):
    """A network of MONAI for any H and W: (B, in_channels, H, W) to (B, out_channels, H, W).

    The input is padded with zeros to a multiple of `divisor`, at least twice that, and the result is cropped.
    In training, several outputs of the network, finest first, become a `TrainingOutputs` with the coarser ones
    upsampled. Batch normalisation uses the statistics of all ranks.

    Args:
        net: the MONAI network.
        divisor: H and W must be a multiple of this in `net`.
        heads: names in `net` of the convolutions that give logits.
        fixed: whether an export fixes height and width, since `net` computes its layout from Python numbers.
    """

    def __init__(self, net: nn.Module, *, divisor: int, heads: Sequence[str], fixed: bool = False) -> None:
        super().__init__()
        self.net, self.divisor, self.head_names = _synchronize_norms(net), divisor, tuple(heads)
        self.fixed = fixed

    def heads(self) -> list[nn.Conv2d]:
        """The convolutions that give logits."""
        return [self.net.get_submodule(name) for name in self.head_names]  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor | TrainingOutputs:
        height, width = x.shape[-2:]
        if self.fixed:
            # Dynamic sizes become numbers here: torch.export would never finish with MONAI's code.
            height, width = int(height), int(width)
        x = pad_to_multiple(x, self.divisor, at_least=2 * self.divisor)
        found = self.net(x)
        if isinstance(found, Tensor):
            return found[..., :height, :width]
        sides = (F.interpolate(side, size=x.shape[-2:], mode="bilinear") for side in found[1:])
        return TrainingOutputs(
            found[0][..., :height, :width], tuple(side[..., :height, :width] for side in sides)
        )


class FlatDynUNet(nn.Module):
    """The modules of MONAI's DynUNet under their names, run level by level.

    DynUNet itself holds the same modules in a second tree, so that its state dict has every tensor twice, and
    keeps the feature maps of the last batch in memory.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.input_block, self.downsamples, self.bottleneck = (
            net.input_block,
            net.downsamples,
            net.bottleneck,
        )
        self.upsamples, self.output_block = net.upsamples, net.output_block
        # finest first
        self.deep_supervision_heads = net.deep_supervision_heads if net.deep_supervision else nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        skips = [x := self.input_block(x)]
        for down in self.downsamples:
            skips.append(x := down(x))
        x = self.bottleneck(x)
        levels = []
        for up, skip in zip(self.upsamples, reversed(skips), strict=True):
            levels.append(x := up(x, skip))
        logits: Tensor = self.output_block(x)
        if not self.training or not self.deep_supervision_heads:
            return logits
        # The finest level belongs to the output.
        features = levels[-2::-1][: len(self.deep_supervision_heads)]
        return [
            logits,
            *(head(level) for head, level in zip(self.deep_supervision_heads, features, strict=True)),
        ]


def dynunet(
    *,
    in_channels: int,
    out_channels: int,
    width: int = 32,
    depth: int = 5,
    max_width: int = 512,
    norm: str = "instance",
    deep_supervision: bool = False,
    residual: bool = False,
    dropout: float = 0.0,
) -> MonaiNet:
    """MONAI's DynUNet, the network of nnU-Net.

    Goes down by strided convolutions and up by transposed ones.

    Reference: Isensee et al. 2021 (arXiv 1904.08128); Futrega et al. 2021 (arXiv 2110.03352).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        width: filters of the first level; doubled at each level down.
        depth: levels below the first.
        max_width: the most filters of any level.
        norm: "instance", "group" or "batch".
        deep_supervision: outputs at all levels except the two deepest, as in nnU-Net.
        residual: residual blocks in the encoder.
        dropout: fraction of values dropped after each convolution.

    Raises:
        ValueError: an argument out of range.
    """
    from monai.networks.nets.dynunet import DynUNet

    if width < 1 or not 2 <= depth <= 7:
        raise ValueError(f"width is {width} and depth is {depth}; expected width >= 1 and depth from 2 to 7")
    if max_width < 1:
        raise ValueError(f"max_width is {max_width}; expected at least 1")
    if deep_supervision and depth < 3:
        raise ValueError(f"depth is {depth}; expected at least 3 with deep_supervision")
    num_sides = depth - 2 if deep_supervision else 0
    net = DynUNet(
        spatial_dims=2,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=[3] * (depth + 1),
        strides=[1] + [2] * depth,
        upsample_kernel_size=[2] * depth,
        filters=[min(width << level, max_width) for level in range(depth + 1)],
        norm_name=_norm(norm, width),
        deep_supervision=deep_supervision,
        deep_supr_num=max(1, num_sides),
        res_block=residual,
        dropout=dropout or None,
    )
    names = ["output_block.conv.conv"] + [f"deep_supervision_heads.{i}.conv.conv" for i in range(num_sides)]
    return MonaiNet(FlatDynUNet(net), divisor=1 << depth, heads=names)


def resenc(
    *,
    in_channels: int,
    out_channels: int,
    width: int = 32,
    blocks: Sequence[int] = (1, 3, 4, 6, 6),
    norm: str = "instance",
    deep_supervision: bool = False,
) -> MonaiNet:
    """MONAI's SegResNetDS, sized as nnU-Net's residual encoder U-Net.

    It has a deep encoder and a light decoder.

    Reference: Isensee et al. 2024 (arXiv 2404.09556). MONAI's deviations: normalisation before each convolution;
    skips are added instead of concatenated; one residual unit per decoder level instead of one convolution;
    filters double without an upper limit.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        width: filters of the first level; doubled at each level down.
        blocks: residual units in each encoder level; one number per level.
        norm: "instance", "group" or "batch".
        deep_supervision: outputs at all decoder levels except the deepest.

    Raises:
        ValueError: an argument out of range.
    """
    from monai.networks.nets.segresnet_ds import SegResNetDS

    if width < 1 or not 2 <= len(blocks) <= 8 or min(blocks) < 1:
        raise ValueError(
            f"width is {width} and blocks is {tuple(blocks)}; expected width >= 1 and 2 to 8 numbers of at least 1"
        )
    depth = len(blocks) - 1
    num_outputs = max(1, depth - 1) if deep_supervision else 1
    net = SegResNetDS(
        spatial_dims=2,
        in_channels=in_channels,
        out_channels=out_channels,
        init_filters=width,
        blocks_down=tuple(blocks),
        norm=_norm(norm, width),
        act=("leakyrelu", {"negative_slope": 0.01, "inplace": True}),
        dsdepth=num_outputs,
    )
    names = [f"up_layers.{depth - 1 - number}.head" for number in range(num_outputs)]
    return MonaiNet(net, divisor=1 << depth, heads=names)


def segresnet(
    *,
    in_channels: int,
    out_channels: int,
    width: int = 32,
    blocks_down: Sequence[int] = (1, 2, 2, 4),
    blocks_up: Sequence[int] = (1, 1, 1),
    norm: str = "instance",
    dropout: float = 0.0,
) -> MonaiNet:
    """MONAI's SegResNet without the variational autoencoder.

    Reference: Myronenko 2018 (arXiv 1810.11654), with group normalisation (norm="group").

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        width: filters of the first level; doubled at each level down.
        blocks_down: residual blocks in each encoder level.
        blocks_up: residual blocks in each decoder level, deepest first; one number fewer than blocks_down.
        norm: "instance", "group" or "batch".
        dropout: fraction of values dropped after the first convolution.

    Raises:
        ValueError: an argument out of range.
    """
    from monai.networks.nets.segresnet import SegResNet

    if width < 1 or not 1 <= len(blocks_up) == len(blocks_down) - 1 or min(*blocks_down, *blocks_up) < 1:
        raise ValueError(
            f"width is {width}, blocks_down is {tuple(blocks_down)} and blocks_up is {tuple(blocks_up)}; expected "
            "width >= 1, and one number fewer in blocks_up than in blocks_down, each at least 1"
        )
    net = SegResNet(
        spatial_dims=2,
        in_channels=in_channels,
        out_channels=out_channels,
        init_filters=width,
        blocks_down=tuple(blocks_down),
        blocks_up=tuple(blocks_up),
        norm=_norm(norm, width),
        dropout_prob=dropout or None,
    )
    return MonaiNet(net, divisor=1 << len(blocks_up), heads=["conv_final.2.conv"])


def attention_unet(
    *,
    in_channels: int,
    out_channels: int,
    width: int = 64,
    depth: int = 4,
    dropout: float = 0.0,
) -> MonaiNet:
    """MONAI's Attention U-Net, which always uses batch normalisation.

    Reference: Oktay et al. 2018 (arXiv 1804.03999).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        width: filters of the first level, at least 2; doubled at each level down.
        depth: levels below the first.
        dropout: fraction of values dropped after each convolution.

    Raises:
        ValueError: an argument out of range.
    """
    from monai.networks.nets.attentionunet import AttentionUnet

    if width < 2 or not 1 <= depth <= 7:
        raise ValueError(f"width is {width} and depth is {depth}; expected width >= 2 and depth from 1 to 7")
    net = AttentionUnet(
        spatial_dims=2,
        in_channels=in_channels,
        out_channels=out_channels,
        channels=[width << level for level in range(depth + 1)],
        strides=[2] * depth,
        dropout=dropout,
    )
    return MonaiNet(net, divisor=1 << depth, heads=["model.2.conv"])


def swin_unetr(
    *,
    in_channels: int,
    out_channels: int,
    width: int = 24,
    depths: Sequence[int] = (2, 2, 2, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window: int = 7,
    norm: str = "instance",
    dropout: float = 0.0,
) -> MonaiNet:
    """MONAI's SwinUNETR in 2-D, with shifted-window attention in the encoder.

    Reference: Hatamizadeh et al. 2022 (arXiv 2201.01266).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        width: features of the first level, a multiple of 12; doubled at each of five levels down.
        depths: attention blocks in each of four levels.
        num_heads: attention heads in each of four levels; must divide the level's features.
        window: tokens along each side of a window.
        norm: "instance", "group" or "batch", for the convolutions.
        dropout: fraction of values dropped in attention blocks.

    Raises:
        ValueError: an argument out of range.
    """
    from monai.networks.nets.swin_unetr import SwinUNETR

    if width < 12 or width % 12 or window < 2 or len(depths) != 4 or len(num_heads) != 4:
        raise ValueError(
            f"width is {width}, window is {window}, depths has {len(depths)} numbers and num_heads {len(num_heads)}; "
            "expected width a multiple of 12, window >= 2, and four numbers each"
        )
    if any((width << level) % heads for level, heads in enumerate(num_heads)):
        raise ValueError(
            f"width is {width} and num_heads is {tuple(num_heads)}; expected heads that divide each level's features, "
            f"{width} doubled at each level"
        )
    # MONAI reads values of tensors while it builds, which tensors on the meta device do not have.
    with torch.device("cpu"):
        net = SwinUNETR(
            spatial_dims=2,
            in_channels=in_channels,
            out_channels=out_channels,
            feature_size=width,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window,
            norm_name=_norm(norm, width),
            drop_rate=dropout,
        )
    wrapped = MonaiNet(net, divisor=32, heads=["out.conv.conv"], fixed=True)
    return wrapped.to(torch.get_default_device())


def _norm(name: str, width: int) -> Any:
    if name not in NORMS:
        raise ValueError(f"norm is '{name}'; expected one of {', '.join(sorted(NORMS))}")
    if name == "group" and width % 8:
        raise ValueError(f"width is {width}; expected a multiple of 8 with norm 'group'")
    return NORMS[name]


def _synchronize_norms(net: nn.Module) -> nn.Module:
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                norm = GlobalBatchNorm2d(child.num_features, eps=child.eps, momentum=child.momentum)
                setattr(parent, name, norm)
    return net
