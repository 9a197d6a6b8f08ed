"""What a network with side outputs returns while it is trained."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TrainingOutputs(NamedTuple):
    """The outputs that a loss can be put on; in evaluation a network returns its logits alone.

    Attributes:
        logits: (B, C, H, W): what the network answers in evaluation.
        sides: each (B, C, H, W), enlarged to the images' size, the finest first.
        presence: (B, C') logits of whether a slice holds anything at all of each tumour channel, from a
            classification-guided module; (B, C', N) from N such modules (`FoldedNet`); None without one.
    """

    logits: Tensor
    sides: tuple[Tensor, ...] = ()
    presence: Tensor | None = None
