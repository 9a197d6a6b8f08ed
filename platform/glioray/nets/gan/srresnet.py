"""SRResNet, the generator of SRGAN."""

from __future__ import annotations

from torch import Tensor, nn

from glioray.nets.blocks import build_norm
from glioray.nets.gan.upsample import Upsampler


class SRResNet(nn.Module):
    """SRGAN's generator: (B, channels, h, w) and a size to (B, channels, H, W).

    The input is in [0, 1]; the output is not clipped. Residual blocks at low resolution with a skip around
    all of them, followed by upsampling.

    Args:
        channels: of the images, in and out.
        width: channels of the features.
        num_blocks: residual blocks of two convolutions.
        norm: in `blocks.NORMS`; "batch" in the paper.
        residual_scale: factor of a residual; below 1 it stabilises blocks without a norm (EDSR, arXiv 1707.02921).
        num_ups: as in `Upsampler`.
        head_width: as in `Upsampler`; None is `width`.
        skip: as in `Upsampler`.

    Raises:
        ValueError: an unknown norm, or a number below 1.

    Reference: Ledig et al. 2017 (arXiv 1609.04802). Deviations: upsampling by nearest neighbours and a
    convolution instead of pixel shuffle, to any size; a bicubic skip unless `skip` is False; one slope per PReLU.
    """

    def __init__(
        self,
        *,
        channels: int,
        width: int = 64,
        num_blocks: int = 16,
        norm: str = "batch",
        residual_scale: float = 1.0,
        num_ups: int = 2,
        head_width: int | None = None,
        skip: bool = True,
    ) -> None:
        super().__init__()
        head_width = width if head_width is None else head_width
        if min(channels, width, head_width, num_blocks) < 1:
            raise ValueError(
                f"channels is {channels}, width is {width}, head_width is {head_width}, num_blocks is {num_blocks}; "
                "expected at least 1 each"
            )
        self.first = nn.Sequential(nn.Conv2d(channels, width, 9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(*(_ResidualBlock(width, norm, residual_scale) for _ in range(num_blocks)))
        self.last = _conv(width, norm)
        self.upsampler = Upsampler(
            width,
            head_width,
            num_ups=num_ups,
            head=nn.Sequential(nn.Conv2d(head_width, channels, 9, padding=4)),
            activation=nn.PReLU,
            skip=skip,
        )

    def forward(self, lr: Tensor, out_size: tuple[int, int]) -> Tensor:
        first = self.first(lr)
        return self.upsampler(first + self.last(self.blocks(first)), lr, out_size)


class _ResidualBlock(nn.Module):
    def __init__(self, width: int, norm: str, residual_scale: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(_conv(width, norm), nn.PReLU(), _conv(width, norm))
        self.residual_scale = residual_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual_scale * self.layers(x)


def _conv(width: int, norm: str) -> nn.Sequential:
    conv = nn.Conv2d(width, width, 3, padding=1, bias=norm == "none")
    return nn.Sequential(conv, build_norm(norm, width))
