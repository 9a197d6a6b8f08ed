"""The slice-level table, computed by hand and compared with scikit-learn slice by slice."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from glioray.cases.labels import LABELS
from glioray.metrics.overlap import overlap_metrics
from glioray.tasks.segmentation.metrics import confusion
from glioray.tasks.segmentation.slicewise import slice_sums, slicewise_table

FIGURES = {"precision", "sensitivity", "specificity", "iou", "dice"}


def _masks(seed: int, num_slices: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, (num_slices, 7, 9), dtype=np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.7, truth, 0).astype(np.uint8)
    return truth, prediction


def test_equals_scikit_learn_slice_by_slice():
    truth, prediction = _masks(0)
    table = slicewise_table([slice_sums(truth, prediction)])
    for label, name in enumerate(("background", "ncr", "ed", "et")):
        pairs = [((t == label).ravel(), (p == label).ravel()) for t, p in zip(truth, prediction, strict=True)]
        assert table[name] == pytest.approx(
            {
                "precision": np.mean([sk.precision_score(*pair) for pair in pairs]),
                "sensitivity": np.mean([sk.recall_score(*pair) for pair in pairs]),
                "specificity": np.mean([sk.recall_score(*pair, pos_label=False) for pair in pairs]),
                "iou": np.mean([sk.jaccard_score(*pair) for pair in pairs]),
                "dice": np.mean([sk.f1_score(*pair) for pair in pairs]),
                "share_with_class": 1,
            }
        )
    assert "rc" not in table


def test_the_last_row_is_the_unweighted_mean_of_the_classes():
    table = slicewise_table([slice_sums(*_masks(1))])
    assert list(table) == ["background", "ncr", "ed", "et", "mean"]
    for figure in FIGURES:
        classes = [table[name][figure] for name in ("background", "ncr", "ed", "et")]
        assert table["mean"][figure] == pytest.approx(np.mean(classes))


def test_sums_of_cases_equal_one_long_stack():
    first, second = _masks(2, 3), _masks(3, 8)
    joined = [np.concatenate(pair) for pair in zip(first, second, strict=True)]
    whole = slicewise_table([slice_sums(*joined)])
    parts = slicewise_table([slice_sums(*first), slice_sums(*second)])
    for name in whole:
        assert parts[name] == pytest.approx(whole[name])


def test_slices_without_the_class_inflate_scores():
    """If the only tumour slice of ten is missed, the score is 0 by patient but 0.9 by slice."""
    truth, prediction = np.zeros((2, 10, 8, 8), np.uint8)
    truth[4, 2:5, 2:5] = 3
    table = slicewise_table([slice_sums(truth, prediction)])
    assert overlap_metrics(confusion(truth, prediction), (3,))["dice"] == 0
    assert table["et"]["dice"] == pytest.approx(0.9)
    assert table["et"]["share_with_class"] == pytest.approx(0.1)
    assert table["mean"]["dice"] > 0.97


def test_the_cavity_has_a_row_if_present():
    truth, prediction = _masks(4)
    claimed = prediction.copy()
    claimed[0, 0, 0] = LABELS.index("rc")
    sums = [slice_sums(truth, prediction), slice_sums(truth, claimed)]
    assert "rc" not in slicewise_table(sums[:1])
    assert slicewise_table(sums)["rc"]["share_with_class"] == pytest.approx(1 / 12)


def test_different_shapes_and_no_slices_are_rejected():
    truth, prediction = _masks(5)
    with pytest.raises(ValueError, match=r"truth is \(6, 7, 9\) but prediction is \(5, 7, 9\)"):
        slice_sums(truth, prediction[1:])
    with pytest.raises(ValueError, match="no slices to average"):
        slicewise_table([])
