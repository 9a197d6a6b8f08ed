"""Slice-level metrics, for comparison with studies that report them; they inflate scores.

Most slices of a case lack most classes, and a class correctly absent from a slice scores 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from glioray.cases.labels import LABELS
from glioray.metrics.overlap import overlap_metrics
from glioray.tasks.segmentation.metrics import confusion

SLICE_METRICS = ("precision", "sensitivity", "specificity", "iou", "dice")

SliceSums = dict[str, dict[str, float]]
"""Class -> sums over slices of each metric, `num_slices`, and `num_with_class` (in truth or prediction).

The classes are the internal labels; background and "wt" of a case whose mask marks the whole tumour only."""

SliceTable = dict[str, dict[str, float]]
"""Class -> means over slices of each metric, and the share of slices that hold it; "mean" over the classes."""


def slice_sums(truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> SliceSums:
    """Sum the metrics of each class over the slices of a case; sums of several cases can be added.

    Args:
        truth: (S, H, W) internal labels.
        prediction: (S, H, W) internal labels.

    Raises:
        ValueError: the shapes differ.
    """
    if truth.shape != prediction.shape:
        raise ValueError(
            f"truth is {truth.shape} but prediction is {prediction.shape}; expected equal shapes"
        )
    tables = [confusion(*pair) for pair in zip(truth, prediction, strict=True)]
    sums: SliceSums = {}
    for label, name in enumerate(LABELS):
        rows = [overlap_metrics(table, (label,)) for table in tables]
        held = [float(table[label].sum() + table[:, label].sum() > 0) for table in tables]
        sums[name] = {
            **{metric: float(sum(row[metric] for row in rows)) for metric in SLICE_METRICS},
            "num_slices": float(len(tables)),
            "num_with_class": float(sum(held)),
        }
    return sums


def slicewise_table(cases: Iterable[SliceSums]) -> SliceTable:
    """Average each class's metrics over all slices of all cases, and over the classes.

    Dice is the F1 score, sensitivity the recall. The resection cavity is a class only if some slice has one.

    Raises:
        ValueError: no slices.
    """
    totals: SliceSums = {}
    for case in cases:
        for name, sums in case.items():
            total = totals.setdefault(name, {})
            for metric, value in sums.items():
                total[metric] = total.get(metric, 0.0) + value
    if not totals.get("background", {}).get("num_slices"):
        raise ValueError("no slices to average; give at least one case")
    table = {
        name: _means(sums) for name, sums in totals.items() if name != "rc" or sums["num_with_class"] > 0
    }
    columns = list(table["background"])
    table["mean"] = {column: float(np.mean([row[column] for row in table.values()])) for column in columns}
    return table


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    metrics = {name: sums[name] / sums["num_slices"] for name in SLICE_METRICS}
    return {**metrics, "share_with_class": sums["num_with_class"] / sums["num_slices"]}
