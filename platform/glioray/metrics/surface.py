"""Distances between surfaces in millimetres.

By search trees over surface voxels: MONAI's and SciPy's distance maps cover the box around both regions, which a
single distant voxel makes large.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

EMPTY_HD95_MM = 374.0
"""The distance of a region that is empty in either truth or prediction, as in BraTS: the diagonal of its grid of
240 x 240 x 155 mm."""

Mask = NDArray[np.bool_]


def surface_metrics(
    truth: Mask, prediction: Mask, spacing_mm: Sequence[float], *, tolerance_mm: float = 1.0
) -> dict[str, float]:
    """`hd95_mm` and `surface_dice` of two regions, (X, Y, Z), from the same distances.

    Surface Dice is the fraction, in [0, 1], of both surfaces that is within the tolerance of the other surface;
    1 if both regions are empty, 0 if one is.

    Args:
        truth: the true region.
        prediction: the predicted region, of the same shape.
        spacing_mm: voxel edges along X, Y, Z.
        tolerance_mm: the accepted distance, such as the disagreement between experts.

    Reference: Nikolov et al. 2018 (arXiv 1809.04430). They weight surface elements by their area; here, as in
    MONAI, a surface is the voxels of a region that share a face with its outside, each counted once.
    """
    if not truth.any() or not prediction.any():
        both = truth.any() == prediction.any()
        return {"hd95_mm": 0.0 if both else EMPTY_HD95_MM, "surface_dice": float(both)}
    there, back = surface_distances_mm(truth, prediction, spacing_mm)
    within = np.count_nonzero(there <= tolerance_mm) + np.count_nonzero(back <= tolerance_mm)
    return {
        "hd95_mm": _percentile_95(there, back),
        "surface_dice": float(within / (len(there) + len(back))),
    }


def hd95_mm(truth: Mask, prediction: Mask, spacing_mm: Sequence[float]) -> float:
    """The 95th percentile Hausdorff distance of two regions, (X, Y, Z), in mm.

    The larger of both directions. 0 if both are empty, `EMPTY_HD95_MM` if one is.

    Reference: Baid et al. 2021 (arXiv 2107.02314).
    """
    if not truth.any() or not prediction.any():
        return 0.0 if truth.any() == prediction.any() else EMPTY_HD95_MM
    return _percentile_95(*surface_distances_mm(truth, prediction, spacing_mm))


def element_hd95_mm(truth: Mask, prediction: Mask, spacing_mm: Sequence[float]) -> float:
    """The 95th percentile Hausdorff distance between surface elements, each weighted by its area, in mm.

    A surface has an element wherever eight neighbouring voxels are not all inside or all outside; `hd95_mm` takes the
    region's own voxels, each counted once, and is larger by up to about a voxel. The larger of both directions. 0 if
    both are empty, `EMPTY_HD95_MM` if one is.

    Reference: Nikolov et al. 2018 (arXiv 1809.04430), as in the challenge's code of BraTS 2023.
    """
    if not truth.any() or not prediction.any():
        return 0.0 if truth.any() == prediction.any() else EMPTY_HD95_MM
    spacing = tuple(map(float, spacing_mm))
    box = ndimage.find_objects((truth | prediction).astype(np.uint8))[0]
    # Imported late: it takes two seconds, which each process of a training would pay.
    from monai.metrics.utils import get_mask_edges

    # MONAI's own crop takes longer than all the rest on a small lesion.
    pair = (torch.from_numpy(np.pad(region[box], 1)) for region in (truth, prediction))
    found = [part.numpy() for part in get_mask_edges(*pair, crop=False, spacing=spacing)]
    edges, areas = found[:2], found[2:]
    points = [np.argwhere(edge) * np.asarray(spacing) for edge in edges]
    weights = [area[edge].astype(np.float64) for edge, area in zip(edges, areas, strict=True)]
    trees = [cKDTree(surface) for surface in points]
    return max(_weighted_percentile_95(trees[1 - i].query(points[i])[0], weights[i]) for i in (0, 1))


def surface_distances_mm(
    truth: Mask, prediction: Mask, spacing_mm: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances of the truth's surface voxels to the prediction's surface, and vice versa.

    Args:
        truth: (X, Y, Z), not empty.
        prediction: of the same shape, not empty.
        spacing_mm: voxel edges along X, Y, Z.
    """
    points = [_surface_points_mm(region, spacing_mm) for region in (truth, prediction)]
    trees = [cKDTree(surface) for surface in points]
    return trees[1].query(points[0])[0], trees[0].query(points[1])[0]


def _surface_points_mm(region: Mask, spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """(N, 3) positions of the voxels that share a face with the outside of the region.

    The border of the volume counts as outside.
    """
    box = ndimage.find_objects(region.astype(np.uint8))[0]
    inside = region[box]
    corner = [span.start for span in box]
    return (np.argwhere(inside & ~ndimage.binary_erosion(inside)) + corner) * np.asarray(spacing_mm)


def _percentile_95(there: NDArray[np.float64], back: NDArray[np.float64]) -> float:
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _weighted_percentile_95(distances: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """The smallest distance within which 95 % of the weight lies."""
    order = np.argsort(distances)
    reached = np.cumsum(weights[order]) / weights.sum()
    last = min(int(np.searchsorted(reached, 0.95)), len(order) - 1)
    return float(distances[order[last]])
