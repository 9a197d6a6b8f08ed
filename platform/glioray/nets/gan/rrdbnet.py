"""RRDBNet, the generator of ESRGAN."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from glioray.nets.gan.upsample import Upsampler

_activation = partial(nn.LeakyReLU, 0.2, inplace=True)


class RRDBNet(nn.Module):
    """ESRGAN's generator: (B, channels, h, w) and a size to (B, channels, H, W).

    The input is in [0, 1]; the output is not clipped. Residual blocks of dense blocks at low resolution,
    without normalisation, followed by upsampling.

    Args:
        channels: of the images, in and out.
        width: channels of the features.
        num_blocks: residual-in-residual blocks, each of three dense blocks of five convolutions.
        growth: channels added by each convolution of a dense block.
        residual_scale: factor of a residual before it is added.
        init_scale: factor of the dense blocks' initial weights, relative to He et al. (arXiv 1502.01852).
        num_ups: as in `Upsampler`.
        head_width: as in `Upsampler`; None is `width`.
        skip: as in `Upsampler`.

    Raises:
        ValueError: a number below 1.

    Reference: Wang et al. 2018 (arXiv 1809.00219). Deviations: any output size, and a bicubic skip unless
    `skip` is False.
    """

    def __init__(
        self,
        *,
        channels: int,
        width: int = 64,
        num_blocks: int = 23,
        growth: int = 32,
        residual_scale: float = 0.2,
        init_scale: float = 0.1,
        num_ups: int = 2,
        head_width: int | None = None,
        skip: bool = True,
    ) -> None:
        super().__init__()
        head_width = width if head_width is None else head_width
        if min(channels, width, head_width, num_blocks, growth) < 1:
            raise ValueError(
                f"channels is {channels}, width is {width}, head_width is {head_width}, num_blocks is {num_blocks}, "
                f"growth is {growth}; expected at least 1 each"
            )
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.Sequential(
            *(_RRDB(width, growth, residual_scale, init_scale) for _ in range(num_blocks))
        )
        self.last = nn.Conv2d(width, width, 3, padding=1)
        self.upsampler = Upsampler(
            width,
            head_width,
            num_ups=num_ups,
            head=nn.Sequential(
                nn.Conv2d(head_width, head_width, 3, padding=1),
                _activation(),
                nn.Conv2d(head_width, channels, 3, padding=1),
            ),
            activation=_activation,
            skip=skip,
        )

    def forward(self, lr: Tensor, out_size: tuple[int, int]) -> Tensor:
        first = self.first(lr)
        return self.upsampler(first + self.last(self.blocks(first)), lr, out_size)


class _DenseBlock(nn.Module):
    """Each convolution reads the input and all earlier outputs; the fifth gives the residual."""

    def __init__(self, width: int, growth: int, residual_scale: float, init_scale: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(width + number * growth, growth if number < 4 else width, 3, padding=1)
            for number in range(5)
        )
        self.activation, self.residual_scale = _activation(), residual_scale
        with torch.no_grad():
            for conv in self.convs:
                nn.init.kaiming_normal_(conv.weight).mul_(init_scale)  # type: ignore[arg-type]
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for conv in self.convs[:-1]:
            features = torch.cat([features, self.activation(conv(features))], dim=1)
        return x + self.residual_scale * self.convs[-1](features)


class _RRDB(nn.Module):
    def __init__(self, width: int, growth: int, residual_scale: float, init_scale: float) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(_DenseBlock(width, growth, residual_scale, init_scale) for _ in range(3))
        )
        self.residual_scale = residual_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual_scale * self.blocks(x)
