"""The half of a generator that enlarges: features at low resolution to an image of any size."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# With a skip the head begins so much smaller: an untrained generator is then nearly bicubic interpolation.
HEAD_SCALE = 0.1


def enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) to (B, C, *size): by repeating pixels where both ratios are whole, else bilinear."""
    height, width = x.shape[-2:]
    if size[0] % height == 0 and size[1] % width == 0:
        return F.interpolate(x, size=size, mode="nearest")
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class Upsampler(nn.Module):
    """Features (B, width, h, w) and the image (B, channels, h, w) that they are of to (B, channels, H, W).

    Features are enlarged and then convolved, `num_ups` times: by two, and the last time to the size wanted,
    whatever its ratio. Pixel shuffle, which the papers of SRGAN and ESRGAN take or began with, leaves
    checkerboards (Odena et al. 2016, "Deconvolution and checkerboard artifacts", Distill).

    Args:
        width: channels of the features.
        head_width: channels from the last enlargement on, where most of the arithmetic is.
        num_ups: how often features are enlarged; 2 for x4.
        head: (B, head_width, H, W) to (B, channels, H, W); its last layer is a convolution.
        activation: builds what follows each convolution here.
        skip: add the image's bicubic interpolation, so that the network makes what that lacks.

    Raises:
        ValueError: a `num_ups` below 1.
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
            raise ValueError(f"num_ups {num_ups}: expected 1 or more")
        # Narrow before the last enlargement already: so many channels fewer are interpolated.
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
                f"out_size {tuple(out_size)} is below the image's {tuple(lr.shape[-2:])}; "
                "a generator enlarges: ask for at least the size that goes in"
            )
        last = len(self.stages) - 1
        for number, stage in enumerate(self.stages):
            height, width = features.shape[-2:]
            features = stage(enlarge(features, out_size if number == last else (2 * height, 2 * width)))
        # Outside of autocast's reach: bf16 has fewer steps than an image.
        sr = self.head(features).to(lr.dtype)
        if self.skip:
            sr = sr + F.interpolate(lr, size=out_size, mode="bicubic", align_corners=False)
        return sr
