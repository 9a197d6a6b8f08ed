"""Feature extractors for perceptual losses and LPIPS, without weights.

Each has `layers`, the names that `forward(x, layers)` accepts, and `levels`, one layer per resolution.
"""

from __future__ import annotations

from glioray.nets.features.alexnet import AlexNetFeatures
from glioray.nets.features.encoder import EncoderFeatures
from glioray.nets.features.grey import GreyFeatures
from glioray.nets.features.stack import ConvStack
from glioray.nets.features.vgg import VggFeatures

__all__ = ["AlexNetFeatures", "ConvStack", "EncoderFeatures", "GreyFeatures", "VggFeatures"]
