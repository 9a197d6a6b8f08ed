"""The figure of a search's trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from glioray.reports.axes import dot, finish, is_finite

_STATE_COLOURS = {
    "complete": "#3fa34d",
    "running": "#5b8def",
    "collapsed": "#e4972e",
    "dead": "#7a5195",
    "pruned": "#9a9a9a",
    "failed": "#d1495b",
}


def trials_figure(
    rows: Sequence[Mapping[str, Any]], *, label: str = "learning rate", is_log: bool = True
) -> Figure:
    """Draw a search's trials: the objective by trial and by a setting, coloured by state.

    Args:
        rows: one a trial: "trial" (number), "objective" (higher is better; None or non-finite where there is none),
            "setting", and "state" ("complete", "running", "collapsed", "dead", "pruned",
            "failed"). A trial that failed or has no
            objective is a cross at the bottom, whatever value the search algorithm was given for it.
        label: of the setting.
        is_log: whether the setting's axis is logarithmic.

    Raises:
        ValueError: an unknown state.
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
    for axes, key in ((left, "trial"), (right, "setting")):
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
    finish(right, f"Objective by {label}", label, "", empty="" if rows else "no trials yet")
    left.xaxis.get_major_locator().set_params(integer=True)
    right.set_xscale("log" if is_log else "linear")
    states = [state for state in _STATE_COLOURS if any(row["state"] == state for row in rows)]
    handles = [dot(_STATE_COLOURS[state], "o", state) for state in states]
    if len(scored) < len(rows):
        handles.append(dot("black", "x", "no value"))
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False
        )
    return figure


def _scored(row: Mapping[str, Any]) -> bool:
    return row["state"] != "failed" and is_finite(row.get("objective"))
