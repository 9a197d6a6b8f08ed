"""MONAI's networks, wrapped: any H and W, `TrainingOutputs` while training, heads. Each is built by a function.

MONAI is imported where a network of its is built: that takes seconds.
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
"""Normalisations by name, in MONAI's words."""


class MonaiNet(nn.Module):
    """A network of MONAI for any H and W.

    (B, in_channels, H, W) to logits (B, out_channels, H, W): the input is padded with zeros to a multiple of
    `divisor`, at least two of them, and the result cut back. In training a network that returns several
    outputs, the finest first, becomes a `TrainingOutputs` with the coarser ones enlarged. Batch normalisation is
    by all ranks' batches.

    Args:
        net: MONAI's.
        divisor: what `net` needs H and W to be a multiple of.
        heads: names in `net` of the convolutions whose outputs are logits.
        fixed: an export is for the example's height and width: `net` lays things out by Python's numbers.
    """

    def __init__(self, net: nn.Module, *, divisor: int, heads: Sequence[str], fixed: bool = False) -> None:
        super().__init__()
        self.net, self.divisor, self.head_names = _by_all_ranks(net), divisor, tuple(heads)
        self.fixed = fixed

    def heads(self) -> list[nn.Conv2d]:
        """The convolutions whose outputs are logits."""
        return [self.net.get_submodule(name) for name in self.head_names]  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor | TrainingOutputs:
        height, width = x.shape[-2:]
        if self.fixed:
            # Free sizes become numbers here; MONAI's code would have torch.export search for ever.
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
    """MONAI's DynUNet, gone through level by level: its modules under their names, each of them once.

    DynUNet's own forward goes through a second tree of the same modules, so that its state dict holds every
    tensor twice, and keeps the feature maps of the last batch.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.input_block, self.downsamples, self.bottleneck = (
            net.input_block,
            net.downsamples,
            net.bottleneck,
        )
        self.upsamples, self.output_block = net.upsamples, net.output_block
        # The finest first.
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
        # The finest level is the output's own.
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
    """MONAI's DynUNet, nnU-Net's network: strided convolutions down, transposed ones up.

    Reference: Isensee et al. 2021 (arXiv 1904.08128); Futrega et al. 2021 (arXiv 2110.03352).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        width: filters of the first level; doubled at each level down.
        depth: levels below the first.
        max_width: no level has more filters.
        norm: "instance", "group" or "batch".
        deep_supervision: outputs at every level but the two deepest, as nnU-Net has.
        residual: residual blocks on the way down.
        dropout: share of values dropped after each convolution.

    Raises:
        ValueError: an argument out of range.
    """
    from monai.networks.nets.dynunet import DynUNet

    if width < 1 or not 2 <= depth <= 7:
        raise ValueError(f"width {width}, depth {depth}: expected width from 1, depth 2 to 7")
    if max_width < 1:
        raise ValueError(f"max_width {max_width}: expected at least 1")
    if deep_supervision and depth < 3:
        raise ValueError(f"deep_supervision with depth {depth}: expected depth from 3")
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
    """MONAI's SegResNetDS in the measures of nnU-Net's residual encoder: deep on the way down, lean on the way up.

    Reference: Isensee et al. 2024 (arXiv 2404.09556). Deviations from it that are MONAI's: units normalised
    before each convolution; skips added in place of concatenated; one residual unit a level on the way up in
    place of one convolution; filters doubled without an upper limit.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        width: filters of the first level; doubled at each level down.
        blocks: residual units of each level on the way down; as many levels as there are numbers.
        norm: "instance", "group" or "batch".
        deep_supervision: outputs at every level of the way up but the deepest.

    Raises:
        ValueError: an argument out of range.
    """
    from monai.networks.nets.segresnet_ds import SegResNetDS

    if width < 1 or not 2 <= len(blocks) <= 8 or min(blocks) < 1:
        raise ValueError(
            f"width {width}, blocks {tuple(blocks)}: expected width from 1, 2 to 8 levels of 1 block or more"
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

    Reference: Myronenko 2018 (arXiv 1810.11654), which normalises by groups of channels (norm="group").

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        width: filters of the first level; doubled at each level down.
        blocks_down: residual blocks of each level on the way down.
        blocks_up: residual blocks of each level on the way up, the deepest first; one number fewer.
        norm: "instance", "group" or "batch".
        dropout: share of values dropped after the first convolution.

    Raises:
        ValueError: an argument out of range.
    """
    from monai.networks.nets.segresnet import SegResNet

    if width < 1 or not 1 <= len(blocks_up) == len(blocks_down) - 1 or min(*blocks_down, *blocks_up) < 1:
        raise ValueError(
            f"width {width}, blocks_down {tuple(blocks_down)}, blocks_up {tuple(blocks_up)}: "
            "expected width from 1, and one level fewer up than down, each of 1 block or more"
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
    """MONAI's Attention U-Net, with batch normalisation (MONAI leaves no choice).

    Reference: Oktay et al. 2018 (arXiv 1804.03999).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        width: filters of the first level, from 2 on; doubled at each level down.
        depth: levels below the first.
        dropout: share of values dropped after each convolution.

    Raises:
        ValueError: an argument out of range.
    """
    from monai.networks.nets.attentionunet import AttentionUnet

    if width < 2 or not 1 <= depth <= 7:
        raise ValueError(f"width {width}, depth {depth}: expected width from 2, depth 1 to 7")
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
    """MONAI's SwinUNETR in two dimensions: attention in shifted windows on the way down, convolutions up.

    Reference: Hatamizadeh et al. 2022 (arXiv 2201.01266).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        width: features of the first level, a multiple of 12; doubled at each of five levels down.
        depths: attention blocks of four levels.
        num_heads: attention heads of four levels; each level's features are a multiple of its heads.
        window: tokens along each side of a window.
        norm: "instance", "group" or "batch", of the convolutions.
        dropout: share of values dropped in attention blocks.

    Raises:
        ValueError: an argument out of range.
    """
    from monai.networks.nets.swin_unetr import SwinUNETR

    if width < 12 or width % 12 or window < 2 or len(depths) != 4 or len(num_heads) != 4:
        raise ValueError(
            f"width {width}, window {window}, {len(depths)} depths, {len(num_heads)} num_heads: "
            "expected width a multiple of 12, window from 2, and four of depths and of num_heads"
        )
    if any((width << level) % heads for level, heads in enumerate(num_heads)):
        raise ValueError(
            f"width {width}, num_heads {tuple(num_heads)}: each level's features, {width} doubled "
            "at each level, must be a multiple of its heads"
        )
    # MONAI reads numbers from tensors while it builds, which those of the meta device do not have.
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
        raise ValueError(f"'{name}' is not a normalisation; they are {', '.join(sorted(NORMS))}")
    if name == "group" and width % 8:
        raise ValueError(f"width {width} with norm 'group': expected a multiple of 8")
    return NORMS[name]


def _by_all_ranks(net: nn.Module) -> nn.Module:
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                norm = GlobalBatchNorm2d(child.num_features, eps=child.eps, momentum=child.momentum)
                setattr(parent, name, norm)
    return net
