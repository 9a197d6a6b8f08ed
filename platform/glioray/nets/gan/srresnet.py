"""SRResNet, the generator of SRGAN."""

from __future__ import annotations

from torch import Tensor, nn

from glioray.nets.blocks import build_norm
from glioray.nets.gan.upsample import Upsampler


class SRResNet(nn.Module):
    """SRGAN's generator: (B, channels, h, w) in [0, 1] and a size to (B, channels, H, W), not clipped.

    Residual blocks at low resolution, under a skip of their own; features are enlarged after them.

    Args:
        channels: of the images, in and out.
        width: channels of the features.
        num_blocks: residual blocks of two convolutions.
        norm: in `blocks.NORMS`; "batch" is the paper's.
        residual_scale: of what a block adds; below 1 it steadies blocks without a norm (EDSR, arXiv 1707.02921).
        num_ups, head_width, skip: as `Upsampler`'s; no `head_width` is `width`.

    Raises:
        ValueError: a norm that is not in the registry, or a number below 1.

    Reference: Ledig et al. 2017 (arXiv 1609.04802). Ours enlarges by neighbours and a convolution in place of
    pixel shuffle, to any size, and adds the bicubic interpolation unless `skip` is off. One slope a PReLU.
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
                f"channels {channels}, width {width}, head_width {head_width}, num_blocks {num_blocks}: expected 1 or more of each"
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
