"""The outputs of a network in training, if it has more than logits."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TrainingOutputs(NamedTuple):
    """All outputs for a loss; in evaluation a network returns only its logits.

    Attributes:
        logits: (B, C, H, W), the network's output in evaluation.
        sides: side outputs, each (B, C, H, W), upsampled to the images' size, finest first.
        presence: (B, C') logits for whether a slice has any pixel of each tumour channel, from a
            classification-guided module; (B, C', N) from N such modules (`FoldedNet`); None without one.
    """

    logits: Tensor
    sides: tuple[Tensor, ...] = ()
    presence: Tensor | None = None
