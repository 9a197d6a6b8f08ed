"""Region thresholds fitted on cases, from histograms small enough to gather over ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from glioray.config import REGIONS

NUM_BINS = 128
"""A power of two: every threshold between two bins is a float32 by itself, so that no voxel is counted amiss."""

LOWEST, HIGHEST = 0.1, 0.9

Histogram = NDArray[np.int64]
"""(2, NUM_BINS + 1) voxels of one case by whether they truly are of a region (second row) and by how far up their
probability p lies: bin k holds those with (k - 1) / NUM_BINS < p <= k / NUM_BINS, bin 0 those of 0."""


def region_histogram(probs: NDArray[np.float32], truth: NDArray[np.bool_], num_unseen: int = 0) -> Histogram:
    """Compute the histogram of one region of one case.

    Args:
        probs: (X, Y, Z) in [0, 1].
        truth: (X, Y, Z).
        num_unseen: voxels of the region outside `truth`; they count with probability 0.
    """
    bins = np.ceil(probs * NUM_BINS).astype(np.uint8).ravel()
    of_region = np.bincount(bins[truth.ravel()], minlength=NUM_BINS + 1)
    histogram = np.stack([np.bincount(bins, minlength=NUM_BINS + 1) - of_region, of_region])
    histogram[1, 0] += num_unseen
    return histogram


def fit_threshold(histograms: Sequence[Histogram]) -> float | None:
    """Find the threshold from 0.1 to 0.9 with the best mean Dice over cases; None if no case has the region.

    Ties go to the value nearest 0.5. A case without the region scores 1 or 0, as in `overlap_metrics`. Each region is
    fitted alone: painting inner regions over outer ones and the rules on size are ignored.
    """
    if not histograms:
        return None
    table = np.stack(histograms)
    total = table[:, 1].sum(axis=1, keepdims=True)
    if not total.any():
        return None
    # Voxels above the threshold k / NUM_BINS are in the bins from k + 1 on.
    above = table[:, :, ::-1].cumsum(axis=2)[:, :, ::-1][:, :, 1:]
    true_positives, found = above[:, 1], above.sum(axis=1)
    marked = found + total
    dice = np.where(marked > 0, 2 * true_positives / np.maximum(marked, 1), 1.0).mean(axis=0)
    thresholds = np.arange(NUM_BINS) / NUM_BINS
    allowed = (thresholds >= LOWEST) & (thresholds <= HIGHEST)
    best = np.flatnonzero(allowed & (dice >= dice[allowed].max() - 1e-12))
    return float(thresholds[best[np.abs(thresholds[best] - 0.5).argmin()]])


def fit_thresholds(
    cases: Sequence[Mapping[str, Histogram]], defaults: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Fit the thresholds of WT, TC and ET, each on the cases whose masks label the region.

    Args:
        cases: histograms by region, per case.
        defaults: thresholds of regions that no case has.
    """
    wt, tc, et = (
        _fitted([case[region] for case in cases if region in case], default)
        for region, default in zip(REGIONS, defaults, strict=True)
    )
    return wt, tc, et


def _fitted(histograms: Sequence[Histogram], default: float) -> float:
    threshold = fit_threshold(histograms)
    return default if threshold is None else threshold
