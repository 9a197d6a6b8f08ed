"""What is drawn of a tournament, out of what its runs left behind. No Ray in here."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from glioray.engine.on_mlflow.runs import RunLogger
from glioray.storage import open_storage
from glioray.tasks.segmentation.case_metrics import mean_region_dice
from glioray.tasks.segmentation.comparison_figures import (
    case_by_case_figure,
    confusion_figure,
    dice_against_figure,
    dice_by_region_figure,
    training_curves_figure,
)
from glioray.tasks.segmentation.figures import overlay_figure
from glioray.tasks.segmentation.standings import Play, Standing

PICTURES_FILE = "pictures.npz"
"""In a run's storage: case id -> (3, Y, X) float32 of one slice: image, truth, prediction."""

_NUM_MATRICES = 12


def log_pictures(logger: RunLogger, plays: Sequence[Play], standings: Sequence[Standing]) -> None:
    """Log what is drawn of a tournament: intervals, courses, cases, confusion, losses and overlays."""
    rows = [
        (row.label, {name: (e.mean, e.low, e.high) for name, e in row.dice.items()})
        for row in standings
        if row.dice
    ]
    logger.log_figure(dice_by_region_figure(rows), "dice_by_region.png")
    logger.log_figure(
        case_by_case_figure([(r.label, r.case_dice) for r in standings if r.case_dice]), "cases.png"
    )
    complete: dict[str, list[Play]] = {
        row.label: [p for p in plays if p["label"] == row.label and p["state"] == "complete"]
        for row in standings
    }
    complete = {label: mine for label, mine in complete.items() if mine}
    for name, x, column in (("dice_by_time", "minutes of training", "minutes"), ("dice_by_slices", "slices learned from", "num_slices")):  # fmt: skip
        curves = {label: _mean_curve(mine, column) for label, mine in complete.items()}
        logger.log_figure(dice_against_figure(curves, x), f"{name}.png")
    points = {
        row.label: [(float(row.num_parameters), row.dice["mean"].mean)]
        for row in standings
        if row.num_parameters
    }
    logger.log_figure(dice_against_figure(points, "parameters", log=True), "dice_by_parameters.png")
    losses = {
        label: [
            [(r["num_slices"], r["train_loss"]) for r in play["history"] if "train_loss" in r]
            for play in mine
        ]
        for label, mine in complete.items()
    }
    logger.log_figure(training_curves_figure(losses), "training_curves.png")
    tables = [
        (label, np.sum([case["confusion"] for play in mine for case in play["cases"].values()], axis=0))
        for label, mine in list(complete.items())[:_NUM_MATRICES]
    ]
    figure = confusion_figure(tables)
    if len(complete) > len(tables):
        figure.suptitle(f"the first {len(tables)} of {len(complete)} entrants", fontsize=9)
    logger.log_figure(figure, "confusion.png")
    for row in standings:
        overlays = _overlays(row, plays)
        if overlays is not None:
            logger.log_figure(overlays, f"overlays/{row.rank:02d}-{slug(row.label)}.png")


def _mean_curve(plays: Sequence[Play], x: str) -> list[tuple[float, float]]:
    """(x, Dice) averaged over an entrant's runs, validation by validation, as far as all have got."""
    histories = [[row for row in play["history"] if "dice_mean" in row] for play in plays]
    rounds = zip(*histories, strict=False)
    return [
        (float(np.mean([row[x] for row in rows])), float(np.mean([row["dice_mean"] for row in rows])))
        for rows in rounds
    ]


def _overlays(row: Standing, plays: Sequence[Play]) -> Figure | None:
    """The entrant's best and worst two cases: image, truth and prediction; None where it has no case."""
    order = sorted(row.case_dice, key=lambda case_id: -row.case_dice[case_id])
    chosen = list(dict.fromkeys([*order[:2], *order[-2:]]))
    pictures, titles = [], []
    for case_id in chosen:
        play = next(p for p in plays if p["label"] == row.label and case_id in p["cases"])
        with np.load(io.BytesIO(open_storage(play["storage"]).read(PICTURES_FILE))) as found:
            pictures.append(_cut_to_brain(found[case_id]))
        # Of this prediction; the case's place is by the mean over seeds.
        dice = mean_dice_of({"cases": {case_id: play["cases"][case_id]}})
        titles.append(f"{case_id}\nmean Dice {dice:.2f}")
    if not pictures:
        return None
    # Cases may have grids of their own.
    height, width = (max(p.shape[axis] for p in pictures) for axis in (1, 2))
    padded = np.stack(
        [np.pad(p, ((0, 0), (0, height - p.shape[1]), (0, width - p.shape[2]))) for p in pictures]
    )
    return overlay_figure(padded[:, 0], padded[:, 1].astype(np.uint8), padded[:, 2].astype(np.uint8), titles)


def _cut_to_brain(picture: np.ndarray) -> np.ndarray:
    """(3, Y', X') of (3, Y, X): without the empty margins around what any of the three shows."""
    shown = (picture != 0).any(axis=0)
    rows, columns = (np.flatnonzero(shown.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return picture
    return picture[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def mean_dice_of(play: Play) -> float:
    """Of the run's cases, over WT, TC and ET as in the ranking."""
    return mean_region_dice(
        {
            case_id: {region: figures["dice"] for region, figures in case["regions"].items()}
            for case_id, case in play["cases"].items()
        }
    )


def slug(label: str) -> str:
    """A label as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-")[:60]
