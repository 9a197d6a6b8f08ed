"""An ensemble of networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Averages the probabilities of several networks and returns logits, as a network does.

    Reference: Lakshminarayanan et al. 2017 (arXiv 1612.01474). Checkpoints of one run with a cyclic schedule
    form a snapshot ensemble (Huang et al. 2017, arXiv 1704.00109).

    Attributes:
        members: the networks, each (B, C, H, W) to logits (B, K, H, W).
        target: "classes" averages softmaxes and returns log-probabilities; "regions" averages sigmoids.

    Raises:
        ValueError: no members, or another target.
    """

    def __init__(self, members: Sequence[nn.Module], target: str) -> None:
        super().__init__()
        if not members:
            raise ValueError("the ensemble has no members; expected at least one network")
        if target not in ("classes", "regions"):
            raise ValueError(f"target is '{target}'; expected classes or regions")
        self.members, self.target = nn.ModuleList(members), target

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training, "an ensemble only predicts; its members are trained separately"
        logits = torch.stack([member(x).float() for member in self.members])
        # Summed as logarithms, so that no probability is rounded to 0 or 1.
        if self.target == "classes":
            return logits.log_softmax(2).logsumexp(0) - math.log(len(self.members))
        return F.logsigmoid(logits).logsumexp(0) - F.logsigmoid(-logits).logsumexp(0)
