"""How segmentation models are compared: cross-validated, by the Dice of whole cases that they were not trained on."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glioray.cases.load import Case, load_case
from glioray.engine.checkpoint import fetch_model
from glioray.engine.comparison import RunResult, slug
from glioray.engine.run import Fill, RunPlan, load_history
from glioray.errors import UsageError
from glioray.reports.tables import Table
from glioray.storage import open_storage
from glioray.tasks.segmentation.case_metrics import (
    case_metrics,
    case_slice_sums,
    mean_region_dice,
)
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.entrants import STUDIES, entrant_config, product_entrants
from glioray.tasks.segmentation.metrics import confusion
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.segmentation.standings import (
    Standing,
    interpret,
    rank_entrants,
    text_table,
    value_table,
    winner,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES_FILE = "pictures.npz"
"""In a run's storage: case id -> (3, Y, X) float32 of one slice: image, truth, prediction."""

_HISTORY = ("epoch", "minutes", "num_slices", "train_loss", "dice_mean", "dice_wt", "dice_tc", "dice_et")
"""Metrics of each validation that a result keeps."""

_NUM_MATRICES = 12


class SegmentationComparison:
    """Ranks entrants by mean Dice over the cases of all folds."""

    cross_validates = True
    report_name = "standings"
    stores_all = False
    states: tuple[str, ...] = ()

    def entrants(
        self, config: RunConfig, chosen: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> dict[str, RunConfig]:
        named = [chosen.get(name, ()) for name in ("nets", "losses", "optimizers")]
        is_study = config.recipe in STUDIES and not any(named)
        rows = STUDIES[config.recipe]() if is_study else product_entrants(*named)
        return {row.label: entrant_config(config, row, width=chosen.get("width")) for row in rows}

    def check(self, config: RunConfig) -> None:
        if config.sample.slice_split:
            raise UsageError(
                "sample.slice_split trains on slices of every patient, but a comparison evaluates patients that were "
                "not trained on; leave it out"
            )
        if config.postprocess.fit_thresholds:
            raise UsageError(
                "postprocess.fit_thresholds fits on the validation cases, on which a comparison evaluates; leave it "
                "out, and fit thresholds when training the winner"
            )

    def judge(self, plan: RunPlan, outcome: Mapping[str, Any], fill: Fill) -> RunResult:
        """Evaluate the last model on the fold's cases, and keep one slice of each for the overlays."""
        storage = open_storage(plan.storage)
        with tempfile.TemporaryDirectory() as folder:
            predictor = Predictor.load(fetch_model(storage, Path(folder)), agree=plan.agree)
        data = open_storage(plan.manifest.data)
        cases, pictures = {}, {}
        for entry in plan.manifest.select("val"):
            if entry.case_id in outcome.get("left_out", ()):
                continue
            case = load_case(data, entry.described_files)
            assert case.mask is not None, "folds consist of labelled cases"
            prediction = predictor.predict(case)
            cases[case.case_id] = {
                "patient": entry.patient_id,
                "regions": case_metrics(case, prediction),
                "confusion": confusion(case.mask, prediction).tolist(),
                "slices": case_slice_sums(case, prediction),
            }
            pictures[case.case_id] = _picture(case, prediction)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **pictures)  # type: ignore[arg-type]
        storage.write(PICTURES_FILE, buffer.getvalue())
        metrics = outcome["metrics"]
        return {
            "state": "complete",
            "reason": "",
            "minutes": metrics["minutes"],
            "num_slices": metrics["num_slices"],
            "slices_per_s": metrics["slices_per_s"],
            "history": [{k: row[k] for k in _HISTORY if k in row} for row in load_history(storage)],
            "cases": cases,
            "num_parameters": sum(parameter.numel() for parameter in predictor.net.parameters()),
        }

    def summarize(self, result: RunResult) -> str:
        return f"mean Dice {mean_dice(result['cases']):.3f}"

    def rank(self, results: Sequence[RunResult]) -> list[Standing]:
        return rank_entrants(results)

    def winner(self, standings: Sequence[Standing]) -> Standing | None:
        return winner(standings)

    def winner_metrics(self, winner: Standing) -> dict[str, float]:
        return {"dice_mean": winner.dice["mean"].mean}

    def interpret(self, standings: Sequence[Standing], results: Sequence[RunResult], budget: str) -> str:
        num_folds, num_seeds = (len({result[name] for result in results}) for name in ("fold", "seed"))
        return interpret(standings, num_folds=num_folds, num_seeds=num_seeds, budget=budget)

    def text_table(self, standings: Sequence[Standing]) -> Table:
        return text_table(standings)

    def value_table(self, standings: Sequence[Standing]) -> Table:
        return value_table(standings)

    def documents(
        self, standings: Sequence[Standing], interpretation: str, results: Sequence[RunResult]
    ) -> dict[str, Any]:
        return {"plays.json": list(results)}

    def figures(
        self, standings: Sequence[Standing], results: Sequence[RunResult]
    ) -> Iterator[tuple[str, Figure]]:
        """Intervals, cases, curves, confusion matrices, losses, and overlays of each entrant."""
        from glioray.tasks.segmentation.comparison_figures import (
            case_by_case_figure,
            dice_against_figure,
            dice_by_region_figure,
            training_curves_figure,
        )

        rows = [
            (row.label, {name: (e.mean, e.low, e.high) for name, e in row.dice.items()})
            for row in standings
            if row.dice
        ]
        yield "dice_by_region.png", dice_by_region_figure(rows)
        yield "cases.png", case_by_case_figure([(r.label, r.case_dice) for r in standings if r.case_dice])
        complete = {
            row.label: [r for r in results if r["label"] == row.label and r["state"] == "complete"]
            for row in standings
        }
        complete = {label: own for label, own in complete.items() if own}
        for name, x, column in (
            ("dice_by_time", "minutes of training", "minutes"),
            ("dice_by_slices", "slices learned from", "num_slices"),
        ):
            curves = {label: _mean_curve(own, column) for label, own in complete.items()}
            yield f"{name}.png", dice_against_figure(curves, x)
        points = {
            row.label: [(float(row.num_parameters), row.dice["mean"].mean)]
            for row in standings
            if row.num_parameters
        }
        yield "dice_by_parameters.png", dice_against_figure(points, "parameters", log=True)
        losses = {
            label: [
                [(row["num_slices"], row["train_loss"]) for row in result["history"] if "train_loss" in row]
                for result in own
            ]
            for label, own in complete.items()
        }
        yield "training_curves.png", training_curves_figure(losses)
        yield "confusion.png", _confusion(complete)
        for row in standings:
            overlays = overlays_figure(row, results)
            if overlays is not None:
                yield f"overlays/{row.rank:02d}-{slug(row.label)}.png", overlays


