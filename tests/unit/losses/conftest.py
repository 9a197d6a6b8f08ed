"""Batches of logits and masks for losses of both targets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from glioray.losses import SEGMENTATION_LOSSES

MakeBatch = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    """Three slices of 12 x 10: logits for the loss's target, and masks of labels below `labels`."""

    def make(name: str, seed: int = 0, labels: int = 4) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        channels = 3 if "regions" in SEGMENTATION_LOSSES[name].targets else 4
        logits = 3 * torch.randn(3, channels, 12, 10, generator=generator)
        return logits, torch.randint(0, labels, (3, 12, 10), generator=generator, dtype=torch.uint8)

    return make
