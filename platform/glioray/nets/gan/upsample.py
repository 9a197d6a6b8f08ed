"""The upsampling half of a generator: features at low resolution to an image of any size."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# With a skip, the head's initial weights are scaled by this, so that an untrained generator is nearly bicubic.
HEAD_SCALE = 0.1


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, h, w) to (B, C, *size).

    By nearest neighbours if both ratios are integers, else bilinearly.
    """
    height, width = x.shape[-2:]
    if size[0] % height == 0 and size[1] % width == 0:
        return F.interpolate(x, size=size, mode="nearest")
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class Upsampler(nn.Module):
    """Features (B, width, h, w) and their image (B, channels, h, w) to (B, channels, H, W).

    Features are upsampled and then convolved, `num_ups` times: by two, and the last time to the output size,
    in any ratio. Pixel shuffle, used in the papers of SRGAN and ESRGAN, leaves checkerboards (Odena et al.
    2016, "Deconvolution and checkerboard artifacts", Distill).

    Args:
        width: channels of the features.
        head_width: channels after the last upsampling, where most of the arithmetic is.
        num_ups: the number of upsamplings; 2 for x4.
        head: (B, head_width, H, W) to (B, channels, H, W); its last layer is a convolution.
        activation: builds the activation after each convolution.
        skip: whether to add the bicubic interpolation of the image, so that the network learns the difference.

    Raises:
        ValueError: `num_ups` is below 1.
    """

    def __init__(
        self,
        width: int,
        head_width: int,
        *,
        num_ups: int,
        head: nn.Sequential,
        activation: Callable[[], nn.Module],
        skip: bool,
    ) -> None:
        super().__init__()
        if num_ups < 1:
            raise ValueError(f"num_ups is {num_ups}; expected at least 1")
        # Narrow already before the last upsampling, so that fewer channels are interpolated.
        widths = [width] * max(1, num_ups - 1) + [head_width] * min(2, num_ups)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(source, target, 3, padding=1), activation())
            for source, target in pairwise(widths)
        )
        self.head, self.skip = head, skip
        if skip:
            with torch.no_grad():
                for parameter in head[-1].parameters():
                    parameter.mul_(HEAD_SCALE)

    def forward(self, features: Tensor, lr: Tensor, out_size: tuple[int, int]) -> Tensor:
        if out_size[0] < lr.shape[-2] or out_size[1] < lr.shape[-1]:
            raise ValueError(
                f"out_size is {tuple(out_size)}; expected at least the image's {tuple(lr.shape[-2:])}"
            )
        last = len(self.stages) - 1
        for number, stage in enumerate(self.stages):
            height, width = features.shape[-2:]
            features = stage(upsample(features, out_size if number == last else (2 * height, 2 * width)))
        # In the image's type even under autocast, since bf16 has fewer levels than an image.
        sr = self.head(features).to(lr.dtype)
        if self.skip:
            sr = sr + F.interpolate(lr, size=out_size, mode="bicubic", align_corners=False)
        return sr
