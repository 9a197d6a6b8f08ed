"""Figures of a super-resolution run, without pyplot's global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullFormatter

from glioray.reports.axes import finish, is_finite, series
from glioray.reports.images import show_image
from glioray.tasks.superres.config import COLLAPSE_COMPONENTS
from glioray.tasks.superres.panel import PanelRow

COMPONENT_COLOURS = dict(
    zip(
        COLLAPSE_COMPONENTS,
        ("#6d597a", "#5b8def", "#3fa34d", "#d99a00", "#e07be0", "#8d6e63", "#4c9f9b"),
        strict=True,
    )
)
_SR, _BICUBIC, _COLLAPSED = "#d1495b", "#5b8def", "#d1495b"


def panel_figure(rows: Sequence[PanelRow]) -> Figure:
    """Draw one row per slice: LR, bicubic, SR, HR, both errors on one colour scale, spectra of SR and HR on another.

    The dashed box in the spectra is the low resolution's Nyquist frequency; detail outside it comes from the generator.

    Raises:
        ValueError: no rows, or mismatched images in a row.
    """
    if not rows:
        raise ValueError("no slices to draw; expected at least one")
    for row in rows:
        shapes = [row.bicubic.shape, row.sr.shape, row.hr.shape]
        if row.lr.ndim != 2 or row.hr.ndim != 2 or len(set(shapes)) != 1:
            raise ValueError(
                f"'{row.title}' has lr {row.lr.shape} and bicubic, sr and hr {shapes}; expected (h, w) and three times "
                "the same (H, W)"
            )
    aspect = max(row.hr.shape[0] / row.hr.shape[1] for row in rows)
    figure = Figure(figsize=(15.2, (1.75 * aspect + 0.22) * len(rows) + 0.3), layout="constrained")
    grid: np.ndarray = figure.subplots(len(rows), 8, squeeze=False)
    for line, row in enumerate(rows):
        cells: Sequence[Axes] = grid[line]
        own = f"SR{_quoted(row.figures, '')}"
        plain = f"bicubic{_quoted(row.figures, 'bicubic_')}"
        height, width = row.lr.shape
        names = (f"LR {height} x {width}", plain, own, "HR")
        for axes, image, name in zip(cells, (row.lr, row.bicubic, row.sr, row.hr), names, strict=False):
            show_image(axes, image, name, top=white_of(row.hr))
        errors = [np.abs(image - row.hr) for image in (row.bicubic, row.sr)]
        top = error_top(errors[0])
        for axes, error, name in zip(cells[4:6], errors, ("|bicubic - HR|", "|SR - HR|"), strict=True):
            show_image(axes, error, name, top=top, colours="inferno")
        bar = figure.colorbar(cells[5].images[0], ax=cells[5], shrink=0.8, pad=0.02)
        bar.ax.tick_params(labelsize=6)
        spectra = [_spectrum_db(image) for image in (row.sr, row.hr)]
        for axes, spectrum, name in zip(cells[6:], spectra, ("spectrum SR", "spectrum HR"), strict=True):
            show_image(axes, spectrum, name, bottom=-90, top=0, colours="magma")
            axes.add_patch(_nyquist(row))
        cells[0].set_ylabel(row.title, fontsize=7)
    return figure


def white_of(hr: np.ndarray) -> float:
    """Return the intensity drawn white: the 99.7th percentile of the truth, for all images of a row."""
    return float(np.percentile(hr, 99.7)) or 1.0


def error_top(bicubic_error: np.ndarray) -> float:
    """Return the end of the error colour scale, from bicubic's error: equal in every epoch."""
    return max(float(np.nanpercentile(bicubic_error, 99.5)), 1e-3)


