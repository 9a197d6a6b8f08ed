"""Attention over pixels (attention gates) and over channels (squeeze and excitation)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glioray.nets.blocks import build_norm


class AttentionGate(nn.Module):
    """Multiply a skip (B, C, H, W) by one weight in [0, 1] per pixel.

    Weights are computed from the skip and the level below it. The additive gate: both inputs are projected to
    `inner` channels and added, and a 1x1 convolution with a sigmoid gives the weights.

    Reference: Oktay et al. 2018 (arXiv 1804.03999). Deviations: the level below is upsampled first, so that
    weights need no upsampling; the projections are normalised; leaky ReLU.
    """

    def __init__(self, gating: int, skip: int, *, inner: int, norm: str = "batch") -> None:
        super().__init__()
        self.ask = nn.Sequential(nn.Conv2d(gating, inner, 1, bias=norm == "none"), build_norm(norm, inner))
        self.answer = nn.Sequential(nn.Conv2d(skip, inner, 1, bias=norm == "none"), build_norm(norm, inner))
        self.weight = nn.Conv2d(inner, 1, 1)

    def forward(self, gating: Tensor, skip: Tensor) -> Tensor:
        return skip * self.weight(F.leaky_relu(self.ask(gating) + self.answer(skip), 0.01)).sigmoid()


class SqueezeExcite(nn.Module):
    """Multiply each channel of (B, C, H, W) by a weight in [0, 1].

    Weights are computed from the means of all channels.

    Reference: Hu et al. 2018 (arXiv 1709.01507), without biases as in ResUNet++ (arXiv 1911.07067).
    Deviation: leaky ReLU, since with few channels a ReLU may be dead from the start.
    """

    def __init__(self, channels: int, *, reduction: int = 8) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.squeeze = nn.Conv2d(channels, inner, 1, bias=False)
        self.excite = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = torch.mean(x, dim=(2, 3), keepdim=True)
        return x * self.excite(F.leaky_relu(self.squeeze(means), 0.01)).sigmoid()
