"""The pictures of a run, as matplotlib figures without pyplot's global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from glioray.cases.labels import LABELS
from glioray.reports.axes import dot, finish, is_finite, series

LABEL_COLOURS = {"ncr": "#e4572e", "ed": "#3fa34d", "et": "#f2c14e", "rc": "#5b8def"}
"""Necrotic core, oedema, enhancing tumour and resection cavity, the same in every picture."""

REGION_COLOURS = {"wt": "#3fa34d", "tc": "#e4572e", "et": "#d99a00"}
"""Regions take the colour of the label that they add; ET is darker than its label, to be read on white."""

_NAMES = {
    "ncr": "NCR (necrotic core)",
    "ed": "ED (oedema)",
    "et": "ET (enhancing)",
    "rc": "RC (resection cavity)",
}
_ALPHA = 0.45


def overlay_figure(
    images: np.ndarray, truths: np.ndarray | None, predictions: np.ndarray, titles: Sequence[str]
) -> Figure:
    """A column a slice: the image, the truth over it (where there is one), the prediction over it.

    Args:
        images: (N, H, W), any range; shown grey between the 1st and 99.5th percentile of what is not 0.
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
        grey = _grey(image)
        for row, (name, labels) in enumerate(rows):
            axes: Axes = grid[row, column]
            axes.imshow(grey if labels is None else _coloured(grey, labels[column]), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if labels is not None:
                _contours(axes, labels[column])
            if column == 0:
                axes.set_ylabel(name, fontsize=10)
    seen = set(np.unique(predictions)) | (set() if truths is None else set(np.unique(truths)))
    shown = [name for value, name in enumerate(LABELS) if value and (name != "rc" or value in seen)]
    handles = [Patch(color=LABEL_COLOURS[name], label=_NAMES[name]) for name in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    return figure


def cases_figure(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    titles: Sequence[str],
    columns: Sequence[Sequence[str]],
) -> Figure:
    """A row a case: its modalities, and the labels over the last of them.

    Args:
        images: one (M, H, W) a case, any range and size; shown as in `overlay_figure`.
        labels: one (H, W) uint8 a case, in the internal labels.
        titles: one a case.
        columns: names of each case's M modalities.

    Raises:
        ValueError: no case, or lists of different lengths.
    """
    if not images or not len(images) == len(labels) == len(titles) == len(columns):
        numbers = [len(part) for part in (images, labels, titles, columns)]
        raise ValueError(f"images, labels, titles and columns are {numbers}; expected as many of each, not 0")
    width = max(len(names) for names in columns) + 1
    figure = Figure(figsize=(1.9 * width + 0.3, 2.25 * len(images) + 0.5), layout="constrained")
    grid: np.ndarray = figure.subplots(len(images), width, squeeze=False)
    for row, (stack, mask, title, names) in enumerate(zip(images, labels, titles, columns, strict=True)):
        for axes in grid[row]:
            axes.set_axis_off()
        for axes, image, name in zip(grid[row], stack, names, strict=False):
            axes.imshow(_grey(image), interpolation="nearest")
            axes.set_title(name, fontsize=9)
        shown = grid[row, len(names)]
        shown.imshow(_coloured(_grey(stack[-1]), mask), interpolation="nearest")
        _contours(shown, mask)
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
    handles = [
        Patch(color=LABEL_COLOURS[name], label=_NAMES[name])
        for value, name in enumerate(LABELS)
        if value and value in seen
    ]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False
        )
    return figure


def preparation_figure(
    before: Sequence[np.ndarray], after: Sequence[np.ndarray], titles: Sequence[str]
) -> Figure:
    """A column a slice: as it was above, as a network sees it below.

    Args:
        before: (H, W) each, any range and size; shown as in `overlay_figure`.
        after: (H, W) each, of the same places.
        titles: one a slice.

    Raises:
        ValueError: no slice, or lists of different lengths.
    """
    if not titles or not len(before) == len(after) == len(titles):
        numbers = [len(part) for part in (before, after, titles)]
        raise ValueError(f"before, after and titles are {numbers}; expected as many of each, not 0")
    figure = Figure(figsize=(max(2.6 * len(titles), 3.2) + 0.4, 6.4), layout="constrained")
    grid: np.ndarray = figure.subplots(2, len(titles), squeeze=False)
    for row, (name, images) in enumerate((("before", before), ("after", after))):
        for column, image in enumerate(images):
            axes: Axes = grid[row, column]
            axes.imshow(_grey(image), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(titles[column], fontsize=9)
            if column == 0:
                axes.set_ylabel(name, fontsize=10)
    return figure


def learning_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Losses and validation Dice against the epoch, side by side.

    Args:
        history: a row an epoch; "epoch" (by default the row's number), keys that are or end in `loss`, and
            keys `dice_*`. A row need not have all of them.
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


_STATE_COLOURS = {
    "complete": "#3fa34d",
    "running": "#5b8def",
    "collapsed": "#e4972e",
    "pruned": "#9a9a9a",
    "failed": "#d1495b",
}


def trials_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A sweep's trials: the objective against the trial and against the learning rate, coloured by state.

    Args:
        rows: one a trial: "trial" (number), "objective" (higher is better; None or non-finite where there
            is none), "lr", and "state" ("complete", "running", "collapsed", "pruned", "failed"). A trial that failed or
            has no objective is a cross at the bottom, whatever bad value the search was told.

    Raises:
        ValueError: a state that is none of these.
    """
    if unknown := {str(row["state"]) for row in rows} - set(_STATE_COLOURS):
        raise ValueError(
            f"'{min(unknown)}' is not a trial's state; the states are {', '.join(_STATE_COLOURS)}"
        )
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    scored = [row for row in rows if _scored(row)]
    values = [float(row["objective"]) for row in scored]
    floor = min(values, default=0.0) - 0.05 * (max(values, default=1.0) - min(values, default=0.0) or 1.0)
    for axes, key in ((left, "trial"), (right, "lr")):
        for state, colour in _STATE_COLOURS.items():
            for good, marker in ((True, "o"), (False, "x")):
                points = [
                    (float(row[key]), float(row["objective"]) if good else floor)
                    for row in rows
                    if row["state"] == state and _scored(row) == good and is_finite(row.get(key))
                ]
                if points:
                    axes.scatter(*zip(*points, strict=True), color=colour, marker=marker, s=36, zorder=3)
    if scored:
        best = max(scored, key=lambda row: float(row["objective"]))
        number, value = best["trial"], float(best["objective"])
        left.axhline(value, color="black", linewidth=0.8, linestyle=":")
        right.axhline(value, color="black", linewidth=0.8, linestyle=":")
        figure.suptitle(f"Best: trial {number}, {value:.3f}", fontsize=11)
    finish(left, "Objective by trial", "trial", "objective", empty="" if rows else "no trials yet")
    finish(right, "Objective by learning rate", "learning rate", "", empty="" if rows else "no trials yet")
    left.xaxis.get_major_locator().set_params(integer=True)
    right.set_xscale("log")
    states = [state for state in _STATE_COLOURS if any(row["state"] == state for row in rows)]
    handles = [dot(_STATE_COLOURS[state], "o", state) for state in states]
    if len(scored) < len(rows):
        handles.append(dot("black", "x", "no value"))
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False
        )
    return figure


def _grey(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) in 0 to 1."""
    values = image[np.isfinite(image) & (image != 0)]
    low, high = np.percentile(values, (1, 99.5)) if values.size else (0.0, 1.0)
    scaled = np.clip((np.nan_to_num(image) - low) / max(high - low, 1e-6), 0, 1)
    # Outside the brain z-scored slices are 0, which is a middle grey; anatomy is read on black.
    grey = np.where(image == 0, 0, scaled).astype(np.float32)
    return np.repeat(grey[..., None], 3, axis=2)


def _coloured(grey: np.ndarray, labels: np.ndarray) -> np.ndarray:
    result = grey.copy()
    for value, name in enumerate(LABELS):
        if value:
            inside = labels == value
            result[inside] = (1 - _ALPHA) * grey[inside] + _ALPHA * np.array(to_rgb(LABEL_COLOURS[name]))
    return result


def _contours(axes: Axes, labels: np.ndarray) -> None:
    for value, name in enumerate(LABELS):
        inside = labels == value
        if value and inside.any() and not inside.all():
            axes.contour(inside.astype(float), levels=[0.5], colors=[LABEL_COLOURS[name]], linewidths=0.9)


def _dice_label(name: str) -> str:
    region = name.rpartition("_")[2]
    return region.upper() if region in REGION_COLOURS else region


def _scored(row: Mapping[str, Any]) -> bool:
    return row["state"] != "failed" and is_finite(row.get("objective"))
