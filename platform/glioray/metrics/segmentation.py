"""Overlap metrics from one table of counts.

The table of a case is its confusion matrix over the internal labels: it adds up over slices, ranks and
cases, and every ratio of every region comes out of it at the end. An average of averages never arises.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from glioray.cases.labels import LABELS, REGION_LABELS

NUM_LABELS = len(LABELS)
Counts = NDArray[np.int64]


def confusion(truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> Counts:
    """(5, 5) voxels by true label (rows) and predicted label (columns), of two masks of one shape."""
    if truth.shape != prediction.shape:
        raise ValueError(
            f"truth is {truth.shape} but prediction is {prediction.shape}; they must be of one shape"
        )
    joint = truth.ravel().astype(np.uint8) * np.uint8(NUM_LABELS) + prediction.ravel()
    return np.bincount(joint, minlength=NUM_LABELS**2).reshape(NUM_LABELS, NUM_LABELS)


def reported_regions(tables: Iterable[Counts]) -> dict[str, tuple[int, ...]]:
    """What is reported for these cases, each as the labels it joins: WT, TC, ET and the single labels.

    The resection cavity is among them only where a truth or a prediction holds one.
    """
    regions = {**REGION_LABELS, "ncr": (1,), "ed": (2,)}
    if any(table[4].sum() + table[:, 4].sum() for table in tables):
        regions["rc"] = (4,)
    return regions


def region_counts(counts: Counts, labels: Iterable[int]) -> tuple[int, int, int, int]:
    """(true positives, false positives, false negatives, true negatives) of a region of a confusion matrix."""
    inside = np.zeros(NUM_LABELS, bool)
    inside[list(labels)] = True
    tp = int(counts[np.ix_(inside, inside)].sum())
    fp = int(counts[np.ix_(~inside, inside)].sum())
    fn = int(counts[np.ix_(inside, ~inside)].sum())
    return tp, fp, fn, int(counts.sum()) - tp - fp - fn


def overlap_metrics(counts: Counts, labels: Iterable[int]) -> dict[str, float]:
    """Dice, sensitivity, specificity, precision and IoU of a region, each in [0, 1].

    Of voxels, Dice is the F1 score, sensitivity the recall, and IoU (Jaccard) is Dice / (2 - Dice).

    A region that is empty in truth and in prediction scores 1; one that is empty in truth alone scores a
    Dice, an IoU and a precision of 0, and one that is empty in the prediction alone a Dice, an IoU and a
    sensitivity of 0. Sensitivity with nothing to find, and precision with nothing claimed, follow the Dice.
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


def mean_dice(tables: Sequence[Counts]) -> dict[str, float]:
    """Patient-level Dice: `dice_wt`, `dice_tc`, ... as means over the cases, `dice_mean` over WT, TC and ET."""
    result = {
        f"dice_{name}": float(np.mean([overlap_metrics(table, labels)["dice"] for table in tables]))
        for name, labels in reported_regions(tables).items()
    }
    result["dice_mean"] = float(np.mean([result[f"dice_{name}"] for name in REGION_LABELS]))
    return result
