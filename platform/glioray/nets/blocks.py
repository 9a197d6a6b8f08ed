"""Blocks that the networks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        result = tensor.clone()
        dist.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Through the function again, so that a penalty on gradients can be differentiated too.
        return all_reduce_sum(gradients[0])


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks, through which gradients flow: backward, they are summed over ranks too."""
    result: Tensor = _AllReduceSum.apply(tensor)
    return result


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation (Ioffe, Szegedy 2015, arXiv 1502.03167) by the statistics of all ranks' batches.

    Two ranks then normalise as one rank with the whole batch does. torch's SyncBatchNorm does the same on
    GPUs alone; this one runs wherever the process group does. With one rank, and in evaluation, it is
    torch's own layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (
            self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        ):
            return super().forward(x)
        values = x.float()
        count = values.new_tensor([values.numel() / values.shape[1]])
        sums = torch.cat([values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), count])
        total, squares, number = all_reduce_sum(sums).split([x.shape[1], x.shape[1], 1])
        mean = total / number
        var = (squares / number - mean.square()).clamp_min(0)
        with torch.no_grad():
            momentum = self.momentum or 0.1
            self.running_mean.lerp_(mean, momentum)  # type: ignore[union-attr]
            self.running_var.lerp_(var * number / (number - 1), momentum)  # type: ignore[union-attr]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "group": lambda channels: nn.GroupNorm(_num_groups(channels), channels),
    "batch": lambda channels: GlobalBatchNorm2d(channels),
    "none": lambda channels: nn.Identity(),
}
"""Normalisations by name."""


def build_norm(name: str, channels: int) -> nn.Module:
    """A normalisation layer by name.

    Raises:
        ValueError: a name that is not in `NORMS`.
    """
    if name not in NORMS:
        raise ValueError(f"'{name}' is not a normalisation; they are {', '.join(sorted(NORMS))}")
    return NORMS[name](channels)


def pad_to_multiple(x: Tensor, divisor: int, *, at_least: int = 0) -> Tensor:
    """(B, C, H, W) with zeros at the bottom and the right: each side a multiple of `divisor` from `at_least` on."""

    def padding(length: int) -> int:
        wanted: int = torch.sym_max(length, at_least)  # leaves H and W free in an export
        return wanted + -wanted % divisor - length

    height, width = x.shape[-2:]
    return F.pad(x, (0, padding(width), 0, padding(height)))


class DilatedConv2d(nn.Conv2d):
    """torch's convolution, in float32 where bf16 would give it wrong gradients.

    oneDNN's weight gradient of a dilated convolution in bf16, channels last, is NaN on CPUs with bf16
    arithmetic where there are more than 16 input channels that are no multiple of 16 (torch 2.13).
    """

    def forward(self, x: Tensor) -> Tensor:
        odd = self.in_channels > 16 and self.in_channels % 16 != 0
        if odd and torch.is_grad_enabled() and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        return super().forward(x)


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution of every `stride`-th pixel: torch's own, with the pixels picked first.

    The same numbers; but oneDNN's backward of a strided 1x1 convolution, channels last, writes past its
    memory on CPUs (torch 2.13: 8 to 16 channels, stride 2, 192 x 160 ends in a segmentation fault).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(x[..., ::rows, ::columns], self.weight, self.bias)


class ConvBlock(nn.Module):
    """`num_convs` times convolution, normalisation, leaky ReLU; (B, C, H, W) to (B, out, H, W).

    Convolutions are 3x3 unless `kernel_size` (odd) says otherwise; they and `dilation` keep H and W.

    With `residual` the input is added before the last activation (He et al., arXiv 1512.03385), through a
    1x1 convolution where the channels or, with `stride`, the sizes differ.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: str = "instance",
        num_convs: int = 2,
        dropout: float = 0.0,
        residual: bool = False,
        stride: int = 1,
        kernel_size: int = 3,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        if num_convs < 1 or not isinstance(dilation, int) or dilation < 1:
            raise ValueError(f"num_convs {num_convs}, dilation {dilation}: expected whole numbers from 1 on")
        layers: list[nn.Module] = []
        conv = DilatedConv2d if dilation > 1 else nn.Conv2d
        for number in range(num_convs):
            source = in_channels if number == 0 else out_channels
            layers += [
                conv(
                    source,
                    out_channels,
                    kernel_size,
                    stride if number == 0 else 1,
                    padding=kernel_size // 2 * dilation,
                    dilation=dilation,
                    bias=norm == "none",
                ),
                build_norm(norm, out_channels),
            ]
            if number < num_convs - 1:
                layers.append(nn.LeakyReLU(0.01, inplace=True))
        self.layers = nn.Sequential(*layers)
        self.skip: nn.Module | None = None
        if residual:
            same = in_channels == out_channels and stride == 1
            self.skip = (
                nn.Identity() if same else PointwiseConv2d(in_channels, out_channels, stride, bias=False)
            )
        self.last = nn.Sequential(
            nn.LeakyReLU(0.01, inplace=True), nn.Dropout2d(dropout) if dropout else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return self.last(y if self.skip is None else y + self.skip(x))


def _num_groups(channels: int) -> int:
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
