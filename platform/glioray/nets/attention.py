"""What weighs features: attention gates over pixels, squeeze and excitation over channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glioray.nets.blocks import build_norm


class AttentionGate(nn.Module):
    """A skip (B, C, H, W) weighed pixel by pixel in [0, 1] by what the level below asks for.

    The additive gate: both are projected to `inner` channels, added, and a 1x1 convolution with a sigmoid
    gives one weight a pixel. Reference: Oktay et al. 2018 (arXiv 1804.03999). Deviations: the question has
    the skip's own size, since it is enlarged first, so that no weight is; the projections are normalised;
    leaky ReLU.
    """

    def __init__(self, asking: int, skip: int, *, inner: int, norm: str = "batch") -> None:
        super().__init__()
        self.ask = nn.Sequential(nn.Conv2d(asking, inner, 1, bias=norm == "none"), build_norm(norm, inner))
        self.answer = nn.Sequential(nn.Conv2d(skip, inner, 1, bias=norm == "none"), build_norm(norm, inner))
        self.weight = nn.Conv2d(inner, 1, 1)

    def forward(self, asking: Tensor, skip: Tensor) -> Tensor:
        return skip * self.weight(F.leaky_relu(self.ask(asking) + self.answer(skip), 0.01)).sigmoid()


class SqueezeExcite(nn.Module):
    """(B, C, H, W) with each channel weighed in [0, 1] by the means of all of them.

    Reference: Hu et al. 2018 (arXiv 1709.01507), without biases as in ResUNet++ (arXiv 1911.07067).
    Deviation: leaky ReLU, since a few channels of ReLU may be dead from the start.
    """

    def __init__(self, channels: int, *, reduction: int = 8) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.squeeze = nn.Conv2d(channels, inner, 1, bias=False)
        self.excite = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = torch.mean(x, dim=(2, 3), keepdim=True)
        return x * self.excite(F.leaky_relu(self.squeeze(means), 0.01)).sigmoid()
