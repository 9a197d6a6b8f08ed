"""Augmentation of a batch, on the device that it is on."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from glioray.config import AugmentConfig
from glioray.slices.store import Batch


class Augment:
    """Flips, rotation, scaling and shifting; contrast, brightness, tone, gamma, coil field, noise, blur.

    Each sample's draw depends on (seed, epoch, its position in the epoch) alone: two ranks vary a batch just
    as one rank does, and a resumed run as an uninterrupted one. The background stays 0.
    """

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def __call__(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """Varied (images, masks) in new memory; shapes as in the batch."""
        if self.config.strength == 0:
            return batch.images, batch.masks
        rngs = [np.random.default_rng([self.seed, epoch, int(position)]) for position in batch.positions]
        images, masks = self._geometry(batch, rngs)
        brain = (images != 0).to(images.dtype)
        images = self._intensity(images, rngs)
        return images * brain, masks

    def _geometry(self, batch: Batch, rngs: list[np.random.Generator]) -> tuple[Tensor, Tensor]:
        config, strength = self.config, self.config.strength
        images, masks = batch.images.clone(), batch.masks.clone()
        height, width = images.shape[-2:]
        for axis in (0, 1):
            allowed = batch.lateral if axis == 1 else np.ones(len(rngs), bool)
            flags = np.array([rng.random() < config.flip[axis] for rng in rngs])
            rows = _rows(flags & allowed, images.device)
            images[rows] = images[rows].flip(2 + axis)
            masks[rows] = masks[rows].flip(1 + axis)
        rows = _rows([rng.random() < config.affine_p for rng in rngs], images.device)
        matrices = np.stack([self._affine(rng, height / width) for rng in rngs])
        if strength and len(rows):
            theta = torch.as_tensor(matrices, dtype=images.dtype, device=images.device)[rows]
            grid = F.affine_grid(theta, [len(rows), 1, height, width], align_corners=False)
            images[rows] = F.grid_sample(images[rows], grid, align_corners=False)
            labels = masks[rows][:, None].to(images.dtype)
            masks[rows] = F.grid_sample(labels, grid, mode="nearest", align_corners=False)[:, 0].to(
                masks.dtype
            )
        return images, masks

    def _affine(self, rng: np.random.Generator, aspect: float) -> NDArray[np.float64]:
        """(2, 3) in affine_grid's (x, y), both spanning [-1, 1]; `aspect` keeps pixels square."""
        config = self.config
        angle, scale, stretch, *shift = rng.uniform(-1, 1, 5) * config.strength
        cos, sin = (
            math.cos(math.radians(config.rotate_deg) * angle),
            math.sin(math.radians(config.rotate_deg) * angle),
        )
        zoom, ratio = math.exp(config.scale * scale), math.exp(config.stretch * stretch)
        return np.array(
            [
                [zoom * cos * ratio, -zoom * sin * aspect * ratio, 2 * config.shift * shift[0]],
                [zoom * sin / aspect / ratio, zoom * cos / ratio, 2 * config.shift * shift[1]],
            ]
        )

    def _intensity(self, images: Tensor, rngs: list[np.random.Generator]) -> Tensor:
        """Varied intensities; what it leaves in the background is for the caller to blank."""
        config, strength = self.config, self.config.strength
        channels = images.shape[1]

        def values(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
            """(B, *shape, 1, 1) of each sample's own draws."""
            drawn = np.stack([rng.uniform(low, high, shape) for rng in rngs])
            return torch.as_tensor(drawn, dtype=images.dtype, device=images.device)[..., None, None]

        def chosen(probability: float) -> Tensor:
            return _rows([rng.random() < probability for rng in rngs], images.device)

        rows = chosen(config.intensity_p)
        heights, centres, slopes = (
            values(3, channels),
            values(3, channels, low=-2, high=3),
            values(3, channels, low=0.7, high=2),
        )
        gains, offsets = (
            torch.exp(config.contrast * strength * values(channels)),
            config.brightness * strength * values(channels),
        )
        if len(rows):
            picked = images[rows]
            if config.curve:
                for step in range(3):
                    bend = torch.tanh((images[rows] - centres[rows, step]) * slopes[rows, step])
                    picked = picked + config.curve * strength * heights[rows, step] * bend
            images[rows] = picked * gains[rows] + offsets[rows]
        rows, exponents = chosen(config.gamma_p), torch.exp(config.gamma * strength * values(channels))
        if len(rows):
            images[rows] = _gamma(images[rows], exponents[rows])
        if config.bias:
            coarse = (
                np.stack([rng.standard_normal((channels, 4, 4)) for rng in rngs]) * config.bias * strength
            )
            field = torch.as_tensor(coarse, dtype=images.dtype, device=images.device)
            images = images + F.interpolate(field, size=images.shape[-2:], mode="bicubic")
        noisy = [rng.random() < config.noise_p for rng in rngs]
        for row, rng in enumerate(rngs):
            if noisy[row]:
                generator = torch.Generator(images.device).manual_seed(int(rng.integers(1 << 62)))
                noise = torch.randn(
                    images[row].shape, generator=generator, device=images.device, dtype=images.dtype
                )
                images[row] += noise * (config.noise_std * strength * rng.random())
        rows = chosen(config.blur_p)
        if len(rows):
            images[rows] = F.avg_pool2d(images[rows], 3, 1, 1)
        if config.drop_p:
            images = images * (values(channels, low=0) >= config.drop_p).to(images.dtype)
        return images


def _gamma(images: Tensor, exponents: Tensor) -> Tensor:
    """Each channel's range raised to a power, its extremes kept."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    span = (high - low).clamp_min(1e-6)
    return ((images - low) / span) ** exponents * span + low


def _rows(flags: list[bool] | NDArray[np.bool_], device: torch.device) -> Tensor:
    return torch.as_tensor(np.flatnonzero(np.asarray(flags)), device=device)
