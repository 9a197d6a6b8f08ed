"""Res-UNet (Zhang 2018, arXiv 1711.10684) and ResUNet++ (Jha 2019, arXiv 1911.07067)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glioray.nets.attention import AttentionGate, SqueezeExcite
from glioray.nets.blocks import DilatedConv2d, PointwiseConv2d, build_norm, pad_to_multiple


class ResidualUnit(nn.Module):
    """A residual unit with normalisation first: (B, C, H, W) to (B, out, H, W).

    Normalisation, leaky ReLU and a 3x3 convolution, twice, plus the input. Pre-activation (He et al. 2016,
    arXiv 1603.05027), unlike `ConvBlock`. The input is added through a normalised 1x1 convolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        norm: a name of `blocks.NORMS`.
        stride: of the first convolution.
        first: the input is an image, which is convolved without normalisation and activation.
        excite: whether to apply squeeze and excitation after the addition.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: str,
        stride: int = 1,
        first: bool = False,
        excite: bool = False,
    ) -> None:
        super().__init__()
        bias = norm == "none"
        self.enter: nn.Module = nn.Identity() if first else _norm_and_activation(norm, in_channels)
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias),
            _norm_and_activation(norm, out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias),
        )
        self.skip = nn.Sequential(
            PointwiseConv2d(in_channels, out_channels, stride, bias=bias), build_norm(norm, out_channels)
        )
        self.excite = SqueezeExcite(out_channels) if excite else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.excite(self.layers(self.enter(x)) + self.skip(x))
        return result


class ResUNet(nn.Module):
    """A U-Net of residual units with attention gates on its skips.

    (B, in_channels, H, W), any H and W, to logits (B, out_channels, H, W): the input is padded with zeros to
    a multiple of 2^depth, at least twice that, and the result is cropped.

    Deviations from the paper: the gates (Oktay et al. 2018, arXiv 1804.03999; none with `attention=False`);
    leaky ReLU; logits instead of a sigmoid.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        width: filters of the first level; doubled at each level down.
        depth: levels below the first.
        norm: a name of `blocks.NORMS`; "batch" in the paper.
        attention: whether skips have gates.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        width: int = 64,
        depth: int = 3,
        norm: str = "batch",
        attention: bool = True,
    ) -> None:
        super().__init__()
        widths = _widths(width, depth)
        self.divisor = 1 << depth
        self.down = _encoder(in_channels, widths, norm=norm, excite=False)
        self.gates = nn.ModuleList()
        self.up = nn.ModuleList()
        for skip, below in zip(reversed(widths[:-1]), reversed(widths[1:]), strict=True):
            self.gates.append(
                AttentionGate(below, skip, inner=max(1, skip // 2), norm=norm) if attention else _NoGate()
            )
            self.up.append(ResidualUnit(below + skip, skip, norm=norm))
        self.head = nn.Conv2d(widths[0], out_channels, 1)

    def heads(self) -> list[nn.Conv2d]:
        """The convolutions that give logits."""
        return [self.head]

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x, skips = _encode(self.down, pad_to_multiple(x, self.divisor, at_least=2 * self.divisor))
        for gate, unit in zip(self.gates, self.up, strict=True):
            skip = skips.pop()
            x = _upsample_by_two(x)
            x = unit(torch.cat([x, gate(x, skip)], dim=1))
        logits: Tensor = self.head(x)
        return logits[..., :height, :width]


class ResUNetPlusPlus(nn.Module):
    """A U-Net of residual units with squeeze-excitation, attention and atrous pyramids.

    (B, in_channels, H, W), any H and W, to logits (B, out_channels, H, W); padded and cropped as in `ResUNet`.

    Follows the authors' code, which has 4,070,385 parameters for 3 channels and 1 output. 7,392 of them are
    running statistics, which are no parameters here, and 3,376 are biases made redundant by a normalisation,
    which are omitted. Other deviations: leaky ReLU; logits instead of a sigmoid.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        width: filters of the first level; doubled at each level down.
        depth: levels below the first.
        norm: a name of `blocks.NORMS`; "batch" in the paper.
        dropout: fraction of the deepest encoder level's channels to drop.
        bridge: whether a pyramid with twice the deepest level's filters joins encoder and decoder.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        width: int = 16,
        depth: int = 3,
        norm: str = "batch",
        dropout: float = 0.0,
        bridge: bool = True,
    ) -> None:
        super().__init__()
        widths = _widths(width, depth)
        self.divisor = 1 << depth
        self.down = _encoder(in_channels, widths, norm=norm, excite=True)
        self.dropout = nn.Dropout2d(dropout) if dropout else nn.Identity()
        below = 2 * widths[-1] if bridge else widths[-1]
        self.bridge = _SummedPyramid(widths[-1], below, norm=norm) if bridge else nn.Identity()
        self.attend = nn.ModuleList()
        self.up = nn.ModuleList()
        for skip, here in zip(reversed(widths[:-1]), reversed(widths[1:]), strict=True):
            self.attend.append(_PooledAttention(skip, below, norm=norm))
            self.up.append(ResidualUnit(below + skip, here, norm=norm, excite=True))
            below = here
        self.last = _SummedPyramid(below, widths[0], norm=norm)
        self.head = nn.Conv2d(widths[0], out_channels, 1)

    def heads(self) -> list[nn.Conv2d]:
        """The convolutions that give logits."""
        return [self.head]

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x, skips = _encode(self.down, pad_to_multiple(x, self.divisor, at_least=2 * self.divisor))
        x = self.bridge(self.dropout(x))
        for attend, unit in zip(self.attend, self.up, strict=True):
            skip = skips.pop()
            x = unit(torch.cat([_upsample_by_two(attend(skip, x)), skip], dim=1))
        logits: Tensor = self.head(self.last(x))
        return logits[..., :height, :width]


