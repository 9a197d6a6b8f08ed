"""Several networks that answer as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Ensemble(nn.Module):
    """The logits of the mean of several networks' probabilities, so that all that takes a network takes it.

    Reference: Lakshminarayanan et al. 2017 (arXiv 1612.01474); members that are checkpoints of one run under
    a cyclic schedule make a snapshot ensemble (Huang et al. 2017, arXiv 1704.00109).

    Attributes:
        members: the networks, each (B, C, H, W) to logits (B, K, H, W).
        target: "classes" (the mean of softmaxes; log-probabilities come back) or "regions" (of sigmoids).
    """

    def __init__(self, members: Sequence[nn.Module], target: str) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble of no network; give at least one")
        if target not in ("classes", "regions"):
            raise ValueError(f"target '{target}': expected classes or regions")
        self.members, self.target = nn.ModuleList(members), target

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training, "an ensemble only predicts; its members are trained each by itself"
        logits = torch.stack([member(x).float() for member in self.members])
        # Sums of probabilities through their logarithms: neither 0 nor 1 is ever rounded to.
        if self.target == "classes":
            return logits.log_softmax(2).logsumexp(0) - math.log(len(self.members))
        return F.logsigmoid(logits).logsumexp(0) - F.logsigmoid(-logits).logsumexp(0)
