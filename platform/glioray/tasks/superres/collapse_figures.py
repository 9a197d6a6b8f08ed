"""Figure and page of a calibration of the collapse score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from glioray.reports.images import show_image
from glioray.tasks.superres.config import COLLAPSE_COMPONENTS, CollapseConfig
from glioray.tasks.superres.figures import white_of
from glioray.tasks.superres.planted import HEALTHY_LIMIT, Calibration, advise

Images = NDArray[np.float32]
"""(N, H, W)."""

_COLUMNS = 6
_SHOWN = 3


def planted_figure(
    rows: Sequence[Calibration], hr: Images, lr: Images, outputs: Mapping[str, Images]
) -> Figure:
    """Draw three outputs of each row side by side, with their score and its component.

    Inputs and truth come first; non-finite pixels are magenta. Titles of rows on the wrong side are red.

    Args:
        rows: from `calibrate`.
        hr: (N, H, W) in [0, 1], the truth.
        lr: (N, h, w), the inputs.
        outputs: (N, H, W), by row name.

    Raises:
        ValueError: fewer than 3 images.
    """
    if len(hr) < _SHOWN:
        raise ValueError(f"there are {len(hr)} images to show; expected at least {_SHOWN}")
    shown = np.arange(_SHOWN) * len(hr) // _SHOWN
    top = max(white_of(hr[number]) for number in shown)
    cells = [("inputs", "", lr, False), ("truth", "", hr, False)]
    for row in rows:
        reason = f" {row.reason}" if row.score > 0 else ""
        cells.append((row.name, f"{row.score:.2f}{reason}", outputs[row.name], not row.is_ok))
    num_lines = -(-len(cells) // _COLUMNS)
    aspect = hr.shape[1] / (_SHOWN * hr.shape[2])
    width = 2.1
    figure = Figure(figsize=(_COLUMNS * width, num_lines * (width * aspect + 0.38)), layout="constrained")
    grid = figure.subplots(num_lines, _COLUMNS, squeeze=False).ravel()
    for axes in grid[len(cells) :]:
        axes.set_axis_off()
    for axes, (name, score, images, is_wrong) in zip(grid, cells, strict=False):
        show_image(axes, np.concatenate([images[number] for number in shown], 1), name, top=top)
        if is_wrong:
            axes.title.set_color("#c1121f")
        axes.set_xlabel(score, fontsize=7, labelpad=2)
        axes.set_frame_on(False)
    return figure


def calibration_markdown(
    rows: Sequence[Calibration], config: CollapseConfig, *, title: str, picture: str
) -> str:
    """Write the page of a calibration: rows on the wrong side, the table, the figure.

    Args:
        rows: from `calibrate`.
        config: the bounds that were checked.
        title: of the page: data and number of images.
        picture: file name of `planted_figure`, beside the page.
    """
    wrong = [row for row in rows if not row.is_ok]
    lines = [f"# Collapse score: {title}", ""]
    lines += [f"- {advise(row, config)}" for row in wrong] or [
        f"Every planted output scores {config.threshold:g} or more, every healthy output less than {HEALTHY_LIMIT:g}."
    ]
    lines += ["", f"![Three outputs of each row with their score]({picture})", ""]
    lines += [f"| outputs | expected | score | {' | '.join(COLLAPSE_COMPONENTS)} |"]
    lines += ["|---|---|---|" + "---|" * len(COLLAPSE_COMPONENTS)]
    for row in rows:
        parts = " | ".join(f"{row.components[name]:.2f}" for name in COLLAPSE_COMPONENTS)
        mark = "" if row.is_ok else " (!)"
        lines.append(f"| {row.name} | {row.expected} | {row.score:.2f}{mark} | {parts} |")
    bounds = ", ".join(f"{name} {getattr(config, name)}" for name in COLLAPSE_COMPONENTS)
    return "\n".join([*lines, "", f"Bounds (ok, bad): {bounds}.", ""])
