"""Counts can be summed, ratios are computed from them, and both agree with scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sk

from glioray.cases.labels import LABELS, REGION_LABELS
from glioray.metrics.overlap import overlap_metrics, region_counts
from glioray.tasks.segmentation.metrics import (
    confusion,
    dice_by_region,
    mean_dice,
    reported_regions,
)

REGIONS = {**REGION_LABELS, "ncr": (1,), "ed": (2,), "rc": (4,)}


def _masks(seed: int, shape: tuple[int, ...] = (9, 8, 7)) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    truth, prediction = rng.integers(0, 5, (2, *shape), dtype=np.uint8)
    prediction[:4] = truth[:4]
    return truth, prediction


def test_confusion_equals_scikit_learns():
    truth, prediction = _masks(0)
    expected = sk.confusion_matrix(truth.ravel(), prediction.ravel(), labels=range(len(LABELS)))
    assert np.array_equal(confusion(truth, prediction), expected)


def test_counts_add_up_over_slices_and_cases():
    pairs = [_masks(seed, shape) for seed, shape in enumerate([(9, 8, 7), (4, 4, 4)])]
    slices = sum(
        confusion(t, p) for truth, prediction in pairs for t, p in zip(truth, prediction, strict=True)
    )
    cases = sum(confusion(*pair) for pair in pairs)
    joined = confusion(*(np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1)))
    assert np.array_equal(slices, cases)
    assert np.array_equal(cases, joined)


def test_masks_of_different_shapes_are_rejected():
    with pytest.raises(ValueError, match=r"truth is \(2, 3\) but prediction is \(3, 2\)"):
        confusion(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_confusion_accepts_other_integer_types(dtype: type):
    truth, prediction = _masks(1)
    assert np.array_equal(
        confusion(truth.astype(dtype), prediction.astype(dtype)), confusion(truth, prediction)
    )


@pytest.mark.parametrize("name", REGIONS)
def test_ratios_equal_scikit_learns(name: str):
    truth, prediction = _masks(2)
    labels = REGIONS[name]
    inside = [np.isin(mask, labels).ravel() for mask in (truth, prediction)]
    figures = overlap_metrics(confusion(truth, prediction), labels)
    assert figures == pytest.approx(
        {
            "dice": sk.f1_score(*inside),
            "sensitivity": sk.recall_score(*inside),
            "specificity": sk.recall_score(*inside, pos_label=False),
            "precision": sk.precision_score(*inside),
            "iou": sk.jaccard_score(*inside),
        }
    )


def test_ratios_by_hand():
    truth = np.array([[1, 1, 1, 1, 2, 2, 3, 0, 0, 0]], np.uint8)
    prediction = np.array([[1, 1, 3, 2, 2, 0, 1, 2, 0, 0]], np.uint8)
    table = confusion(truth, prediction)
    assert region_counts(table, (1,)) == (2, 1, 2, 5)
    assert region_counts(table, (1, 3)) == (4, 0, 1, 5)
    assert region_counts(table, (1, 2, 3)) == (6, 1, 1, 2)
    assert overlap_metrics(table, (1,)) == pytest.approx(
        {"dice": 4 / 7, "sensitivity": 1 / 2, "specificity": 5 / 6, "precision": 2 / 3, "iou": 2 / 5}
    )
    assert overlap_metrics(table, (1, 2, 3)) == pytest.approx(
        {"dice": 6 / 7, "sensitivity": 6 / 7, "specificity": 2 / 3, "precision": 6 / 7, "iou": 6 / 8}
    )


@pytest.mark.parametrize(
    ("truth", "prediction", "dice", "sensitivity", "specificity", "precision"),
    [
        pytest.param([0, 0], [0, 0], 1, 1, 1, 1, id="empty on both sides"),
        pytest.param([0, 0], [0, 3], 0, 0, 0.5, 0, id="empty in truth"),
        pytest.param([0, 3], [0, 0], 0, 0, 1, 0, id="empty in the prediction"),
        pytest.param([3, 3], [3, 3], 1, 1, 1, 1, id="full on both sides"),
        pytest.param([3, 0], [0, 3], 0, 0, 0, 0, id="apart"),
        pytest.param([0, 2], [0, 1], 1, 1, 1, 1, id="other labels do not count"),
    ],
)
def test_ratios_of_empty_regions(
    truth: list[int],
    prediction: list[int],
    dice: float,
    sensitivity: float,
    specificity: float,
    precision: float,
):
    table = confusion(np.array(truth, np.uint8), np.array(prediction, np.uint8))
    figures = overlap_metrics(table, REGION_LABELS["et"])
    assert figures == {
        "dice": dice,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": precision,
        "iou": dice,  # equal at 0 and 1
    }


def test_the_cavity_is_reported_if_present():
    plain = confusion(np.array([0, 1, 2, 3]), np.array([0, 1, 2, 3]))
    assert list(reported_regions([plain])) == ["wt", "tc", "et", "ncr", "ed"]
    in_truth = confusion(np.array([4]), np.array([0]))
    claimed = confusion(np.array([0]), np.array([4]))
    for table in (in_truth, claimed):
        assert reported_regions([plain, table])["rc"] == (4,)


def test_mean_dice_is_over_cases_not_voxels():
    small = confusion(np.array([1, 0, 0, 0]), np.array([0, 0, 0, 0]))  # WT and TC missed, no ET at all
    large = confusion(np.full(1000, 3), np.full(1000, 3))
    means = mean_dice([small, large])
    assert means == pytest.approx(
        {"dice_wt": 0.5, "dice_tc": 0.5, "dice_et": 1, "dice_ncr": 0.5, "dice_ed": 1, "dice_mean": 2 / 3}
    )


def test_a_whole_tumour_mask_reports_only_wt():
    known = [("wt",), ("wt", "tc", "et")]
    whole = confusion(np.array([2, 2, 2, 0]), np.array([3, 1, 0, 4]))
    full = confusion(np.array([1, 2, 3, 0]), np.array([1, 2, 2, 0]))
    assert list(reported_regions([whole], known[0])) == ["wt"]
    assert dice_by_region([whole, full], known)[0] == {"wt": pytest.approx(4 / 5)}
    assert mean_dice([whole, full], known) == pytest.approx(
        {
            "dice_wt": (4 / 5 + 1) / 2,
            "dice_tc": 2 / 3,
            "dice_et": 0,
            "dice_ncr": 1,
            "dice_ed": 2 / 3,
            "dice_mean": (9 / 10 + 2 / 3 + 0) / 3,
        }
    )
    assert mean_dice([whole], known[:1]) == pytest.approx({"dice_wt": 0.8, "dice_mean": 0.8})