def gan_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw small multiples over epochs: losses, discriminator, gradients, rates, collapse and image metrics.

    Args:
        history: metrics of each validation; keys may be absent from some rows. A vertical line marks the start of the
            adversarial stage, where `stage` becomes 1.
    """
    figure = Figure(figsize=(19, 7), layout="constrained")
    grid: np.ndarray = figure.subplots(2, 5)
    cells = list(grid.flat)
    lines: dict[str, dict[str, tuple[str, str]]] = {
        "Generator's losses": {
            "train_loss": ("whole", "black"),
            "train_pixel": ("pixel", "#5b8def"),
            "train_perceptual": ("perceptual", "#3fa34d"),
            "train_adversarial": ("adversarial", _SR),
        },
        "Discriminator's loss": {"train_d_loss": ("D", "black"), "train_r1": ("R1", "#d99a00")},
        "Discriminator says": {"train_d_real": ("of real", "#3fa34d"), "train_d_fake": ("of SR", _SR)},
        "Gradient norms": {
            "train_grad_g": ("G", _SR),
            "train_grad_d": ("D", "#5b8def"),
            "train_grad_ratio": ("ratio", "#9a9a9a"),
        },
        "Learning rates": {"train_rate_g": ("G", _SR), "train_rate_d": ("D", "#5b8def")},
        "Collapse": {
            **{f"collapse_{name}": (name, colour) for name, colour in COMPONENT_COLOURS.items()},
            "collapse_score": ("score", "black"),
        },
        "PSNR gain over bicubic": {"gain_psnr": ("foreground", _SR)},
        "Quality and objective": {"quality": ("quality", "#3fa34d"), "objective": ("objective", "black")},
        "LPIPS, lower is better": {"lpips": ("SR", _SR), "bicubic_lpips": ("bicubic", _BICUBIC)},
        "Detail against real": {"hf_db": ("SR", _SR), "bicubic_hf_db": ("bicubic", _BICUBIC)},
    }
    units = {"PSNR gain over bicubic": "dB", "Detail against real": "dB"}
    on_logarithms = {"Generator's losses", "Gradient norms", "Learning rates"}
    begins = [
        float(after.get("epoch", number + 1))
        for number, (before, after) in enumerate(pairwise(history))
        if before.get("stage") == 0 and after.get("stage") == 1
    ]
    epochs = [float(row.get("epoch", number)) for number, row in enumerate(history)]
    for axes, (title, named) in zip(cells, lines.items(), strict=True):
        log = title in on_logarithms
        for name, (label, colour) in named.items():
            points = [
                (x, y)
                for x, y in zip(*series(history, name), strict=True)
                if is_finite(y) and (y > 0 or not log)
            ]
            if points:
                thick = name == "collapse_score"
                axes.plot(
                    *zip(*points, strict=True),
                    label=label,
                    color=colour,
                    marker="." if len(points) < 40 else None,
                    linewidth=2.6 if thick else 1.3,
                    zorder=4 if thick else 3,
                )
        shown = bool(axes.lines)
        if log and shown:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if shown:
            for epoch in begins:
                axes.axvline(epoch, color="gray", linewidth=1, linestyle="--", zorder=1)
        finish(axes, title, "epoch", units.get(title, ""), empty="" if shown else "nothing yet")
        if shown:
            axes.legend(frameon=False, fontsize=7, ncols=2 if len(named) > 4 else 1)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if epochs:
            axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    collapse = cells[5]
    collapse.axhline(0.5, color=_COLLAPSED, linewidth=1, linestyle=":")
    collapse.set_ylim(-0.05, 1.05)
    for axes in (cells[6], cells[9]):
        axes.axhline(0, color="gray", linewidth=0.8, linestyle=":")
    if begins:
        figure.supxlabel("dashed: the adversarial stage begins", fontsize=8, color="gray")
    return figure


def _quoted(figures: Mapping[str, float], prefix: str) -> str:
    parts = []
    if is_finite(figures.get(f"{prefix}psnr")):
        parts.append(f"{figures[f'{prefix}psnr']:.1f} dB")
    if is_finite(figures.get(f"{prefix}lpips")):
        parts.append(f"LPIPS {figures[f'{prefix}lpips']:.3f}")
    return f"  {', '.join(parts)}" if parts else ""


def _spectrum_db(image: np.ndarray) -> np.ndarray:
    """Compute the power (H, W) of the Hann-windowed image in dB below its maximum, frequency 0 in the middle."""
    clean = np.nan_to_num(image.astype(np.float64), posinf=0.0, neginf=0.0)
    window = np.outer(np.hanning(clean.shape[0]), np.hanning(clean.shape[1]))
    power = np.abs(np.fft.fftshift(np.fft.fft2(clean * window))) ** 2
    return 10 * np.log10(power / max(power.max(), 1e-12) + 1e-12)


def _nyquist(row: PanelRow) -> Rectangle:
    (height, width), (h, w) = row.hr.shape, row.lr.shape
    return Rectangle(
        (width // 2 - w / 2, height // 2 - h / 2),
        w,
        h,
        fill=False,
        edgecolor="white",
        linewidth=0.8,
        linestyle="--",
    )
