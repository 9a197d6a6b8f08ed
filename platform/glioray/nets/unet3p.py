"""UNet 3+ (Huang et al. 2020, arXiv 2004.08790)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glioray.nets.blocks import ConvBlock, pad_to_multiple
from glioray.nets.outputs import TrainingOutputs

_ABSENT = -20.0
"""The logit of an absent channel: a probability of 2e-9, and finite in every precision."""


class UNet3P(nn.Module):
    """A U-Net whose decoder levels read the encoder down to their level and deeper decoders.

    (B, in_channels, H, W) to logits (B, out_channels, H, W), any H and W; padded as in `UNet`. Each source is
    resized to the level (by maxima down, bilinearly up) and convolved to `cat_channels`. With `deep_supervision`
    or `classify`, training returns `TrainingOutputs`, whose sides are the decoder levels below the first and
    the deepest encoder level.

    `classify` is the paper's classification-guided module: from the deepest level it predicts whether a slice
    has any pixel of each output channel. In evaluation, channels with a logit of at most 0 become absent (-20
    at every pixel), so this output must be trained by a loss that uses `presence`.

    Deviations: normalisation and leaky ReLU instead of batch normalisation and ReLU; one presence logit per
    output channel instead of two for one organ; the gate replaces logits, since multiplying them by zero would
    give a probability of one half, and is not applied in training, where it would stop gradients.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        width: filters of the first level; doubled at each level down.
        depth: levels below the first.
        norm: a name of `blocks.NORMS`.
        num_convs: convolutions per encoder block.
        cat_channels: filters of each source of a decoder level.
        dropout: fraction of channels dropped in the two deepest encoder levels.
        dilation: rate of the convolutions.
        bridge: False omits the convolutions of the deepest level, which is then the level above it, pooled.
        deep_supervision: whether every decoder level and the deepest level have heads.
        classify: whether to use the classification-guided module.

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
        norm: str = "instance",
        num_convs: int = 2,
        cat_channels: int = 64,
        dropout: float = 0.0,
        dilation: int = 1,
        bridge: bool = True,
        deep_supervision: bool = False,
        classify: bool = False,
    ) -> None:
        super().__init__()
        if width < 1 or cat_channels < 1 or not 1 <= depth <= 7:
            raise ValueError(
                f"width is {width}, cat_channels is {cat_channels} and depth is {depth}; "
                "expected width >= 1, cat_channels >= 1 and depth from 1 to 7"
            )
        self.depth = depth
        self.divisor = 1 << depth
        widths = [width << level for level in range(depth + 1)]
        if not bridge:
            widths[depth] = widths[depth - 1]
        self.encoder = nn.ModuleList()
        for level, here in enumerate(widths):
            source = widths[level - 1] if level else in_channels
            last = level == depth and not bridge
            self.encoder.append(
                nn.Identity()
                if last
                else ConvBlock(
                    source,
                    here,
                    norm=norm,
                    num_convs=num_convs,
                    dropout=dropout if level >= depth - 1 else 0.0,
                    dilation=dilation,
                )
            )
        merged = cat_channels * (depth + 1)
        self.sources = nn.ModuleDict()
        self.merge = nn.ModuleList()
        for level in range(depth):
            for source in range(depth + 1):
                channels = merged if level < source < depth else widths[source]
                block = ConvBlock(channels, cat_channels, norm=norm, num_convs=1, dilation=dilation)
                self.sources[f"{level}_{source}"] = block
            self.merge.append(ConvBlock(merged, merged, norm=norm, num_convs=1, dilation=dilation))
        self.head = nn.Conv2d(merged, out_channels, 3, padding=1)
        self.sides = nn.ModuleList()
        if deep_supervision:
            for level in range(1, depth + 1):
                channels = merged if level < depth else widths[depth]
                self.sides.append(nn.Conv2d(channels, out_channels, 3, padding=1))
        self.presence: nn.Module | None = None
        if classify:
            self.presence = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(widths[depth], out_channels, 1))

    def heads(self) -> list[nn.Conv2d]:
        """The convolutions that give logits of pixels."""
        return [self.head, *self.sides]

    def forward(self, x: Tensor) -> Tensor | TrainingOutputs:
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, self.divisor, at_least=2 * self.divisor)
        encoded: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if level else x)
            encoded.append(x)
        # Decoder features by level; the deepest level is shared with the encoder.
        decoded = {self.depth: x}
        for level in reversed(range(self.depth)):
            size = encoded[level].shape[-2:]
            found = []
            for source in range(self.depth + 1):
                if source <= level:
                    shrink = 1 << (level - source)
                    x = F.max_pool2d(encoded[source], shrink) if shrink > 1 else encoded[source]
                else:
                    x = F.interpolate(decoded[source], size, mode="bilinear", align_corners=False)
                found.append(self.sources[f"{level}_{source}"](x))
            decoded[level] = self.merge[level](torch.cat(found, dim=1))
        logits: Tensor = self.head(decoded[0])[..., :height, :width]
        presence = None
        if self.presence is not None:
            presence = self.presence(decoded[self.depth]).amax((2, 3))
        if not self.training:
            return logits if presence is None else logits.masked_fill(presence[..., None, None] <= 0, _ABSENT)
        if presence is None and not self.sides:
            return logits
        size = encoded[0].shape[-2:]
        sides = []
        for level, side in enumerate(self.sides, start=1):
            upsampled = F.interpolate(side(decoded[level]), size, mode="bilinear", align_corners=False)
            sides.append(upsampled[..., :height, :width])
        return TrainingOutputs(logits, tuple(sides), presence)
