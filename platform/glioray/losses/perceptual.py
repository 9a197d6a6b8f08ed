"""Perceptual loss: a comparison of images by the features of a frozen network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CRITERIA = {"l1": F.l1_loss, "mse": F.mse_loss}

_LAST_CONVS = {
    "vgg16": ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"),
    "vgg19": ("conv1_2", "conv2_2", "conv3_4", "conv4_4", "conv5_4"),
    "alexnet": ("conv1", "conv2", "conv3", "conv4", "conv5"),
}

PRESETS = ("esrgan", "srgan", "real_esrgan")
"""Sets of layers: the deepest before its ReLU (ESRGAN, arXiv 1809.00219), the deepest after its ReLU (SRGAN, arXiv
1609.04802), or five before their ReLUs with weights .1, .1, 1, 1, 1 (Real-ESRGAN, arXiv 2107.10833)."""


def default_layers(extractor: str, preset: str = "real_esrgan") -> dict[str, float]:
    """Layer -> weight, as in a paper for VGG19, and at the same depths for other networks.

    For the encoder of a U-Net, "esrgan" and "srgan" use level 4 and "real_esrgan" uses levels 1 to 4, which
    need a `depth` of at least 3.

    Args:
        extractor: "vgg19", "vgg16", "alexnet" or "unet".
        preset: in `PRESETS`.

    Raises:
        ValueError: an unknown extractor or preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset is '{preset}'; expected one of {', '.join(PRESETS)}")
    if extractor == "unet":
        levels = {"level1": 0.1, "level2": 0.1, "level3": 1.0, "level4": 1.0}
        return levels if preset == "real_esrgan" else {"level4": 1.0}
    if extractor not in _LAST_CONVS:
        available = ", ".join(sorted([*_LAST_CONVS, "unet"]))
        raise ValueError(f"No default layers for the extractor '{extractor}'; available: {available}")
    convs = _LAST_CONVS[extractor]
    if preset == "real_esrgan":
        return dict(zip(convs, (0.1, 0.1, 1.0, 1.0, 1.0), strict=True))
    return {convs[-1] if preset == "esrgan" else convs[-1].replace("conv", "relu"): 1.0}


class PerceptualLoss(nn.Module):
    """The weighted sum over layers of mean differences of features.

    Compares two (B, C, H, W) in [0, 1] and returns a scalar. Computed in float32; gradients flow to the first
    image only.

    Args:
        features: `nets.features.GreyFeatures` or `EncoderFeatures`.
        layers: layer -> weight, as from `default_layers`.
        criterion: "l1" (ESRGAN) or "mse" (SRGAN).
        crop: the side in pixels of one random square per image to compare; 0 compares whole images.

    Raises:
        ValueError: an argument out of range, or a layer that the network does not have.

    Reference: Johnson et al. 2016 (arXiv 1603.08155); Ledig et al. 2017 (arXiv 1609.04802), whose factor of
    1 / 12.75 is part of the weights here; Wang et al. 2018 (arXiv 1809.00219). Crops are our addition, which
    makes the loss affordable on a CPU.
    """

    def __init__(
        self, features: nn.Module, layers: Mapping[str, float], *, criterion: str = "l1", crop: int = 0
    ) -> None:
        super().__init__()
        available: tuple[str, ...] = features.layers  # type: ignore[assignment]
        unknown = [name for name in layers if name not in available]
        if unknown or not any(weight > 0 for weight in layers.values()) or min(layers.values()) < 0:
            raise ValueError(
                f"layers is {dict(layers)}; expected weights of at least 0, not all 0, of {', '.join(available)}"
            )
        if criterion not in _CRITERIA:
            raise ValueError(f"criterion is '{criterion}'; expected one of {', '.join(_CRITERIA)}")
        if crop < 0:
            raise ValueError(f"crop is {crop}; expected a side in pixels, or 0 for whole images")
        self.features = features
        self.layers = {name: weight for name, weight in layers.items() if weight}
        self.criterion, self.crop = criterion, crop

    def forward(self, sr: Tensor, hr: Tensor, rngs: Sequence[np.random.Generator] | None = None) -> Tensor:
        """The loss of `sr` against `hr`.

        `rngs` has one generator per image, so that crops do not depend on the number of ranks.

        Raises:
            ValueError: shapes that differ.
        """
        if sr.shape != hr.shape:
            raise ValueError(f"sr has the shape {tuple(sr.shape)}; expected that of hr, {tuple(hr.shape)}")
        if self.crop:
            sr, hr = _crop_alike(sr, hr, self.crop, rngs)
        generated = self.features(sr, tuple(self.layers))
        with torch.no_grad():
            real = self.features(hr, tuple(self.layers))
        compare = _CRITERIA[self.criterion]
        terms = [weight * compare(generated[name], real[name]) for name, weight in self.layers.items()]
        return torch.stack(terms).sum()


def _crop_alike(
    sr: Tensor, hr: Tensor, side: int, rngs: Sequence[np.random.Generator] | None
) -> tuple[Tensor, Tensor]:
    height, width = (min(side, length) for length in sr.shape[-2:])
    draws = [rng.random(2) for rng in rngs or [np.random.default_rng()] * len(sr)]
    tops, lefts = (
        [int(draw[axis] * (sr.shape[axis - 2] - part + 1)) for draw in draws]
        for axis, part in enumerate((height, width))
    )

    def cut(images: Tensor) -> Tensor:
        return torch.stack(
            [
                image[:, top : top + height, left : left + width]
                for image, top, left in zip(images, tops, lefts, strict=True)
            ]
        )

    return cut(sr), cut(hr)
