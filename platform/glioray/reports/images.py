"""How figures show slices: grey images, and labels in colour over them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from glioray.cases.labels import LABELS

LABEL_COLOURS = {"ncr": "#e4572e", "ed": "#3fa34d", "et": "#f2c14e", "rc": "#5b8def"}
"""Necrotic core, oedema, enhancing tumour and resection cavity: the same in every figure."""

_LABEL_NAMES = {
    "ncr": "NCR (necrotic core)",
    "ed": "ED (oedema)",
    "et": "ET (enhancing)",
    "rc": "RC (resection cavity)",
}
_ALPHA = 0.45


def show_image(
    axes: Axes, image: np.ndarray, title: str, *, bottom: float = 0, top: float = 1, colours: str = "gray"
) -> None:
    """Draw one image (H, W) without interpolation and ticks; non-finite pixels are magenta."""
    palette = colormaps[colours].with_extremes(bad="#ff00ff")
    axes.imshow(np.ma.masked_invalid(image), vmin=bottom, vmax=top, cmap=palette, interpolation="nearest")
    axes.set_title(title, fontsize=7.5, pad=3)
    axes.set_xticks([])
    axes.set_yticks([])


def grey_image(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) in [0, 1]: grey between the 1st and the 99.5th percentile of the pixels that are not 0."""
    values = image[np.isfinite(image) & (image != 0)]
    low, high = np.percentile(values, (1, 99.5)) if values.size else (0.0, 1.0)
    scaled = np.clip((np.nan_to_num(image) - low) / max(high - low, 1e-6), 0, 1)
    # Outside the brain z-scored slices are 0, which would be a middle grey; radiologists expect black.
    grey = np.where(image == 0, 0, scaled).astype(np.float32)
    return np.repeat(grey[..., None], 3, axis=2)


def overlay_labels(grey: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(H, W, 3): a `grey_image` with internal labels (H, W) blended over it."""
    result = grey.copy()
    for value, name in enumerate(LABELS):
        if value:
            inside = labels == value
            result[inside] = (1 - _ALPHA) * grey[inside] + _ALPHA * np.array(to_rgb(LABEL_COLOURS[name]))
    return result


def draw_outlines(axes: Axes, labels: np.ndarray) -> None:
    """Draw the outline of each internal label (H, W)."""
    for value, name in enumerate(LABELS):
        inside = labels == value
        if value and inside.any() and not inside.all():
            axes.contour(inside.astype(float), levels=[0.5], colors=[LABEL_COLOURS[name]], linewidths=0.9)


def add_label_legend(figure: Figure, names: Iterable[str]) -> None:
    """Add a legend of these labels below the figure; none where there is no label."""
    handles = [Patch(color=LABEL_COLOURS[name], label=_LABEL_NAMES[name]) for name in names]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False
        )
