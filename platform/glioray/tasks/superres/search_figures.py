"""Where in the plane of learning rates GANs collapse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from glioray.reports.axes import dot, finish, is_finite

_COLLAPSED = "#d1495b"
_MARKERS = {"complete": "o", "running": "D", "collapsed": "X", "dead": "s", "pruned": "v", "failed": "P"}
_STATES = {
    "complete": "complete",
    "running": "running",
    "collapsed": "stopped: collapsed",
    "dead": "stopped: dead",
    "pruned": "pruned",
    "failed": "failed",
}


def rates_figure(rows: Sequence[Mapping[str, Any]], *, threshold: float = 0.5) -> Figure:
    """Draw the discriminator's learning rate against the generator's, a marker a trial, coloured by collapse score.

    Args:
        rows: one a trial: "trial" (number), "lr_g", "lr_d", "state" ("complete", "running", "collapsed", "dead",
            "pruned", "failed"), "score" (collapse score, 0 to 1; the colour), "objective" (the size, of healthy ones) and
            "reason" (written beside collapsed and dead ones); the last three may be None or absent. A trial without a rate is
            left out.
        threshold: score from which a trial counts as collapsed. The shaded area is nearest to such a trial; unless
            there are trials on both sides, nothing is shaded.

    Raises:
        ValueError: an unknown state.
    """
    if unknown := {str(row["state"]) for row in rows} - set(_STATES):
        raise ValueError(f"'{min(unknown)}' is not a trial's state; the states are {', '.join(_STATES)}")
    placed = [row for row in rows if _positive(row.get("lr_g")) and _positive(row.get("lr_d"))]
    figure = Figure(figsize=(8.6, 6.4), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    finish(
        axes,
        "Where collapse lives",
        "learning rate of the generator",
        "learning rate of the discriminator",
        empty="" if placed else "no trials yet",
    )
    if not placed:
        return figure
    places = np.log10([[float(row["lr_g"]), float(row["lr_d"])] for row in placed])
    low, high = places.min(0) - 0.35, places.max(0) + 0.35
    handles: list[Artist] = []
    scored = [is_finite(row.get("score")) for row in placed]
    bad = np.array(
        [good and float(row["score"]) >= threshold for row, good in zip(placed, scored, strict=True)]
    )
    if (bad & scored).any() and (~bad & scored).any():
        xs, ys = (np.linspace(a, b, 160) for a, b in zip(low, high, strict=True))
        ground = np.stack(np.meshgrid(xs, ys), -1)[:, :, None]
        nearest = ((ground - places[scored]) ** 2).sum(-1).argmin(-1)
        inside = bad[scored][nearest].astype(float)
        axes.contourf(10**xs, 10**ys, inside, levels=[0.5, 1.5], colors=[_COLLAPSED], alpha=0.1, zorder=0)
        handles.append(Patch(color=_COLLAPSED, alpha=0.15, label="nearest trial collapsed or died"))
    ends = 10 ** np.array([min(low), max(high)])
    (line,) = axes.plot(
        ends, ends, color="gray", linewidth=0.8, linestyle="--", zorder=1, label="equal rates"
    )
    # Objectives of collapsed trials are below -1 and would make all others look alike.
    values = [
        float(row["objective"])
        for row, collapsed in zip(placed, bad, strict=True)
        if not collapsed and is_finite(row.get("objective"))
    ]
    bottom, span = min(values, default=0.0), max(values, default=0.0) - min(values, default=0.0)
    picture = None
    for state, marker in _MARKERS.items():
        for row, has_score in zip(placed, scored, strict=True):
            if row["state"] != state:
                continue
            good = span > 0 and is_finite(row.get("objective"))
            share = min(max((float(row["objective"]) - bottom) / span, 0), 1) if good else 0.3
            made = axes.scatter(
                [float(row["lr_g"])],
                [float(row["lr_d"])],
                c=[float(row["score"])] if has_score else ["#bbbbbb"],
                cmap="RdYlGn_r" if has_score else None,
                vmin=0 if has_score else None,
                vmax=1 if has_score else None,
                marker=marker,
                s=50 + 110 * share,
                edgecolors="black",
                linewidths=0.6,
                zorder=3,
            )
            picture = made if has_score else picture
            if (
                state in ("collapsed", "dead") or (has_score and float(row["score"]) >= threshold)
            ) and row.get("reason"):
                # To the left, as collapse is at the right edge; outside the layout, so that long reasons do not narrow it.
                axes.annotate(
                    str(row["reason"]),
                    (float(row["lr_g"]), float(row["lr_d"])),
                    xytext=(-8, 5),
                    textcoords="offset points",
                    ha="right",
                    fontsize=7,
                    color="#7a1f2b",
                ).set_in_layout(False)
        if any(row["state"] == state for row in placed):
            handles.append(dot("#bbbbbb", marker, _STATES[state]))
    finished = [row for row in placed if row["state"] == "complete" and is_finite(row.get("objective"))]
    if finished:
        best = max(finished, key=lambda row: float(row["objective"]))
        axes.scatter(
            [float(best["lr_g"])],
            [float(best["lr_d"])],
            s=420,
            facecolors="none",
            edgecolors="black",
            linewidths=1.8,
            zorder=4,
        )
        figure.suptitle(
            f"Ringed: the best, trial {best['trial']}, objective {best['objective']:.3f}", fontsize=10
        )
    if picture is not None:
        bar = figure.colorbar(picture, ax=axes, shrink=0.8)
        bar.set_label("collapse score", fontsize=9)
        bar.ax.axhline(threshold, color="black", linewidth=1.2)
    axes.set_xlim(*(10 ** np.array([low[0], high[0]])))
    axes.set_ylim(*(10 ** np.array([low[1], high[1]])))
    handles.append(line)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _positive(value: Any) -> bool:
    return is_finite(value) and float(value) > 0