def mean_dice(cases: Mapping[str, Any]) -> float:
    """The mean over a result's cases of their mean Dice over WT, TC and ET, as in the ranking."""
    return mean_region_dice(
        {
            case_id: {region: metrics["dice"] for region, metrics in case["regions"].items()}
            for case_id, case in cases.items()
        }
    )


def overlays_figure(standing: Standing, results: Sequence[RunResult]) -> Figure | None:
    """Draw an entrant's two best and two worst cases: image, truth and prediction; None where it has no case."""
    from glioray.tasks.segmentation.figures import overlay_figure

    order = sorted(standing.case_dice, key=lambda case_id: -standing.case_dice[case_id])
    chosen = list(dict.fromkeys([*order[:2], *order[-2:]]))
    pictures, titles = [], []
    for case_id in chosen:
        result = next(r for r in results if r["label"] == standing.label and case_id in r.get("cases", ()))
        with np.load(io.BytesIO(open_storage(result["storage"]).read(PICTURES_FILE))) as stored:
            pictures.append(_crop_to_brain(stored[case_id]))
        # The Dice of the prediction shown; the order is by the mean over seeds.
        dice = mean_dice({case_id: result["cases"][case_id]})
        titles.append(f"{case_id}\nmean Dice {dice:.2f}")
    if not pictures:
        return None
    # Cases may have different grids.
    height, width = (max(p.shape[axis] for p in pictures) for axis in (1, 2))
    padded = np.stack(
        [np.pad(p, ((0, 0), (0, height - p.shape[1]), (0, width - p.shape[2]))) for p in pictures]
    )
    return overlay_figure(padded[:, 0], padded[:, 1].astype(np.uint8), padded[:, 2].astype(np.uint8), titles)


def _confusion(complete: Mapping[str, Sequence[RunResult]]) -> Figure:
    from glioray.tasks.segmentation.comparison_figures import confusion_figure

    tables = [
        (label, np.sum([case["confusion"] for result in own for case in result["cases"].values()], axis=0))
        for label, own in list(complete.items())[:_NUM_MATRICES]
    ]
    figure = confusion_figure(tables)
    if len(complete) > len(tables):
        figure.suptitle(f"the first {len(tables)} of {len(complete)} entrants", fontsize=9)
    return figure


def _mean_curve(results: Sequence[RunResult], x: str) -> list[tuple[float, float]]:
    """(x, Dice) averaged over an entrant's runs by validation, up to the last one that all runs have."""
    histories = [[row for row in result["history"] if "dice_mean" in row] for result in results]
    validations = zip(*histories, strict=False)
    return [
        (float(np.mean([row[x] for row in rows])), float(np.mean([row["dice_mean"] for row in rows])))
        for rows in validations
    ]


def _picture(case: Case, prediction: np.ndarray) -> np.ndarray:
    """(3, Y, X) float32 of the axial slice with the most tumour: image, truth, prediction; anterior at the top."""
    assert case.mask is not None
    number = int((case.mask > 0).sum(axis=(0, 1)).argmax())
    channel = case.modalities.index("flair") if "flair" in case.modalities else len(case.modalities) - 1
    planes = (case.images[channel], case.mask, prediction)
    # RAS+ indices grow to the patient's right and anterior; figures show the patient's right on the left.
    return np.stack([plane[::-1, ::-1, number].T for plane in planes]).astype(np.float32)


def _crop_to_brain(picture: np.ndarray) -> np.ndarray:
    """(3, Y', X') of (3, Y, X), without the margins in which all three are 0."""
    shown = (picture != 0).any(axis=0)
    rows, columns = (np.flatnonzero(shown.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return picture
    return picture[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
