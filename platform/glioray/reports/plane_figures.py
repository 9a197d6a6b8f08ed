"""A case in three planes, with its labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from glioray.cases.labels import LABELS
from glioray.cases.load import background_of
from glioray.reports.images import add_label_legend, draw_outlines, grey_image, overlay_labels

_PLANES = ("sagittal", "coronal", "axial")
_HEIGHT_IN = 3.6
_MARGIN = 4


def planes_figure(image: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float], name: str) -> Figure:
    """Draw the sagittal, coronal and axial slice with the most labelled voxels; without any, the middle ones.

    What is empty around the head is left out.

    Args:
        image: (X, Y, Z), RAS+, any range; shown as by `grey_image`.
        mask: (X, Y, Z) internal labels.
        spacing_mm: voxel edges along X, Y, Z.
        name: of the image's modality.
    """
    head = np.argwhere(image != background_of(image))
    if len(head):
        box = tuple(
            slice(max(0, low - _MARGIN), high + 1 + _MARGIN)
            for low, high in zip(head.min(0), head.max(0), strict=True)
        )
    else:
        box = (slice(None),) * 3
    figure = Figure(figsize=(3 * _HEIGHT_IN, _HEIGHT_IN + 0.5), layout="constrained", facecolor="white")
    axes_row = figure.subplots(1, 3)
    for axis, (axes, plane) in enumerate(zip(axes_row, _PLANES, strict=True)):
        others = tuple(other for other in range(3) if other != axis)
        counts = (mask > 0).sum(axis=others)
        number = int(counts.argmax()) if counts.any() else mask.shape[axis] // 2
        # Rows run from superior (or anterior) down; the patient's right is on the left, as radiologists look.
        within = tuple(box[other] for other in others)
        slice_image, slice_mask = (
            np.take(array, number, axis=axis)[within].T[::-1] for array in (image, mask)
        )
        if axis:
            slice_image, slice_mask = slice_image[:, ::-1], slice_mask[:, ::-1]
        shown = overlay_labels(grey_image(np.asarray(slice_image, np.float32)), slice_mask)
        aspect = spacing_mm[others[1]] / spacing_mm[others[0]]
        axes.imshow(shown, interpolation="nearest", aspect=aspect)
        draw_outlines(axes, slice_mask)
        axes.set_title(f"{plane} {number + 1} of {mask.shape[axis]}, {name}", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        sides = ("P", "A") if axis == 0 else ("R", "L")
        for x, side in ((0.02, sides[0]), (0.94, sides[1])):
            axes.text(x, 0.94, side, transform=axes.transAxes, color="white", fontsize=9)
    seen = {int(value) for value in np.unique(mask)}
    add_label_legend(figure, [label for value, label in enumerate(LABELS) if value and value in seen])
    return figure
