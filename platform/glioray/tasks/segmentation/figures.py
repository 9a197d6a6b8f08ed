"""Figures of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glioray.cases.labels import LABELS
from glioray.reports.axes import finish, series
from glioray.reports.images import add_label_legend, draw_outlines, grey_image, overlay_labels

REGION_COLOURS = {"wt": "#3fa34d", "tc": "#e4572e", "et": "#d99a00"}
"""A region has the colour of the label that it adds; ET is darker than its label, to be legible on white."""


def overlay_figure(
    images: np.ndarray, truths: np.ndarray | None, predictions: np.ndarray, titles: Sequence[str]
) -> Figure:
    """Draw a column a slice: the image, the truth over it (where there is one), the prediction over it.

    Args:
        images: (N, H, W), any range; shown as by `grey_image`.
        truths: (N, H, W) uint8 in the internal labels, or None.
        predictions: (N, H, W) uint8 in the internal labels.
        titles: one a slice.

    Raises:
        ValueError: shapes or the number of titles differ.
    """
    if (
        images.ndim != 3
        or predictions.shape != images.shape
        or (truths is not None and truths.shape != images.shape)
    ):
        shapes = [array.shape for array in (images, truths, predictions) if array is not None]
        raise ValueError(f"images, truths and predictions are {shapes}; expected the same (N, H, W) for all")
    if len(titles) != len(images) or len(images) == 0:
        raise ValueError(
            f"{len(titles)} titles for {len(images)} slices; expected one each, and at least one slice"
        )
    rows: list[tuple[str, np.ndarray | None]] = [("image", None)]
    if truths is not None:
        rows.append(("truth", truths))
    rows.append(("prediction", predictions))
    aspect = images.shape[1] / images.shape[2]
    width = 2.3
    figure = Figure(
        figsize=(max(width * len(images), 4.6) + 0.4, width * aspect * len(rows) + 0.9), layout="constrained"
    )
    grid: np.ndarray = figure.subplots(len(rows), len(images), squeeze=False)
    for column, image in enumerate(images):
        grid[0, column].set_title(titles[column], fontsize=9)
        grey = grey_image(image)
        for row, (name, labels) in enumerate(rows):
            axes: Axes = grid[row, column]
            axes.imshow(
                grey if labels is None else overlay_labels(grey, labels[column]), interpolation="nearest"
            )
            axes.set_xticks([])
            axes.set_yticks([])
            if labels is not None:
                draw_outlines(axes, labels[column])
            if column == 0:
                axes.set_ylabel(name, fontsize=10)
    seen = set(np.unique(predictions)) | (set() if truths is None else set(np.unique(truths)))
    shown = [name for value, name in enumerate(LABELS) if value and (name != "rc" or value in seen)]
    add_label_legend(figure, shown)
    return figure


def learning_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw losses and validation Dice by epoch, side by side.

    Args:
        history: a row an epoch; "epoch" (by default the row's number), keys that are or end in `loss`, and
            keys `dice_*`. Keys may be absent from some rows.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(name for row in history for name in row))
    losses = [name for name in names if name == "loss" or name.endswith(("_loss", "/loss"))]
    dices = [name for name in names if name.rpartition("/")[2].startswith("dice_")]
    for name in losses:
        left.plot(*series(history, name), label=name, marker=".", linewidth=1.5)
    for name in dices:
        colour = REGION_COLOURS.get(name.rpartition("_")[2], "black" if name.endswith("mean") else None)
        right.plot(*series(history, name), label=_dice_label(name), marker=".", linewidth=1.5, color=colour)
    finish(left, "Loss", "epoch", "loss", legend=bool(losses), empty="no loss yet")
    finish(right, "Validation Dice (3-D)", "epoch", "Dice", legend=bool(dices), empty="no validation yet")
    right.set_ylim(0, 1)
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _dice_label(name: str) -> str:
    region = name.rpartition("_")[2]
    return region.upper() if region in REGION_COLOURS else region
