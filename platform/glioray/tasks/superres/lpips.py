"""Perceptual distances between images, from deep features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glioray.tasks.superres.extractors import Extractor

_EPSILON = 1e-10


class Lpips(nn.Module):
    """LPIPS v0.1, with or without trained heads: two (N, C, H, W) in [0, 1] to N distances, 0 for equal images.

    Features of each layer are normalised at each pixel; their squared differences are weighted by the heads, summed
    over features, averaged over pixels, summed over layers and averaged over channels, each treated as a grey image.
    Without heads (vgg19, unet, custom weights) all weights are 1. Values of different extractors, or with and without
    heads, are on different scales, so `name` says which they are.

    Args:
        extractor: from `extractors.resolve_extractor`.
        batch_size: images compared at once, which bounds the memory.

    Attributes:
        name: "lpips_vgg16", "lpips_alexnet", "deep_vgg19", "deep_unet", …
        sha256: the extractor's.

    Raises:
        ValueError: a batch size below 1.

    Reference: Zhang et al. 2018 (arXiv 1801.03924). The authors' code and the images that
    trained the heads are in colour.
    """

    def __init__(self, extractor: Extractor, *, batch_size: int = 8) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        self.name = f"{'deep' if extractor.heads is None else 'lpips'}_{extractor.name}"
        self.sha256 = extractor.sha256
        self.features, self.batch_size = extractor.features, batch_size
        self.levels: tuple[str, ...] = extractor.features.levels  # type: ignore[assignment]
        for level in self.levels:
            head = None if extractor.heads is None else extractor.heads[level].view(-1, 1, 1)
            self.register_buffer(f"head_{level}", head, persistent=False)

    @torch.no_grad()
    def forward(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the distances (N,), float32.

        Args:
            a: (N, C, H, W) in [0, 1].
            b: likewise.
            mask: (N, 1, H, W), weights in the average over pixels, resized to each layer; None for the whole image.

        Raises:
            ValueError: mismatched shapes, or an empty mask.
        """
        if a.shape != b.shape or (mask is not None and mask.shape != (len(a), 1, *a.shape[-2:])):
            raise ValueError(
                f"a is {tuple(a.shape)}, b {tuple(b.shape)}, the mask "
                f"{None if mask is None else tuple(mask.shape)}; expected (N, C, H, W) twice and (N, 1, H, W)"
            )
        if mask is not None and not mask.flatten(1).any(dim=1).all():
            raise ValueError("the mask of an image is empty; leave out images without a foreground")
        masks = torch.ones_like(a[:, :1]) if mask is None else mask
        return self._batched(a, b, masks)[0]

    @torch.no_grad()
    def foreground_and_whole(self, a: Tensor, b: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Compute both distances (N,) in one pass: over `mask` (NaN if it is empty) and over the whole image.

        Arguments as for `forward`; images are moved to the network's device, and the result back.
        """
        inside, whole = self._batched(a, b, mask)
        return inside, whole

    def _batched(self, a: Tensor, b: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if not len(a):
            return a.new_zeros(0), a.new_zeros(0)
        device = next(self.features.parameters()).device
        parts = [
            self._distances(*(images.to(device) for images in part)).to(a.device)
            for part in zip(*(images.split(self.batch_size) for images in (a, b, mask)), strict=True)
        ]
        inside, whole = torch.cat(parts, 1)
        return inside, whole

    def _distances(self, a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
        """Compute (2, N) distances: over the mask and over the whole image."""
        num = len(a)
        found, wanted = (self.features(images, self.levels) for images in (a, b))
        inside, whole = torch.zeros(2, num, device=a.device)
        for level in self.levels:
            squares = (_unit(found[level]) - _unit(wanted[level])).square()
            head = getattr(self, f"head_{level}")
            pixels = (squares if head is None else squares * head).sum(dim=1)
            # A grey extractor has one row per channel, a U-Net's encoder one per image.
            pixels = pixels.unflatten(0, (num, -1)).mean(dim=1)
            share = F.adaptive_avg_pool2d(mask.float(), pixels.shape[-2:])[:, 0]
            inside = inside + (pixels * share).sum(dim=(1, 2)) / share.sum(dim=(1, 2))
            whole = whole + pixels.mean(dim=(1, 2))
        return torch.stack([inside, whole])


def _unit(features: Tensor) -> Tensor:
    return features / (features.norm(dim=1, keepdim=True) + _EPSILON)
