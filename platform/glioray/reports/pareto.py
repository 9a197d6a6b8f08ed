"""Two objectives of a search against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from glioray.reports.axes import finish, is_finite

_REST, _FRONT, _UNHEALTHY = "#9a9a9a", "#3fa34d", "#d1495b"


def pareto_front(
    points: Mapping[Any, tuple[float, float]], maximize: tuple[bool, bool] = (True, True)
) -> list[Any]:
    """Names of the points that no other point dominates, ordered by the first value, rising.

    A point dominates another if it is at least as good in both values and better in one.

    Args:
        points: two values each, by name.
        maximize: whether larger is better, for each value.
    """
    signs = [1 if larger else -1 for larger in maximize]
    signed = {name: (signs[0] * x, signs[1] * y) for name, (x, y) in points.items()}
    front = [
        name
        for name, (x, y) in signed.items()
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in signed.values())
    ]
    return sorted(front, key=lambda name: points[name])


def pareto_figure(
    rows: Sequence[Mapping[str, Any]],
    *,
    labels: tuple[str, str] = ("x", "y"),
    maximize: tuple[bool, bool] = (True, True),
    baselines: tuple[float | None, float | None] = (None, None),
    unhealthy: str = "failed",
) -> Figure:
    """Draw one objective against another, a dot a trial, with a line through the front.

    Args:
        rows: one a trial: "trial", "x", "y" and "is_healthy". A trial without both values is left out; an unhealthy
            one is a cross and never on the front.
        labels: of the x and y axes.
        maximize: whether larger is better, for x and y.
        baselines: a value of x and y to draw a line at, such as a method to beat.
        unhealthy: the legend of unhealthy trials.
    """
    figure = Figure(figsize=(7.4, 5.2), layout="constrained")
    axes = figure.subplots()
    placed = [row for row in rows if is_finite(row.get("x")) and is_finite(row.get("y"))]
    points = {row["trial"]: (float(row["x"]), float(row["y"])) for row in placed if row["is_healthy"]}
    front = pareto_front(points, maximize)
    rest = [point for trial, point in points.items() if trial not in front]
    crosses = [(float(row["x"]), float(row["y"])) for row in placed if not row["is_healthy"]]
    for group, colour, marker, label in (
        (rest, _REST, "o", "healthy"),
        (crosses, _UNHEALTHY, "X", unhealthy),
    ):
        if group:
            xs, ys = zip(*group, strict=True)
            axes.scatter(xs, ys, color=colour, marker=marker, s=36, label=label)
    if front:
        ahead = [points[trial] for trial in front]
        axes.plot(*zip(*ahead, strict=True), color=_FRONT, marker="o", linewidth=1.5, label="front")
        for trial, point in zip(front, ahead, strict=True):
            axes.annotate(str(trial), point, xytext=(5, 5), textcoords="offset points", fontsize=8)
    for draw, value in zip((axes.axvline, axes.axhline), baselines, strict=True):
        if value is not None:
            draw(value, color="gray", linewidth=0.8, linestyle=":", zorder=0)
    title = f"{labels[1]} against {labels[0]}"
    empty = "" if placed else "no trials yet"
    finish(axes, title[:1].upper() + title[1:], *labels, legend=bool(placed), empty=empty)
    return figure
