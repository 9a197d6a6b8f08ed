"""Figures that compare super-resolution models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.ndimage import gaussian_gradient_magnitude, uniform_filter

from glioray.reports.axes import finish, is_finite
from glioray.reports.images import show_image
from glioray.tasks.superres.figures import error_top, white_of

History = Sequence[Mapping[str, float]]

_COLOURS = ("#d1495b", "#5b8def", "#3fa34d", "#d99a00", "#6d597a", "#2a9d8f", "#8d6e63", "#e07be0")


def blend_figure(lr: np.ndarray, outs: Mapping[float, np.ndarray], hr: np.ndarray) -> Figure:
    """Draw a strip from the PSNR model (0) to the GAN (1), between LR and HR; below, enlarged, the most detailed part of HR.

    Args:
        lr: (h, w) in [0, 1].
        outs: (H, W) by blend.
        hr: (H, W), the truth.

    Raises:
        ValueError: no output, or an output of another shape than `hr`.
    """
    ends = {0.0: " (PSNR)", 1.0: " (GAN)"}
    named = {f"blend {blend:g}{ends.get(float(blend), '')}": outs[blend] for blend in sorted(outs)}
    return _strip(named, lr, hr, errors=False)


def comparison_panel(
    entrants: Mapping[str, np.ndarray], lr: np.ndarray, bicubic: np.ndarray, hr: np.ndarray
) -> Figure:
    """Draw one slice by every entrant, between LR, bicubic and HR; below, its most detailed part enlarged, and the errors.

    Args:
        entrants: label -> (H, W) in [0, 1].
        lr: (h, w).
        bicubic: (H, W), interpolated from `lr`.
        hr: (H, W), the truth.

    Raises:
        ValueError: no entrant, or an image of another shape than `hr`.
    """
    if not entrants:
        raise ValueError("there is no entrant to draw; expected at least one")
    return _strip({"bicubic": bicubic, **entrants}, lr, hr, errors=True)


def convergence_figure(runs: Mapping[str, Sequence[History]], x: str = "num_slices") -> Figure:
    """Draw PSNR, LPIPS, quality and collapse score over the course of training.

    Thick lines: the mean over an entrant's runs, up to where the shortest one ends; band: lowest to highest; thin
    lines: single runs, with a cross where one collapsed.

    Args:
        runs: label -> the history of each run (seed), with the names of the metrics of super-resolution.
        x: "num_slices", "minutes", "step" or "epoch".

    Raises:
        ValueError: another x.
    """
    axis = {
        "num_slices": "slices learned from",
        "minutes": "minutes of training",
        "step": "steps",
        "epoch": "epoch",
    }
    if x not in axis:
        raise ValueError(f"x is '{x}'; expected one of {', '.join(axis)}")
    shown = {
        "psnr": ("Foreground PSNR", "dB"),
        "lpips": ("LPIPS, lower is better", ""),
        "quality": ("Quality (0: bicubic)", ""),
        "collapse_score": ("Collapse score", ""),
    }
    figure = Figure(figsize=(16, 4.2), layout="constrained")
    cells: np.ndarray = figure.subplots(1, len(shown))
    for axes, (name, (title, unit)) in zip(cells, shown.items(), strict=True):
        for number, (label, histories) in enumerate(runs.items()):
            _course(axes, histories, x, name, label, _COLOURS[number % len(_COLOURS)])
        drawn = bool(axes.lines)
        if drawn and name in ("psnr", "lpips"):
            _level(axes, runs, f"bicubic_{name}")
        finish(axes, title, axis[x], unit, empty="" if drawn else "nothing yet")
    cells[-1].axhline(0.5, color="gray", linewidth=1, linestyle=":")
    cells[-1].set_ylim(-0.05, 1.05)
    handles = {line.get_label(): line for axes in cells for line in axes.lines if line.get_label()[0] != "_"}
    if handles:
        figure.legend(
            handles=list(handles.values()),
            loc="outside lower center",
            ncols=min(len(handles), 6),
            frameon=False,
            fontsize=9,
        )
    return figure


def _course(axes: Axes, histories: Sequence[History], x: str, name: str, label: str, colour: str) -> None:
    curves = []
    for history in histories:
        rows = [row for row in history if is_finite(row.get(name)) and is_finite(row.get(x))]
        if rows:
            curves.append(np.array([[row[x], row[name]] for row in rows], float).T)
        if rows and rows[-1].get("is_collapsed") == 1:
            axes.plot(rows[-1][x], rows[-1][name], color=colour, marker="X", markersize=9, zorder=5)
    if not curves:
        return
    for curve in curves:
        axes.plot(*curve, color=colour, linewidth=0.7, alpha=0.5)
    # Only up to the end of the shortest run: the mean over the remaining runs would jump there.
    first, last = max(curve[0, 0] for curve in curves), min(curve[0, -1] for curve in curves)
    places = np.unique(np.concatenate([curve[0] for curve in curves]))
    places = places[(places >= first) & (places <= last)]
    values = np.array([np.interp(places, *curve) for curve in curves])
    axes.plot(places, values.mean(0), color=colour, linewidth=2, marker=".", label=label)
    if len(curves) > 1:
        axes.fill_between(places, values.min(0), values.max(0), color=colour, alpha=0.18, linewidth=0)


def _level(axes: Axes, runs: Mapping[str, Sequence[History]], name: str) -> None:
    values = [
        row[name]
        for histories in runs.values()
        for history in histories
        for row in history
        if is_finite(row.get(name))
    ]
    if values:
        axes.axhline(
            float(np.median(values)), color="black", linewidth=1, linestyle="--", label="bicubic", zorder=1
        )


def _strip(named: Mapping[str, np.ndarray], lr: np.ndarray, hr: np.ndarray, *, errors: bool) -> Figure:
    if not named:
        raise ValueError("there is no image to draw; expected at least one")
    if wrong := {name: image.shape for name, image in named.items() if image.shape != hr.shape}:
        name, shape = next(iter(wrong.items()))
        raise ValueError(f"'{name}' is {shape} and hr {hr.shape}; expected the same (H, W)")
    window = _detail(hr)
    ratio = np.array(hr.shape) / lr.shape
    columns = {f"LR {lr.shape[0]} x {lr.shape[1]}": lr, **named, "HR": hr}
    num_rows = 3 if errors else 2
    width, aspect = 1.9, hr.shape[0] / hr.shape[1]
    figure = Figure(
        figsize=(width * len(columns), width * (aspect * (num_rows - 1) + 1) + 0.35), layout="constrained"
    )
    grid: np.ndarray = figure.subplots(
        num_rows, len(columns), squeeze=False, height_ratios=[aspect, 1, aspect][:num_rows]
    )
    wide = [np.abs(image - hr) for image in named.values()]
    top, white = error_top(wide[0]), white_of(hr)
    for column, (name, image) in enumerate(columns.items()):
        show_image(grid[0, column], image, name, top=white)
        scale = ratio if column == 0 else np.ones(2)
        y, x = (round(start / r) for start, r in zip(window[:2], scale, strict=True))
        high, across = (max(1, round(window[2] / r)) for r in scale)
        crop = image[y : y + high, x : x + across]
        show_image(grid[1, column], crop, "", top=white)
        if errors:
            if 0 < column < len(columns) - 1:
                show_image(grid[2, column], np.abs(image - hr), "", top=top, colours="inferno")
            else:
                grid[2, column].set_axis_off()
    y, x, side = window
    grid[0, -1].add_patch(
        Rectangle((x - 0.5, y - 0.5), side, side, fill=False, edgecolor="#f2c14e", linewidth=1)
    )
    grid[0, 0].set_ylabel("slice", fontsize=8)
    grid[1, 0].set_ylabel("enlarged", fontsize=8)
    if errors:
        grid[2, 1].set_ylabel("|error|", fontsize=8)
    return figure


def _detail(hr: np.ndarray) -> tuple[int, int, int]:
    """(y, x, side) of the square with the strongest edges; its side is a third of the shorter side."""
    side = max(4, min(hr.shape) // 3)
    edges = gaussian_gradient_magnitude(np.nan_to_num(hr.astype(np.float64)), 1.0)
    summed = uniform_filter(edges, side, mode="constant")
    half = side // 2
    inner = summed[half : hr.shape[0] - side + half + 1, half : hr.shape[1] - side + half + 1]
    y, x = np.unravel_index(int(inner.argmax()), inner.shape)
    return int(y), int(x), side
