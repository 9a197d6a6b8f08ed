"""Overlap of two label maps from one table of counts.

The table is their confusion matrix over the labels 0 to K - 1. It adds up over slices, ranks and cases, and every
ratio of every region comes out of the sum, so that averages of averages never arise.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
"""(K, K) voxels by true label (rows) and predicted label (columns)."""


def confusion(truth: NDArray[np.uint8], prediction: NDArray[np.uint8], num_labels: int) -> Counts:
    """Count the voxels of two label maps by true and predicted label.

    Args:
        truth: labels from 0 to `num_labels` - 1, at most 16 of them, in any shape.
        prediction: likewise, of the same shape.
        num_labels: K.

    Raises:
        ValueError: shapes that differ.
    """
    if truth.shape != prediction.shape:
        raise ValueError(
            f"truth is {truth.shape} but prediction is {prediction.shape}; expected equal shapes"
        )
    joint = truth.ravel().astype(np.uint8) * np.uint8(num_labels) + prediction.ravel()
    return np.bincount(joint, minlength=num_labels**2).reshape(num_labels, num_labels)


def region_counts(counts: Counts, labels: Iterable[int]) -> tuple[int, int, int, int]:
    """(true positives, false positives, false negatives, true negatives) of a region."""
    inside = np.zeros(len(counts), bool)
    inside[list(labels)] = True
    tp = int(counts[np.ix_(inside, inside)].sum())
    fp = int(counts[np.ix_(~inside, inside)].sum())
    fn = int(counts[np.ix_(inside, ~inside)].sum())
    return tp, fp, fn, int(counts.sum()) - tp - fp - fn


def overlap_metrics(counts: Counts, labels: Iterable[int]) -> dict[str, float]:
    """Compute Dice, sensitivity, specificity, precision and IoU of a region, each in [0, 1].

    On voxels, Dice is the F1 score, sensitivity the recall, and IoU (Jaccard) is Dice / (2 - Dice).

    A region empty in truth and prediction scores 1. Empty in truth only: Dice, IoU and precision are 0. Empty in the
    prediction only: Dice, IoU and sensitivity are 0. Sensitivity without truth and precision without prediction
    equal the Dice.
    """
    tp, fp, fn, tn = region_counts(counts, labels)
    empty = float(tp + fp + fn == 0)
    return {
        "dice": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else empty,
        "sensitivity": tp / (tp + fn) if tp + fn else empty,
        "specificity": tn / (tn + fp) if tn + fp else 1.0,
        "precision": tp / (tp + fp) if tp + fp else empty,
        "iou": tp / (tp + fp + fn) if tp + fp + fn else empty,
    }
