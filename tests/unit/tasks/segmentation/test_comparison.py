"""How segmentation models are judged and shown in a comparison."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from glioray.config import override
from glioray.errors import UsageError
from glioray.storage import open_storage
from glioray.tasks.segmentation.comparison import (
    PICTURES_FILE,
    SegmentationComparison,
    mean_dice,
    overlays_figure,
)
from glioray.tasks.segmentation.recipes import build_recipe
from glioray.tasks.segmentation.standings import rank_entrants


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"loss.name": "region_dice_bce", "postprocess.fit_thresholds": True},
            "postprocess.fit_thresholds fits on the validation cases, on which a comparison evaluates",
        ),
        (
            {"sample.slice_split": (0.7, 0.15, 0.15)},
            "sample.slice_split trains on slices of every patient",
        ),
    ],
)
def test_entrants_must_not_learn_from_the_cases_of_the_evaluation(settings: dict[str, object], sentence: str):
    comparison, config = SegmentationComparison(), build_recipe("unet_tiny")
    comparison.check(config)
    with pytest.raises(UsageError, match=sentence):
        comparison.check(override(config, **settings))


def test_summary_is_the_mean_that_is_ranked():
    regions = {"wt": 0.9, "tc": 0.6, "et": 0.3, "ncr": 0.0, "ed": 0.0}
    cases = {"a": {"regions": {name: {"dice": dice} for name, dice in regions.items()}}}
    assert mean_dice(cases) == pytest.approx(0.6)
    assert SegmentationComparison().summarize({"cases": cases}) == "mean Dice 0.600"


def test_overlay_states_the_dice_of_the_prediction_shown(tmp_path: Path):
    results = []
    for seed, dice in enumerate((0.2, 0.8)):
        storage = open_storage(str(tmp_path / str(seed)))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, a=np.pad(np.ones((3, 8, 6), np.float32), ((0, 0), (3, 1), (0, 9))))
        storage.write(PICTURES_FILE, buffer.getvalue())
        regions = {name: {"dice": dice, "hd95_mm": 1.0} for name in ("wt", "tc", "et")}
        cases = {"a": {"patient": "p", "regions": regions}}
        results.append(
            {
                "label": "net", "fold": 0, "seed": seed, "state": "complete", "reason": "", "storage": storage.uri,
                "cases": cases, "num_parameters": 1, "minutes": 1, "num_slices": 1, "slices_per_s": 1,
            }
        )  # fmt: skip
    (row,) = rank_entrants(results)
    assert row.case_dice["a"] == pytest.approx(0.5)
    figure = overlays_figure(row, results)
    assert figure is not None
    assert figure.axes[0].get_title() == "a\nmean Dice 0.20"
    assert figure.axes[0].images[0].get_array().shape[:2] == (8, 6)  # without the empty margins
