"""Blocks shared by the networks."""

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
        # Differentiable again, for penalties on gradients.
        return all_reduce_sum(gradients[0])


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks; differentiable: the backward pass sums gradients over ranks, too.

    torch's own (`torch.distributed.nn.functional.all_reduce`) is deprecated in favour of a private module.
    """
    result: Tensor = _AllReduceSum.apply(tensor)
    return result


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with statistics over all ranks.

    Several ranks normalise as one rank with the whole batch would. torch's SyncBatchNorm supports GPUs only;
    this works with any process group. On a single rank, and in evaluation, it equals torch's layer.

    Reference: Ioffe, Szegedy 2015 (arXiv 1502.03167).
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
"""Normalisation layers by name."""


def build_norm(name: str, channels: int) -> nn.Module:
    """Build a normalisation layer by name.

    Raises:
        ValueError: the name is not in `NORMS`.
    """
    if name not in NORMS:
        raise ValueError(f"norm is '{name}'; expected one of {', '.join(sorted(NORMS))}")
    return NORMS[name](channels)


def pad_to_multiple(x: Tensor, divisor: int, *, at_least: int = 0) -> Tensor:
    """Pad (B, C, H, W) with zeros at the bottom and right to multiples of `divisor`.

    Each side becomes `at_least` or more.
    """

    def padding(length: int) -> int:
        target: int = torch.sym_max(length, at_least)  # keeps H and W dynamic in an export
        return target + -target % divisor - length

    height, width = x.shape[-2:]
    return F.pad(x, (0, padding(width), 0, padding(height)))


class DilatedConv2d(nn.Conv2d):
    """torch's convolution, in float32 where bf16 would give wrong gradients.

    On CPUs with native bf16, oneDNN's weight gradient of a dilated channels-last convolution in bf16 is NaN
    if the input channels are more than 16 and not a multiple of 16 (torch 2.13).
    """

    def forward(self, x: Tensor) -> Tensor:
        odd = self.in_channels > 16 and self.in_channels % 16 != 0
        if odd and torch.is_grad_enabled() and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        return super().forward(x)


class PointwiseConv2d(nn.Conv2d):
    """A strided 1x1 convolution, computed as a 1x1 convolution of every `stride`-th pixel.

    The result is the same, but oneDNN's backward pass of a strided channels-last 1x1 convolution writes out of
    bounds on CPUs (torch 2.13: 8 to 16 channels, stride 2, 192 x 160 pixels ends in a segmentation fault).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(x[..., ::rows, ::columns], self.weight, self.bias)


class ConvBlock(nn.Module):
    """Convolution, norm and leaky ReLU, `num_convs` times: (B, C, H, W) to (B, out, H, W).

    With `residual`, the input is added before the last activation (He et al., arXiv 1512.03385), through a
    1x1 convolution if its channels or its size differ.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        norm: in `NORMS`.
        num_convs: convolutions.
        dropout: fraction of channels to drop after the last activation.
        residual: whether to add the input.
        stride: of the first convolution; 1 keeps H and W.
        kernel_size: odd.
        dilation: of all convolutions; keeps H and W.

    Raises:
        ValueError: an argument out of range.
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
            raise ValueError(
                f"num_convs is {num_convs} and dilation is {dilation}; expected integers of at least 1"
            )
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
