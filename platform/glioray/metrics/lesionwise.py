"""Lesion-wise scores: each lesion and each false positive counts the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from glioray.metrics.surface import EMPTY_HD95_MM, element_hd95_mm

_BY_EDGE = ndimage.generate_binary_structure(3, 2)
_BY_CORNER = ndimage.generate_binary_structure(3, 3)


@dataclass(frozen=True, kw_only=True)
class LesionScores:
    """The lesion-wise scores of one region of one case.

    Attributes:
        dice: the mean over lesions and false positives, which score 0.
        hd95_mm: the mean of `element_hd95_mm`; `EMPTY_HD95_MM` for missed lesions and false positives.
        num_lesions: lesions of the truth, without those too small to count.
        num_missed: lesions that no predicted component touches.
        num_false: predicted components that touch no lesion, however small.
    """

    dice: float
    hd95_mm: float
    num_lesions: int
    num_missed: int
    num_false: int


def lesionwise_scores(
    truth: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    *,
    num_dilations: int = 3,
    ignored_mm3: float = 50.0,
) -> LesionScores:
    """The scores of one region, (X, Y, Z), by the rules of BraTS 2023 for gliomas.

    A lesion is the truth's voxels within one connected component of the dilated truth. Its prediction is all
    predicted components that touch the dilated lesion; a component that touches two lesions belongs to both.
    Components that touch no lesion are false positives, whatever their size; those that touch only ignored
    lesions do not count. All components are connected by faces, edges or corners. Without lesions and false
    positives, Dice is 1 and the distance is 0.

    Args:
        truth: the true region.
        prediction: the predicted region, of the same shape.
        spacing_mm: voxel edges along X, Y, Z.
        num_dilations: dilations by the 18 neighbours that share a face or an edge. The challenge uses 3 for
            gliomas ("3x3x3 mm"), paediatric tumours and sub-Saharan Africa, 1 for meningiomas and metastases.
        ignored_mm3: the largest volume of lesions that do not count: 50, or 2 for metastases.

    Raises:
        ValueError: `num_dilations` is below 1.

    Reference: the challenge's code, github.com/rachitsaluja/BraTS-2023-Metrics. Dice, distances and counts equal its
    results.
    """
    if num_dilations < 1:
        raise ValueError(f"num_dilations is {num_dilations}; expected at least 1")
    if not (truth.any() or prediction.any()):
        return LesionScores(dice=1.0, hd95_mm=0.0, num_lesions=0, num_missed=0, num_false=0)
    box = _box_around(truth | prediction, num_dilations)
    truth, prediction = truth[box], prediction[box]
    dilated = ndimage.binary_dilation(truth, _BY_EDGE, iterations=num_dilations)
    extents, num_extents = ndimage.label(dilated, _BY_CORNER)
    parts, num_parts = ndimage.label(prediction, _BY_CORNER)

    touching = np.zeros((num_extents + 1, num_parts + 1), bool)
    touching[extents[prediction], parts[prediction]] = True
    num_false = int(np.count_nonzero(~touching[1:, 1:].any(0)))
    sizes_mm3 = np.bincount(extents[truth], minlength=num_extents + 1) * float(np.prod(spacing_mm))

    dices, distances, num_missed = [0.0] * num_false, [EMPTY_HD95_MM] * num_false, 0
    for number in 1 + np.flatnonzero(sizes_mm3[1:] > ignored_mm3):
        lesion, found = truth & (extents == number), prediction & touching[number][parts]
        num_missed += not found.any()
        overlap = np.count_nonzero(lesion & found)
        dices.append(2 * overlap / (np.count_nonzero(lesion) + np.count_nonzero(found)))
        distances.append(element_hd95_mm(lesion, found, spacing_mm))
    return LesionScores(
        dice=float(np.mean(dices)) if dices else 1.0,
        hd95_mm=float(np.mean(distances)) if distances else 0.0,
        num_lesions=len(dices) - num_false,
        num_missed=num_missed,
        num_false=num_false,
    )


def _box_around(region: NDArray[np.bool_], margin: int) -> tuple[slice, ...]:
    """The region's bounding box with a margin, clipped at the start of the volume."""
    box = ndimage.find_objects(region.astype(np.uint8))[0]
    return tuple(slice(max(0, span.start - margin), span.stop + margin) for span in box)
