"""From probabilities to labels, by rules that are kept with the model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from glioray.config import PostprocessConfig


def decode_labels(
    probs: NDArray[np.float32], target: str, thresholds: tuple[float, float, float]
) -> NDArray[np.uint8]:
    """(C, X, Y, Z) probabilities to (X, Y, Z) internal labels.

    Under "classes" the likeliest class. Under "regions" WT is painted first, TC over it, ET over both, each by
    its threshold: the inner region is believed where they disagree (as in nnU-Net's region-based training).
    """
    if target == "classes":
        return probs.argmax(0).astype(np.uint8)
    labels = np.zeros(probs.shape[1:], np.uint8)
    for region, threshold, label in zip(probs, thresholds, (2, 1, 3), strict=True):
        labels[region > threshold] = label
    return labels


def postprocess(labels: NDArray[np.uint8], config: PostprocessConfig, voxel_ml: float) -> NDArray[np.uint8]:
    """Labels (X, Y, Z) of one whole case after the size rules; a new array.

    A small enhancing tumour is more often a false alarm than a find, and BraTS scores it 0 against an
    empty truth: below `min_et_ml` in all it becomes necrotic core (Isensee et al. 2020, arXiv 2011.00848).
    """
    labels = labels.copy()
    if config.min_component_ml:
        parts, count = ndimage.label((labels > 0) & (labels < 4), structure=np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel(), minlength=count + 1) * voxel_ml
        small = sizes < config.min_component_ml
        small[0] = False
        # The largest stays whatever its size: a small tumour is still a tumour.
        if count:
            small[1 + int(sizes[1:].argmax())] = False
        labels[small[parts]] = 0
    enhancing = labels == 3
    if 0 < np.count_nonzero(enhancing) * voxel_ml < config.min_et_ml:
        labels[enhancing] = 1
    return labels
