"""From probabilities to labels, by rules stored with the model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from glioray.tasks.segmentation.config import PostprocessConfig


def decode_labels(
    probs: NDArray[np.float32], target: str, thresholds: tuple[float, float, float]
) -> NDArray[np.uint8]:
    """Turn (C, X, Y, Z) probabilities into (X, Y, Z) internal labels.

    For "classes", the most likely class. For "regions", WT is painted first, TC over it and ET over both, each by its
    threshold: the inner region wins where they disagree (as in nnU-Net's region-based training).
    """
    if target == "classes":
        return probs.argmax(0).astype(np.uint8)
    labels = np.zeros(probs.shape[1:], np.uint8)
    for region, threshold, label in zip(probs, thresholds, (2, 1, 3), strict=True):
        labels[region > threshold] = label
    return labels


def postprocess(labels: NDArray[np.uint8], config: PostprocessConfig, voxel_ml: float) -> NDArray[np.uint8]:
    """Apply the model's rules to the labels (X, Y, Z) of one whole case; returns a new array.

    In order: remove small components, fill holes, relabel little enhancement as core. A small enhancing tumour is
    more often a false positive than a true one, and BraTS scores it 0 against an empty truth: below `min_et_ml` in
    total it becomes necrotic core (Isensee et al. 2020, arXiv 2011.00848).
    """
    labels = labels.copy()
    if config.min_component_ml:
        parts, count = ndimage.label((labels > 0) & (labels < 4), structure=np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel(), minlength=count + 1) * voxel_ml
        small = sizes < config.min_component_ml
        small[0] = False
        # Keep the largest whatever its size: a small tumour is still a tumour.
        if count:
            small[1 + int(sizes[1:].argmax())] = False
        labels[small[parts]] = 0
    if config.fill_holes:
        _fill_holes(labels)
    enhancing = labels == 3
    if 0 < np.count_nonzero(enhancing) * voxel_ml < config.min_et_ml:
        labels[enhancing] = 1
    return labels


def _fill_holes(labels: NDArray[np.uint8]) -> None:
    """Make holes part of the region around them, in place.

    A hole is enclosed by a region in 3-D, with no path out across voxel faces. The inner region is filled first: a
    hole in the core becomes NCR, whether background or oedema; then a hole in the whole tumour becomes ED. Enhancement
    is not filled, since a ring of it encloses core, and a resection cavity is not a hole.
    """
    for region, label in (((1, 3), 1), ((1, 2, 3), 2)):
        inside = np.isin(labels, region)
        box = ndimage.find_objects(inside.astype(np.uint8))
        if not box:
            continue
        # With a one-voxel rim, everything outside is one component, and the first.
        outside, _ = ndimage.label(~np.pad(inside[box[0]], 1))
        hole = outside[1:-1, 1:-1, 1:-1] > 1
        part = labels[box[0]]
        part[hole & (part != 4)] = label
