"""The common look of axes, and the values that can be drawn on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D


def finish(axes: Axes, title: str, x: str, y: str, *, legend: bool = False, empty: str = "") -> None:
    """Set title, labels and a grid behind the data; `empty` is written in the middle where there is no legend."""
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
    """The epochs that have a metric, and its value at each."""
    points = [(row.get("epoch", number), row[name]) for number, row in enumerate(history) if name in row]
    return [float(x) for x, _ in points], [float(y) for _, y in points]


def is_finite(value: Any) -> bool:
    """Whether there is a value, and it is finite."""
    return value is not None and math.isfinite(float(value))


def dot(colour: str, marker: str, label: str) -> Line2D:
    """A legend entry for a marker."""
    return Line2D([], [], color=colour, marker=marker, linestyle="none", label=label)
