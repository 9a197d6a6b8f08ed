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

    Under "classes" the likeliest class; under "regions" each region by its threshold, from the outermost
    in, an inner region reaching no further than the one around it.
    """
    if target == "classes":
        return probs.argmax(0).astype(np.uint8)
    whole = probs[0] > thresholds[0]
    core = whole & (probs[1] > thresholds[1])
    enhancing = core & (probs[2] > thresholds[2])
    labels = np.zeros(whole.shape, np.uint8)
    labels[whole] = 2
    labels[core] = 1
    labels[enhancing] = 3
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
