"""AlexNet without its fully connected layers."""

from __future__ import annotations

from torch import nn

from glioray.nets.features.stack import ConvStack


class AlexNetFeatures(ConvStack):
    """(B, 3, H, W) to features of "conv1" to "relu5".

    All layers need images of at least 31 pixels per side. Has no weights until `load_weights`.

    Reference: Krizhevsky 2014 (arXiv 1404.5997), in torchvision's one-column form.
    """

    def __init__(self) -> None:
        convs = {
            "1": nn.Conv2d(3, 64, 11, stride=4, padding=2, device="meta"),
            "2": nn.Conv2d(64, 192, 5, padding=2, device="meta"),
            "3": nn.Conv2d(192, 384, 3, padding=1, device="meta"),
            "4": nn.Conv2d(384, 256, 3, padding=1, device="meta"),
            "5": nn.Conv2d(256, 256, 3, padding=1, device="meta"),
        }
        levels = tuple(f"relu{number}" for number in convs)
        super().__init__(convs, pools={"2": (3, 2), "3": (3, 2)}, levels=levels)
