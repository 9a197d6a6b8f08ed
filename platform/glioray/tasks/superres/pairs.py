"""Pairs of high and low resolution from batches of slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from glioray.slices.store import Batch
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.degrade import degrade, resize


@dataclass(frozen=True)
class Pairs:
    """A training batch of a generator.

    Attributes:
        hr: (B, C, H, W) float32 in [0, 1].
        lr: (B, C, h, w) float32, degraded from `hr`.
        rngs: one generator per image, for all other random draws of this step.
    """

    hr: Tensor
    lr: Tensor
    rngs: list[np.random.Generator]


def draw_pairs(batch: Batch, config: GanConfig, epoch: int, *, node_rank: int = 0) -> Pairs:
    """Draw the augmented pairs of a batch: a random window (or the whole slice), randomly mirrored.

    With channels "each", one modality is drawn per slice, so that B is the batch size. Every draw depends on (seed,
    node, epoch, position in the epoch) alone: two ranks of a node draw the pairs that one rank would, and each node,
    which numbers its samples from 0, has its own draws.
    """
    seed, cut = config.train.seed + 1_000_003 * node_rank, config.degrade
    rngs = [np.random.default_rng([seed, epoch, int(position), 7]) for position in batch.positions]
    images = []
    for image, lateral, rng in zip(batch.images, batch.lateral, rngs, strict=True):
        channel, y, x, rows, columns = rng.random(5)
        if config.channels == "each":
            image = image[int(channel * len(image))][None]
        if cut.cut == "patch":
            top, left = (
                int(place * (side - cut.hr_size + 1))
                for place, side in zip((y, x), image.shape[1:], strict=True)
            )
            image = image[:, top : top + cut.hr_size, left : left + cut.hr_size]
        flips = [axis for axis, draw in ((1, rows), (2, columns)) if draw < config.flip]
        # Mirrored columns of a sagittal slice are not anatomy; mirrored rows are fine for textures.
        images.append(image.flip([axis for axis in flips if axis == 1 or lateral]))
    hr = torch.stack(images)
    side = (cut.hr_size, cut.hr_size)
    if hr.shape[-2:] != side:
        hr = resize(hr, side)
    return Pairs(hr, degrade(hr, (cut.lr_size, cut.lr_size), cut, rngs), rngs)


def fixed_images(image: Tensor, config: GanConfig) -> Tensor:
    """Cut the images to score, (K, C, H, W), from one slice (M, H', W') in [0, 1]; the same each time.

    The window around the centre of the brain, or the whole slice. With channels "each", one image per modality
    (K = M, C = 1), else one image with all of them.
    """
    size = config.degrade.hr_size
    if config.degrade.cut == "patch":
        filled = (image > 0).any(0)
        window = []
        for axis in (0, 1):
            present = torch.nonzero(filled.any(1 - axis))
            middle = (
                int((present.min() + present.max() + 1) // 2) if len(present) else filled.shape[axis] // 2
            )
            window.append(min(max(middle - size // 2, 0), filled.shape[axis] - size))
        image = image[:, window[0] : window[0] + size, window[1] : window[1] + size]
    images = image[:, None] if config.channels == "each" else image[None]
    return images.float() if images.shape[-2:] == (size, size) else resize(images, (size, size))
