"""Figures of a comparison of segmentation models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from glioray.cases.labels import LABELS
from glioray.reports.axes import finish
from glioray.tasks.segmentation.figures import REGION_COLOURS

Interval = tuple[float, float, float]
"""A mean, and the lower and upper ends of its interval."""


def dice_by_region_figure(rows: Sequence[tuple[str, Mapping[str, Interval]]]) -> Figure:
    """Draw Dice with intervals: a line an entrant, the best on top, a point for the mean and each region.

    Args:
        rows: label, and Dice by "mean", "wt", "tc", "et"; a region may be missing.
    """
    figure = Figure(figsize=(9, 1.6 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    names = [name for name in ("mean", "wt", "tc", "et") if any(name in dice for _, dice in rows)]
    for number, name in enumerate(names):
        shift = (number - (len(names) - 1) / 2) * 0.16
        points = [(row, dice[name]) for row, (_, dice) in enumerate(rows) if name in dice]
        means = np.array([point[1][0] for point in points])
        ends = np.array([[mean - low, high - mean] for _, (mean, low, high) in points]).T.clip(0)
        axes.errorbar(
            means,
            [row + shift for row, _ in points],
            xerr=ends if len(points) else None,
            fmt="D" if name == "mean" else "o",
            color=REGION_COLOURS.get(name, "black"),
            markersize=6 if name == "mean" else 4,
            linewidth=1.2,
            label="mean" if name == "mean" else name.upper(),
        )
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    finish(axes, "Dice with 95 % intervals over patients", "Dice (3-D, patient level)", "")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def dice_against_figure(
    curves: Mapping[str, Sequence[tuple[float, float]]], x: str, *, log: bool = False
) -> Figure:
    """Draw mean Dice against time, slices or parameters: a line, or a single point, an entrant.

    Args:
        curves: label -> (x, Dice) points in order.
        x: label of the axis.
        log: whether it is logarithmic.
    """
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    axes = figure.subplots()
    for (label, points), colour in zip(curves.items(), _colours(len(curves)), strict=True):
        if points:
            axes.plot(
                *zip(*points, strict=True), marker="o", markersize=5, linewidth=1.5, label=label, color=colour
            )
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())  # minor labels overlap within a decade
    axes.set_ylim(0, 1)
    finish(axes, f"Mean Dice against {x}", x, "mean Dice (3-D)")
    _legend_outside(figure, axes)
    return figure


def case_by_case_figure(rows: Sequence[tuple[str, Mapping[str, float]]]) -> Figure:
    """Draw the mean Dice of every case by every entrant, as a coloured table with numbers."""
    cases = sorted({case_id for _, dice in rows for case_id in dice})
    table = np.array([[dice.get(case_id, np.nan) for case_id in cases] for _, dice in rows])
    figure = Figure(
        figsize=(min(3 + 0.75 * max(len(cases), 1), 30), 1.5 + 0.4 * max(len(rows), 1)), layout="constrained"
    )
    axes = figure.subplots()
    picture = axes.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    if len(cases) <= 40:
        for (row, column), value in np.ndenumerate(table):
            if np.isfinite(value):
                colour = "white" if value < 0.6 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(cases)), cases, rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
    axes.set_title("Mean Dice case by case", fontsize=11)
    figure.colorbar(picture, ax=axes, shrink=0.8)
    return figure


def confusion_figure(tables: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """Draw a confusion matrix an entrant: the predicted labels of each true label, each row adding up to 1.

    Args:
        tables: label of the entrant, and (5, 5) voxels by true (row) and predicted (column) internal label.
    """
    shown = [
        index for index in range(len(LABELS)) if any(t[index].sum() + t[:, index].sum() for _, t in tables)
    ]
    names = [LABELS[index] for index in shown]
    columns = min(4, max(1, len(tables)))
    lines = -(-len(tables) // columns)
    figure = Figure(figsize=(3.1 * columns, 3.0 * lines + 0.4), layout="constrained")
    grid: np.ndarray = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(tables) :]:
        axes.axis("off")
    for axes, (label, counts) in zip(grid.flat, tables, strict=False):
        part = counts[np.ix_(shown, shown)].astype(float)
        shares = part / np.maximum(counts[shown].sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        for (row, column), value in np.ndenumerate(shares):
            colour = "white" if value > 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(range(len(names)), names, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_title(label, fontsize=8)
        axes.set_xlabel("predicted", fontsize=7)
        axes.set_ylabel("true", fontsize=7)
    return figure


def training_curves_figure(curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]]) -> Figure:
    """Draw training loss against slices: a colour an entrant, a line a run.

    Args:
        curves: label -> the (slices, loss) points of each run. Different losses are not comparable.
    """
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    axes = figure.subplots()
    for (label, runs), colour in zip(curves.items(), _colours(len(curves)), strict=True):
        for number, points in enumerate(filter(None, runs)):
            name = label if number == 0 else None
            axes.plot(*zip(*points, strict=True), marker=".", linewidth=1.2, color=colour, label=name)
    finish(axes, "Training loss", "slices learned from", "loss")
    _legend_outside(figure, axes)
    return figure


def _colours(count: int) -> list[tuple[float, ...]]:
    wheel = colormaps["tab20"]
    return [wheel(number % 20) for number in range(count)]


def _legend_outside(figure: Figure, axes: Axes) -> None:
    if axes.lines:  # matplotlib warns of an empty legend
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