class _SummedPyramid(nn.Module):
    # The atrous pyramid of ResUNet++: all branches are 3x3 and are added, whereas DeepLab's (`pyramid.ASPP`)
    # concatenates narrower branches, a 1x1 convolution and the mean.
    def __init__(self, in_channels: int, out_channels: int, *, norm: str) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                DilatedConv2d(in_channels, out_channels, 3, padding=rate, dilation=rate, bias=norm == "none"),
                build_norm(norm, out_channels),
            )
            for rate in (1, 6, 12, 18)
        )
        self.merge = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.merge(torch.stack([branch(x) for branch in self.branches]).sum(0))
        return result


class _PooledAttention(nn.Module):
    # The attention of ResUNet++: decoder features, multiplied by weights computed from them and the pooled skip.
    def __init__(self, skip: int, channels: int, *, norm: str) -> None:
        super().__init__()

        def layers(source: int, bias: bool) -> nn.Sequential:
            return nn.Sequential(
                _norm_and_activation(norm, source), nn.Conv2d(source, channels, 3, padding=1, bias=bias)
            )

        self.skip = layers(skip, norm == "none")
        self.below = layers(channels, norm == "none")
        self.weight = layers(channels, True)

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        weight: Tensor = self.weight(F.max_pool2d(self.skip(skip), 2) + self.below(below))
        return weight * below


class _NoGate(nn.Module):
    def forward(self, gating: Tensor, skip: Tensor) -> Tensor:
        return skip


def _widths(width: int, depth: int) -> list[int]:
    if width < 1 or not 1 <= depth <= 7:
        raise ValueError(f"width is {width} and depth is {depth}; expected width >= 1 and depth from 1 to 7")
    return [width << level for level in range(depth + 1)]


def _norm_and_activation(norm: str, channels: int) -> nn.Sequential:
    return nn.Sequential(build_norm(norm, channels), nn.LeakyReLU(0.01, inplace=norm != "none"))


def _encoder(in_channels: int, widths: list[int], *, norm: str, excite: bool) -> nn.ModuleList:
    units = [ResidualUnit(in_channels, widths[0], norm=norm, first=True, excite=excite)]
    for above, here in itertools.pairwise(widths):
        units.append(ResidualUnit(above, here, norm=norm, stride=2, excite=excite))
    return nn.ModuleList(units)


def _encode(units: nn.ModuleList, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    skips = []
    for unit in units:
        x = unit(x)
        skips.append(x)
    skips.pop()
    return x, skips


def _upsample_by_two(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")
