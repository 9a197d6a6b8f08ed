"""Distances between surfaces, in millimetres."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

EMPTY_HD95_MM = 374.0
"""What BraTS gives a region that is empty on one side only: the diagonal of its 240 x 240 x 155 mm grid."""


def hd95_mm(truth: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> float:
    """The 95th percentile Hausdorff distance of two regions, (X, Y, Z), the larger of both directions.

    0 where both are empty, `EMPTY_HD95_MM` where one is. Reference: Baid et al. 2021 (arXiv 2107.02314).
    """
    if not truth.any() or not prediction.any():
        return 0.0 if truth.any() == prediction.any() else EMPTY_HD95_MM
    box = ndimage.find_objects((truth | prediction).astype(np.uint8))[0]
    # A voxel of margin keeps the surface at the box's edge a surface.
    truth, prediction = (np.pad(region[box], 1) for region in (truth, prediction))
    surfaces = [region & ~ndimage.binary_erosion(region) for region in (truth, prediction)]
    distances = [ndimage.distance_transform_edt(~surface, sampling=spacing_mm) for surface in surfaces]
    there = np.percentile(distances[1][surfaces[0]], 95)
    back = np.percentile(distances[0][surfaces[1]], 95)
    return float(max(there, back))
