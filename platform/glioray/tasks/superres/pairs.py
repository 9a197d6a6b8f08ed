"""Pairs of high and low resolution out of batches of slices."""

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
    """What a generator learns from.

    Attributes:
        hr: (B, C, H, W) float32 in [0, 1].
        lr: (B, C, h, w) float32, made of them.
        rngs: a generator for each image, for whatever else is drawn in this step.
    """

    hr: Tensor
    lr: Tensor
    rngs: list[np.random.Generator]


def draw_pairs(batch: Batch, config: GanConfig, epoch: int, *, node_rank: int = 0) -> Pairs:
    """The pairs of a batch, varied: a random window (or the whole slice), mirrored or not.

    Under "each" one modality is drawn of every slice, so that B stays the batch's. Every draw depends on (seed, node,
    epoch, the sample's position in the epoch) alone: two ranks of a node make the pairs that one rank would, and nodes,
    each of which numbers its samples from 0 on, have draws of their own.
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
        # A sagittal slice whose columns are turned is no anatomy; rows upside down are, for textures.
        images.append(image.flip([axis for axis in flips if axis == 1 or lateral]))
    hr = torch.stack(images)
    side = (cut.hr_size, cut.hr_size)
    if hr.shape[-2:] != side:
        hr = resize(hr, side)
    return Pairs(hr, degrade(hr, (cut.lr_size, cut.lr_size), cut, rngs), rngs)


def fixed_images(image: Tensor, config: GanConfig) -> Tensor:
    """(K, C, H, W) high-resolution images of one slice, (M, H', W') in [0, 1], as it is judged: the same each time.

    The window around the brain's middle, or the whole slice; under "each" one image a modality (K = M, C = 1), else
    one with all of them.
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
