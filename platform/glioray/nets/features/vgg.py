"""VGG16 and VGG19 without fully connected layers (Simonyan 2015, arXiv 1409.1556)."""

from __future__ import annotations

from torch import nn

from glioray.nets.features.stack import ConvStack

_CONVS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_WIDTHS = (64, 128, 256, 512, 512)


class VggFeatures(ConvStack):
    """(B, 3, H, W) to features by layer.

    "conv1_2" is the output of the second convolution of the first block, "relu1_2" the same after its ReLU.
    The fifth block needs images of at least 16 pixels per side. Has no weights until `load_weights`.

    Args:
        name: "vgg16" or "vgg19".

    Raises:
        ValueError: another name.
    """

    def __init__(self, name: str = "vgg19") -> None:
        if name not in _CONVS:
            raise ValueError(f"No VGG '{name}'; available: {', '.join(_CONVS)}")
        convs, source = {}, 3
        for block, (count, width) in enumerate(zip(_CONVS[name], _WIDTHS, strict=True), start=1):
            for number in range(1, count + 1):
                convs[f"{block}_{number}"] = nn.Conv2d(source, width, 3, padding=1, device="meta")
                source = width
        super().__init__(
            convs,
            pools={f"{block}_1": (2, 2) for block in range(2, 6)},
            levels=tuple(f"relu{block}_{count}" for block, count in enumerate(_CONVS[name], start=1)),
        )
