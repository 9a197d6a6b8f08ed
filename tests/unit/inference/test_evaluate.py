"""Figures of whole cases, their means and their table."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from glioray.cases.load import Case
from glioray.errors import CaseError
from glioray.inference.evaluate import evaluate_case, figures_csv, mean_figures, mean_region_dice
from glioray.inference.predictor import Predictor
from glioray.metrics.surface import hd95_mm


class _Answering(Predictor):
    """A predictor that has made up its mind."""

    def __init__(self, answer: np.ndarray) -> None:
        self.answer = answer

    def predict(self, case: Case) -> np.ndarray:
        return self.answer


NAMES = ["dice", "sensitivity", "specificity", "precision", "hd95_mm", "volume_ml", "true_volume_ml"]


def test_a_perfect_prediction(case: Case):
    assert case.mask is not None
    figures = evaluate_case(_Answering(case.mask), case)
    assert list(figures) == ["wt", "tc", "et", "ncr", "ed"]
    voxel_ml = np.prod(case.spacing_mm) / 1000
    for name, labels in {"wt": (1, 2, 3), "tc": (1, 3), "et": (3,), "ncr": (1,), "ed": (2,)}.items():
        assert list(figures[name]) == NAMES
        ml = np.isin(case.mask, labels).sum() * voxel_ml
        assert ml > 0
        assert figures[name] == pytest.approx(
            {**dict.fromkeys(NAMES[:4], 1.0), "hd95_mm": 0, "volume_ml": ml, "true_volume_ml": ml}
        )


def test_a_shifted_prediction(case: Case):
    assert case.mask is not None
    shifted = np.roll(case.mask, 2, axis=0)
    figures = evaluate_case(_Answering(shifted), case)
    for name, labels in {"wt": (1, 2, 3), "et": (3,)}.items():
        truth, found = np.isin(case.mask, labels), np.isin(shifted, labels)
        both = (truth & found).sum()
        assert figures[name]["dice"] == pytest.approx(2 * both / (truth.sum() + found.sum()))
        assert figures[name]["precision"] == pytest.approx(both / found.sum())
        assert figures[name]["hd95_mm"] == hd95_mm(truth, found, case.spacing_mm) > 0


def test_what_is_missed_and_what_is_made_up(case: Case):
    assert case.mask is not None
    without = np.where(case.mask == 3, 1, case.mask).astype(np.uint8)
    missed = evaluate_case(_Answering(without), case)["et"]
    assert (missed["dice"], missed["hd95_mm"], missed["volume_ml"]) == (0, 374, 0)
    made_up = evaluate_case(_Answering(case.mask), replace(case, mask=without))["et"]
    assert (made_up["dice"], made_up["hd95_mm"], made_up["true_volume_ml"]) == (0, 374, 0)
    neither = evaluate_case(_Answering(without), replace(case, mask=without))["et"]
    assert (neither["dice"], neither["hd95_mm"]) == (1, 0)


def test_a_model_on_a_real_network(make_predictor: Callable[..., Predictor], case: Case):
    predictor = make_predictor()
    figures = evaluate_case(predictor, case)
    prediction = predictor.predict(case)
    assert figures["wt"]["volume_ml"] == pytest.approx(
        np.isin(prediction, (1, 2, 3)).sum() * np.prod(case.spacing_mm) / 1000
    )


def test_a_case_without_a_mask_cannot_be_judged(case: Case):
    with pytest.raises(CaseError, match="it has no mask to judge by; add the mask or leave the case out"):
        evaluate_case(_Answering(np.zeros(1)), replace(case, mask=None))


CASES = {
    "b": {"wt": {"dice": 0.5, "hd95_mm": 4.0}, "rc": {"dice": 0.2, "hd95_mm": 374.0}},
    "a": {"wt": {"dice": 1.0, "hd95_mm": 1.0}},
}


def test_means_are_over_the_cases_that_report_a_region():
    assert mean_figures(CASES) == {
        "wt": {"dice": 0.75, "hd95_mm": 2.5},
        "rc": {"dice": 0.2, "hd95_mm": 374.0},
    }
    assert mean_figures(dict(reversed(CASES.items()))) == mean_figures(CASES)


def test_csv_is_a_line_a_case_and_region():
    rows = list(csv.DictReader(io.StringIO(figures_csv(CASES))))
    assert rows == [
        {"case": "a", "region": "wt", "dice": "1.0", "hd95_mm": "1.0"},
        {"case": "b", "region": "wt", "dice": "0.5", "hd95_mm": "4.0"},
        {"case": "b", "region": "rc", "dice": "0.2", "hd95_mm": "374.0"},
    ]


def test_mean_region_dice_is_over_the_three_regions_alone():
    cases = {
        "a": {"wt": 0.9, "tc": 0.6, "et": 0.3, "ncr": 0.0},
        "b": {"wt": 0.3, "tc": 0.3, "et": 0.3, "rc": 1.0},
    }
    assert mean_region_dice(cases) == pytest.approx(0.45)
