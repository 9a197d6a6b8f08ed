"""Images compared by the features of a frozen network."""

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
"""Which layers count: ESRGAN's deepest before its ReLU (arXiv 1809.00219), SRGAN's after it (arXiv 1609.04802), and
Real-ESRGAN's five before theirs with .1, .1, 1, 1, 1 (arXiv 2107.10833)."""


def default_layers(extractor: str, preset: str = "real_esrgan") -> dict[str, float]:
    """Layer -> weight, as a paper has it for VGG19, and at the same depths of the other networks.

    A U-Net's encoder has two sets only: its deepest level but one (esrgan, srgan), or its first four (real_esrgan).
    They are of a `depth` from 3.

    Args:
        extractor: "vgg19", "vgg16", "alexnet" or "unet".
        preset: of `PRESETS`.

    Raises:
        ValueError: another name.
    """
    if preset not in PRESETS:
        raise ValueError(f"'{preset}' is not a set of layers; they are {', '.join(PRESETS)}")
    if extractor == "unet":
        several = {"level1": 0.1, "level2": 0.1, "level3": 1.0, "level4": 1.0}
        return several if preset == "real_esrgan" else {"level4": 1.0}
    if extractor not in _LAST_CONVS:
        known = ", ".join(sorted([*_LAST_CONVS, "unet"]))
        raise ValueError(f"'{extractor}' has no layers to compare; the extractors are {known}")
    convs = _LAST_CONVS[extractor]
    if preset == "real_esrgan":
        return dict(zip(convs, (0.1, 0.1, 1.0, 1.0, 1.0), strict=True))
    return {convs[-1] if preset == "esrgan" else convs[-1].replace("conv", "relu"): 1.0}


class PerceptualLoss(nn.Module):
    """The weighted sum over layers of the mean difference of features: two (B, C, H, W) in [0, 1] to a scalar float32.

    Gradients flow to the first of them alone.

    Args:
        features: `nets.features.GreyFeatures` or `EncoderFeatures`.
        layers: layer -> weight; of `default_layers`.
        criterion: "l1" (ESRGAN) or "mse" (SRGAN).
        crop: side in pixels of one square an image, drawn anew each time, at which features are compared;
            0, or more than the image's side, for whole images.

    Raises:
        ValueError: an argument out of range, or layers that the network has not.

    Reference: Johnson et al. 2016 (arXiv 1603.08155); Ledig et al. 2017 (arXiv 1609.04802), who multiply features by
    1 / 12.75; Wang et al. 2018 (arXiv 1809.00219). Here the weight does that. Crops are ours: on a CPU they
    make the loss affordable.
    """

    def __init__(
        self, features: nn.Module, layers: Mapping[str, float], *, criterion: str = "l1", crop: int = 0
    ) -> None:
        super().__init__()
        known: tuple[str, ...] = features.layers  # type: ignore[assignment]
        unknown = [name for name in layers if name not in known]
        if unknown or not any(weight > 0 for weight in layers.values()) or min(layers.values()) < 0:
            raise ValueError(
                f"layers is {dict(layers)}; expected weights from 0, one of them above, of {', '.join(known)}"
            )
        if criterion not in _CRITERIA:
            raise ValueError(f"'{criterion}' is not a criterion; they are {', '.join(_CRITERIA)}")
        if crop < 0:
            raise ValueError(f"crop is {crop}; expected a side in pixels, or 0 for whole images")
        self.features = features
        self.layers = {name: weight for name, weight in layers.items() if weight}
        self.criterion, self.crop = criterion, crop

    def forward(self, sr: Tensor, hr: Tensor, rngs: Sequence[np.random.Generator] | None = None) -> Tensor:
        """The loss; `rngs` draw the crops, one of them each image's, so that ranks draw what one rank would.

        Raises:
            ValueError: shapes that differ.
        """
        if sr.shape != hr.shape:
            raise ValueError(
                f"sr is {tuple(sr.shape)} but hr is {tuple(hr.shape)}; they must be of one shape"
            )
        if self.crop:
            sr, hr = _same_crops(sr, hr, self.crop, rngs)
        made = self.features(sr, tuple(self.layers))
        with torch.no_grad():
            real = self.features(hr, tuple(self.layers))
        compare = _CRITERIA[self.criterion]
        terms = [weight * compare(made[name], real[name]) for name, weight in self.layers.items()]
        return torch.stack(terms).sum()


def _same_crops(
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
