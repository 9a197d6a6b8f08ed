"""Augmentation of a batch, on the device that it is on."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from glioray.config import AugmentConfig
from glioray.slices.store import Batch


class Augment:
    """Flips, rotation and scaling, brightness, contrast, gamma and noise.

    Each sample's draw depends on (seed, epoch, its position in the epoch) alone: two ranks vary a batch just
    as one rank does, and a resumed run as an uninterrupted one. The background stays 0.
    """

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def __call__(self, batch: Batch, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Varied (images, masks) in new memory; shapes as in the batch."""
        config, strength = self.config, self.config.strength
        images, masks = batch.images, batch.masks
        if strength == 0:
            return images, masks
        draws = [np.random.default_rng([self.seed, epoch, int(position)]) for position in batch.positions]
        images, masks = self._geometry(images, masks, draws)
        brain = (images != 0).to(images.dtype)

        channels = images.shape[1]

        def per_channel(low: float, high: float) -> torch.Tensor:
            values = np.stack([rng.uniform(low, high, channels) for rng in draws])
            return torch.as_tensor(values, dtype=images.dtype, device=images.device)[:, :, None, None]

        def chosen(probability: float) -> torch.Tensor:
            flags = [rng.random() < probability for rng in draws]
            return torch.tensor(flags, device=images.device)[:, None, None, None]

        contrast = per_channel(1 - config.contrast * strength, 1 + config.contrast * strength)
        brightness = per_channel(-config.brightness * strength, config.brightness * strength)
        picked = chosen(config.intensity_p).to(images.dtype)
        images = images * (1 + (contrast - 1) * picked) + brightness * picked * brain

        gammas = torch.exp(per_channel(-config.gamma * strength, config.gamma * strength))
        with_gamma = chosen(config.gamma_p).flatten()
        if with_gamma.any():
            images[with_gamma] = _gamma(images[with_gamma], gammas[with_gamma]) * brain[with_gamma]
        noisy = chosen(config.noise_p).flatten().tolist()
        for row, rng in enumerate(draws):
            if noisy[row]:
                generator = torch.Generator(images.device).manual_seed(int(rng.integers(1 << 62)))
                noise = torch.randn(
                    images[row].shape, generator=generator, device=images.device, dtype=images.dtype
                )
                images[row] += noise * (config.noise_std * strength * rng.random()) * brain[row]
        return images, masks

    def _geometry(
        self, images: torch.Tensor, masks: torch.Tensor, draws: list[np.random.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        config, strength = self.config, self.config.strength
        height, width = images.shape[-2:]
        matrices = np.tile(np.eye(2, 3, dtype=np.float32), (len(draws), 1, 1))
        moved = np.zeros(len(draws), bool)
        for row, rng in enumerate(draws):
            flips = [-1.0 if allowed and rng.random() < 0.5 else 1.0 for allowed in config.flip]
            angle = math.radians(config.rotate_deg * strength * rng.uniform(-1, 1))
            zoom = math.exp(config.scale * strength * rng.uniform(-1, 1))
            moved[row] = rng.random() < config.affine_p
            if not moved[row]:
                angle, zoom = 0.0, 1.0
            cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
            # In affine_grid's (x, y) coordinates, both spanning [-1, 1]: pixels are kept square.
            linear = np.array([[cos, -sin * height / width], [sin * width / height, cos]])
            matrices[row, :, :2] = linear @ np.diag([flips[1], flips[0]])
        flip_only = torch.as_tensor(matrices[:, [1, 0], [1, 0]] < 0) & torch.as_tensor(~moved)[:, None]
        images, masks = images.clone(), masks.clone()
        for axis in (0, 1):
            rows = flip_only[:, axis].nonzero().flatten().to(images.device)
            if len(rows):
                images[rows] = images[rows].flip(2 + axis)
                masks[rows] = masks[rows].flip(1 + axis)
        rows = torch.as_tensor(moved).nonzero().flatten().to(images.device)
        if len(rows):
            theta = torch.as_tensor(matrices, device=images.device)[rows]
            grid = F.affine_grid(theta, [len(rows), 1, height, width], align_corners=False)
            images[rows] = F.grid_sample(images[rows], grid, align_corners=False)
            labels = masks[rows][:, None].to(images.dtype)
            masks[rows] = F.grid_sample(labels, grid, mode="nearest", align_corners=False)[:, 0].to(
                masks.dtype
            )
        return images, masks


def _gamma(images: torch.Tensor, gammas: torch.Tensor) -> torch.Tensor:
    """Each channel's range raised to a power, its extremes kept."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    span = (high - low).clamp_min(1e-6)
    return ((images - low) / span) ** gammas * span + low
