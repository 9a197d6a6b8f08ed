"""U-Net (Ronneberger, Fischer, Brox 2015, arXiv 1505.04597)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glioray.nets.blocks import ConvBlock, pad_to_multiple
from glioray.nets.pyramid import PYRAMIDS


class UNet(nn.Module):
    """The encoder and decoder of the paper, with padded convolutions that keep H and W.

    (B, in_channels, H, W) to logits (B, out_channels, H, W), any H and W: the input is padded with zeros to
    a multiple of 2^depth, at least twice that, and the result is cropped.

    Deviations: normalisation and leaky ReLU instead of ReLU. `lean` halves the cost: it goes down by strided
    convolutions and up by a 1x1 convolution and nearest neighbours, adds skips as in LinkNet (Chaurasia,
    Culurciello 2017, arXiv 1707.03718), and has one convolution per decoder level.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        width: filters of the first level, 64 in the paper; doubled at each level down.
        depth: levels below the first, 4 in the paper.
        max_width: the most filters of any level.
        norm: a name of `blocks.NORMS`.
        num_convs: convolutions per block.
        dropout: fraction of channels dropped in the two deepest levels.
        residual: whether blocks are residual.
        lean: whether to use the cheaper ways down and up.
        dilation: rate of the blocks' convolutions.
        bridge: False omits the convolutions of the deepest level, whose pooled features are only upsampled.
        bottleneck: the deepest level: "plain" (a block), or a pyramid, "aspp" (atrous, with its own rates) or
            "spp" (spatial).
        upsample: "transposed" convolutions, or "nearest" neighbours, which keep all channels for the merge.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        width: int = 64,
        depth: int = 4,
        max_width: int = 1024,
        norm: str = "instance",
        num_convs: int = 2,
        dropout: float = 0.0,
        residual: bool = False,
        lean: bool = False,
        dilation: int = 1,
        bridge: bool = True,
        bottleneck: str = "plain",
        upsample: str = "transposed",
    ) -> None:
        super().__init__()
        if width < 1 or not 1 <= depth <= 7:
            raise ValueError(
                f"width is {width} and depth is {depth}; expected width >= 1 and depth from 1 to 7"
            )
        if max_width < 1:
            raise ValueError(f"max_width is {max_width}; expected at least 1")
        if bottleneck not in ("plain", *PYRAMIDS):
            raise ValueError(f"bottleneck is '{bottleneck}'; expected one of plain, {', '.join(PYRAMIDS)}")
        if bottleneck != "plain" and not bridge:
            raise ValueError(f"bottleneck is '{bottleneck}'; expected 'plain' without bridge")
        if upsample not in ("transposed", "nearest"):
            raise ValueError(f"upsample is '{upsample}'; expected one of nearest, transposed")
        if lean and not (bridge and bottleneck == "plain" and upsample == "transposed"):
            raise ValueError("lean is set; expected the defaults of bridge, bottleneck and upsample with it")
        widths = [min(width << level, max_width) for level in range(depth + 1)]
        self.lean = lean
        self.divisor = 1 << depth

        def block(source: int, target: int, level: int, convs: int, stride: int = 1) -> ConvBlock:
            drop = dropout if level >= depth - 1 else 0.0
            return ConvBlock(
                source,
                target,
                norm=norm,
                num_convs=convs,
                dropout=drop,
                residual=residual,
                stride=stride,
                dilation=dilation,
            )

        self.down = nn.ModuleList([block(in_channels, widths[0], 0, num_convs)])
        for level in range(1, depth):
            self.down.append(block(widths[level - 1], widths[level], level, num_convs, 2 if lean else 1))
        if not bridge:
            widths[depth] = widths[depth - 1]
            self.down.append(nn.Identity())
        elif bottleneck == "plain":
            self.down.append(block(widths[depth - 1], widths[depth], depth, num_convs, 2 if lean else 1))
        else:
            self.down.append(PYRAMIDS[bottleneck](widths[depth - 1], widths[depth], norm=norm))
        self.up = nn.ModuleList()
        self.merge = nn.ModuleList()
        for level in reversed(range(depth)):
            below, here = widths[level + 1], widths[level]
            if lean:
                # Convolved before upsampling, for the same result at a quarter of the cost.
                up = nn.Sequential(nn.Conv2d(below, here, 1, bias=False), nn.Upsample(scale_factor=2))
                self.up.append(up)
                self.merge.append(block(here, here, level, 1))
            elif upsample == "nearest":
                self.up.append(nn.Upsample(scale_factor=2))
                self.merge.append(block(here + below, here, level, num_convs))
            else:
                self.up.append(nn.ConvTranspose2d(below, here, 2, stride=2))
                self.merge.append(block(2 * here, here, level, num_convs))
        self.head = nn.Conv2d(widths[0], out_channels, 1)

    def heads(self) -> list[nn.Conv2d]:
        """The convolutions that give logits."""
        return [self.head]

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        # At least two pixels per side at the deepest level, since a single pixel cannot be normalised.
        x = pad_to_multiple(x, self.divisor, at_least=2 * self.divisor)
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 or self.lean else F.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            skip, x = skips.pop(), up(x)
            x = merge(skip + x if self.lean else torch.cat([skip, x], dim=1))
        logits: Tensor = self.head(x)
        return logits[..., :height, :width]
