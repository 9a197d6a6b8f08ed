"""The regions' thresholds that do best on some cases, from histograms that are small enough to gather."""

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
    """The histogram of one region of one case.

    Args:
        probs: (X, Y, Z) in [0, 1].
        truth: (X, Y, Z).
        num_unseen: voxels of the region that are not in `truth`; they count as of probability 0.
    """
    bins = np.ceil(probs * NUM_BINS).astype(np.uint8).ravel()
    of_region = np.bincount(bins[truth.ravel()], minlength=NUM_BINS + 1)
    histogram = np.stack([np.bincount(bins, minlength=NUM_BINS + 1) - of_region, of_region])
    histogram[1, 0] += num_unseen
    return histogram


def fit_threshold(histograms: Sequence[Histogram]) -> float | None:
    """The threshold from 0.1 to 0.9 with the best mean Dice over cases; None where no case holds the region.

    Ties go to the one nearest 0.5. A case without the region scores 1 or 0, as in `overlap_metrics`. Each region
    is fitted by itself: that an inner region is painted over the outer ones, and the rules of size, are left out.
    """
    if not histograms:
        return None
    table = np.stack(histograms)
    total = table[:, 1].sum(axis=1, keepdims=True)
    if not total.any():
        return None
    # Voxels above the threshold k / NUM_BINS are those of the bins from k + 1 on.
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
    """The thresholds of WT, TC and ET, each fitted on the cases whose masks tell the region.

    Args:
        cases: for each its histograms by region.
        defaults: what a region that no case holds keeps.
    """
    wt, tc, et = (
        _fitted([case[region] for case in cases if region in case], default)
        for region, default in zip(REGIONS, defaults, strict=True)
    )
    return wt, tc, et


def _fitted(histograms: Sequence[Histogram], default: float) -> float:
    threshold = fit_threshold(histograms)
    return default if threshold is None else threshold
