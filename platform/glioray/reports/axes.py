"""What the pictures of runs have alike: how axes look, and which figures can be drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D


def finish(axes: Axes, title: str, x: str, y: str, *, legend: bool = False, empty: str = "") -> None:
    """Give axes their words and their grid, behind what is drawn; without a legend, `empty` stands in the middle."""
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False, fontsize=9)
    elif empty:
        axes.text(0.5, 0.5, empty, transform=axes.transAxes, ha="center", va="center", color="gray")


def series(history: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """The epochs that have a figure, and the figure at each."""
    points = [(row.get("epoch", number), row[name]) for number, row in enumerate(history) if name in row]
    return [float(x) for x, _ in points], [float(y) for _, y in points]


def is_finite(value: Any) -> bool:
    """Whether there is a value, and one that can be drawn."""
    return value is not None and math.isfinite(float(value))


def dot(colour: str, marker: str, label: str) -> Line2D:
    """A legend's entry for a marker."""
    return Line2D([], [], color=colour, marker=marker, linestyle="none", label=label)
