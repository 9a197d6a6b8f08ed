"""Overlap metrics from confusion matrices.

A case's confusion matrix over the internal labels adds up over slices, ranks and cases, and every ratio of every
region is computed from it at the end, so that averages are never averaged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from glioray.cases.labels import LABELS, REGION_LABELS
from glioray.config import REGIONS

NUM_LABELS = len(LABELS)
Counts = NDArray[np.int64]


def confusion(truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> Counts:
    """Count voxels by true label (rows) and predicted label (columns) of two masks of equal shape: (5, 5)."""
    if truth.shape != prediction.shape:
        raise ValueError(
            f"truth is {truth.shape} but prediction is {prediction.shape}; expected equal shapes"
        )
    joint = truth.ravel().astype(np.uint8) * np.uint8(NUM_LABELS) + prediction.ravel()
    return np.bincount(joint, minlength=NUM_LABELS**2).reshape(NUM_LABELS, NUM_LABELS)


def reported_regions(
    tables: Iterable[Counts], known: Collection[str] = REGIONS
) -> dict[str, tuple[int, ...]]:
    """List the regions to report for these cases, with their labels: WT, TC, ET and the single labels.

    The resection cavity is reported only if a truth or a prediction contains it.

    Args:
        tables: of the cases.
        known: what of WT, TC and ET their masks tell (`LabelConvention.regions`). Of masks that do not tell all
            of them nothing else is reported: what such a mask leaves out would score as rightly empty.
    """
    if not set(REGIONS) <= set(known):
        return {name: labels for name, labels in REGION_LABELS.items() if name in known}
    regions = {**REGION_LABELS, "ncr": (1,), "ed": (2,)}
    if any(table[4].sum() + table[:, 4].sum() for table in tables):
        regions["rc"] = (4,)
    return regions


def region_counts(counts: Counts, labels: Iterable[int]) -> tuple[int, int, int, int]:
    """Count true positives, false positives, false negatives and true negatives of a region."""
    inside = np.zeros(NUM_LABELS, bool)
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


def dice_by_region(
    tables: Sequence[Counts], known: Sequence[Collection[str]] | None = None
) -> list[dict[str, float]]:
    """Each case's Dice by region, of the regions that its mask tells.

    Args:
        tables: of the cases.
        known: for each case what of WT, TC and ET its mask tells; everything by default.
    """
    pairs = list(zip(tables, known or [REGIONS] * len(tables), strict=True))
    telling_all = [table for table, regions in pairs if set(REGIONS) <= set(regions)]
    return [
        {
            name: overlap_metrics(table, labels)["dice"]
            for name, labels in reported_regions(telling_all, regions).items()
        }
        for table, regions in pairs
    ]


def mean_dice(tables: Sequence[Counts], known: Sequence[Collection[str]] | None = None) -> dict[str, float]:
    """Compute patient-level Dice: `dice_wt`, `dice_tc`, ... as means over cases, `dice_mean` over WT, TC and ET.

    Args:
        tables: of the cases.
        known: as for `dice_by_region`. A mean is over the cases that know the region; a region that none of
            them knows is left out, of `dice_mean` too.
    """
    cases = dice_by_region(tables, known)
    names = dict.fromkeys(name for case in cases for name in case)
    means = {name: float(np.mean([case[name] for case in cases if name in case])) for name in names}
    overall = float(np.mean([means[name] for name in REGIONS if name in means]))
    return {**{f"dice_{name}": mean for name, mean in means.items()}, "dice_mean": overall}
