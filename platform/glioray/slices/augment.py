"""Augmentation of a batch on its device."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from glioray.config import AugmentConfig
from glioray.slices.artefacts import add_ghosts, add_motion, simulate_low_resolution
from glioray.slices.deform import deform, sampling_grid
from glioray.slices.store import Batch

# Separate streams of random numbers, so that enabling one of these leaves all other draws unchanged.
_ELASTIC, _LOWRES, _GHOST, _MOTION = range(1, 5)


class Augment:
    """Random geometry, then MRI artefacts, then intensity changes, for a whole batch at once.

    In this order: flips, rotation, scaling, shifting and elastic deformation; motion, ghosts and low resolution;
    contrast, brightness, tone, gamma, coil field, noise and blur.

    MONAI's and torchvision's transforms draw once per call, from generators with state. Here each sample's
    draws depend only on (seed, epoch, position in the epoch), so that two ranks of a node augment a batch as one
    rank would, and a resumed run as an uninterrupted one. The background stays 0. A channel with the brain's
    mask follows the geometry and is otherwise unchanged.
    """

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def __call__(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """Augmented copies of (images, masks); the batch's own if the strength is 0."""
        if self.config.strength == 0:
            return batch.images, batch.masks
        rngs = self._rngs(batch, epoch)
        images, masks = self._geometry(batch, epoch, rngs)
        channels = _rows(batch.is_intensity, images.device)
        varied = images[:, channels]
        brain = (varied != 0).to(images.dtype)
        varied = self._artefacts(varied, batch, epoch) * brain
        images[:, channels] = self._intensity(varied, rngs) * brain
        return images, masks

    def _rngs(self, batch: Batch, epoch: int, *stream: int) -> list[np.random.Generator]:
        return [
            np.random.default_rng([self.seed, epoch, int(position), *stream]) for position in batch.positions
        ]

    def _geometry(self, batch: Batch, epoch: int, rngs: list[np.random.Generator]) -> tuple[Tensor, Tensor]:
        images, masks = batch.images.clone(), batch.masks.clone()
        height, width = images.shape[-2:]
        for axis in (0, 1):
            allowed = batch.lateral if axis == 1 else np.ones(len(rngs), bool)
            flags = np.array([rng.random() < self.config.flip[axis] for rng in rngs])
            rows = _rows(flags & allowed, images.device)
            images[rows] = images[rows].flip(2 + axis)
            masks[rows] = masks[rows].flip(1 + axis)
        affine = np.array([rng.random() < self.config.affine_p for rng in rngs])
        matrices = np.stack([self._affine(rng, height / width) for rng in rngs])
        matrices[~affine] = np.eye(2, 3)
        elastic, displacements = self._elastic(batch, epoch)
        rows = _rows(affine | elastic, images.device)
        if len(rows):
            theta, coarse = (
                torch.as_tensor(values, dtype=images.dtype, device=images.device)[rows]
                for values in (matrices, displacements)
            )
            grid = sampling_grid(theta, (height, width), coarse if elastic.any() else None)
            images[rows], masks[rows] = deform(images[rows], masks[rows], grid, batch.is_intensity)
        return images, masks

    def _elastic(self, batch: Batch, epoch: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """(B,) which samples are deformed, and displacements (B, 2, 3, 3) in pixels along (x, y)."""
        count = len(batch.positions)
        elastic, displacements = np.zeros(count, bool), np.zeros((count, 2, 3, 3))
        if self.config.elastic_p:
            for row, rng in enumerate(self._rngs(batch, epoch, _ELASTIC)):
                elastic[row] = rng.random() < self.config.elastic_p
                displacements[row] = elastic[row] * rng.standard_normal((2, 3, 3))
        return elastic, displacements * self.config.elastic_px * self.config.strength

    def _affine(self, rng: np.random.Generator, aspect: float) -> NDArray[np.float64]:
        """A (2, 3) matrix for `affine_grid`; `aspect` is H / W and keeps pixels square."""
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

    def _artefacts(self, images: Tensor, batch: Batch, epoch: int) -> Tensor:
        """Add artefacts in the order of a scan; leaves the background undefined."""
        config, strength = self.config, self.config.strength
        channels = images.shape[1]

        def draw(stream: int, probability: float, num_values: int) -> tuple[Tensor, NDArray[np.float64]]:
            """The chosen rows, and values (rows, C, num_values) in [0, 1) for each of them."""
            rngs = self._rngs(batch, epoch, stream) if probability else []
            chosen = [rng.random() < probability for rng in rngs]
            values = [rng.random((channels, num_values)) for rng in rngs]
            return _rows(chosen, images.device), np.reshape(values, (-1, channels, num_values))[chosen]

        def tensor(values: NDArray[np.float64]) -> Tensor:
            return torch.as_tensor(values, dtype=images.dtype, device=images.device)

        rows, values = draw(_MOTION, config.motion_p, 4)
        if len(rows):
            shifts = tensor((2 * values[..., :2] - 1) * config.motion_px * strength)
            # Starting 1/30 of the lines off the centre smears the whole image; 1/4 gives a fine ripple.
            starts, axes = tensor(1 / 30 + (1 / 4 - 1 / 30) * values[..., 2]), tensor(values[:, 0, 3]) < 0.5
            images[rows] = add_motion(images[rows], shifts, starts, axes.long())
        rows, values = draw(_GHOST, config.ghost_p, 3)
        if len(rows):
            shares = tensor(np.minimum(config.ghost * strength * values[..., 0], 1))
            # Ghosts are shifted by 1/2 to 1/8 of the image.
            periods, axes = tensor(2 + 6 * values[:, 0, 1]), tensor(values[:, 0, 2]) < 0.5
            images[rows] = add_ghosts(images[rows], shares, periods, axes.long())
        rows, values = draw(_LOWRES, config.lowres_p, 1)
        if len(rows):
            factors = 1 + (config.lowres - 1) * strength * values[..., 0]
            images[rows] = simulate_low_resolution(images[rows], factors)
        return images

    def _intensity(self, images: Tensor, rngs: list[np.random.Generator]) -> Tensor:
        """Vary intensities; leaves the background undefined."""
        config, strength = self.config, self.config.strength
        channels = images.shape[1]

        def values(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
            """(B, *shape, 1, 1), drawn separately for each sample."""
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
    """Raise each channel to a power within its range, which keeps its extremes."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    span = (high - low).clamp_min(1e-6)
    return ((images - low) / span) ** exponents * span + low


def _rows(flags: list[bool] | NDArray[np.bool_], device: torch.device) -> Tensor:
    return torch.as_tensor(np.flatnonzero(np.asarray(flags)), device=device)
