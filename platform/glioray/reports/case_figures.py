"""Figures of whole cases: their modalities and labels, and the effect of preprocessing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glioray.cases.labels import LABELS
from glioray.reports.images import add_label_legend, draw_outlines, grey_image, overlay_labels


def cases_figure(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    titles: Sequence[str],
    columns: Sequence[Sequence[str]],
) -> Figure:
    """Draw a row a case: its modalities, and the labels over the last of them.

    Args:
        images: one (M, H, W) a case, any range and size; shown as by `grey_image`.
        labels: one (H, W) uint8 a case, in the internal labels.
        titles: one a case.
        columns: names of each case's M modalities.

    Raises:
        ValueError: no case, or lists of different lengths.
    """
    if not images or not len(images) == len(labels) == len(titles) == len(columns):
        numbers = [len(part) for part in (images, labels, titles, columns)]
        raise ValueError(
            f"images, labels, titles and columns are {numbers}; expected equal numbers, at least 1"
        )
    width = max(len(names) for names in columns) + 1
    figure = Figure(figsize=(1.9 * width + 0.3, 2.25 * len(images) + 0.5), layout="constrained")
    grid: np.ndarray = figure.subplots(len(images), width, squeeze=False)
    for row, (stack, mask, title, names) in enumerate(zip(images, labels, titles, columns, strict=True)):
        for axes in grid[row]:
            axes.set_axis_off()
        for axes, image, name in zip(grid[row], stack, names, strict=False):
            axes.imshow(grey_image(image), interpolation="nearest")
            axes.set_title(name, fontsize=9)
        shown = grid[row, len(names)]
        shown.imshow(overlay_labels(grey_image(stack[-1]), mask), interpolation="nearest")
        draw_outlines(shown, mask)
        shown.set_title(f"labels on {names[-1]}", fontsize=9)
        grid[row, 0].text(
            -0.04,
            0.5,
            title,
            transform=grid[row, 0].transAxes,
            rotation=90,
            ha="right",
            va="center",
            fontsize=8,
        )
    seen = {int(value) for mask in labels for value in np.unique(mask)}
    add_label_legend(figure, [name for value, name in enumerate(LABELS) if value and value in seen])
    return figure


def preparation_figure(
    before: Sequence[np.ndarray], after: Sequence[np.ndarray], titles: Sequence[str]
) -> Figure:
    """Draw a column a slice: the file's image above, the network's input below.

    Args:
        before: (H, W) each, any range and size; shown as by `grey_image`.
        after: (H, W) each, the same slices.
        titles: one a slice.

    Raises:
        ValueError: no slice, or lists of different lengths.
    """
    if not titles or not len(before) == len(after) == len(titles):
        numbers = [len(part) for part in (before, after, titles)]
        raise ValueError(f"before, after and titles are {numbers}; expected equal numbers, at least 1")
    figure = Figure(figsize=(max(2.6 * len(titles), 3.2) + 0.4, 6.4), layout="constrained")
    grid: np.ndarray = figure.subplots(2, len(titles), squeeze=False)
    for row, (name, images) in enumerate((("before", before), ("after", after))):
        for column, image in enumerate(images):
            axes: Axes = grid[row, column]
            axes.imshow(grey_image(image), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(titles[column], fontsize=9)
            if column == 0:
                axes.set_ylabel(name, fontsize=10)
    return figure
