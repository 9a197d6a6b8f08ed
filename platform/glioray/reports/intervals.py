"""Confidence intervals of means, by resampling patients."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

_DRAWS_AT_ONCE = 500

FEW_PATIENTS = 10
"""With fewer patients than this, bootstrap intervals are too narrow: if two patients agree, every resample does."""


def bootstrap_interval(
    values: Sequence[float],
    patients: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """(low, high) of the mean of `values`: percentiles of its means over resampled patients.

    Patients are drawn with replacement, each with all of their cases, since cases of one patient are not independent
    evidence. Pass the differences of two models on the same cases for the interval of the paired difference. With
    fewer than `FEW_PATIENTS` patients the interval is too narrow; treat it as a hint.

    Args:
        values: one a case.
        patients: the patient of each case; by default each case is of a patient of its own.
        level: of confidence, in (0, 1).
        num_resamples: number of resampled means.
        seed: of the resampling.

    Raises:
        ValueError: fewer than two patients, a non-finite value, different lengths, or a level outside (0, 1).

    Reference: Efron 1979 (doi 10.1214/aos/1176344552); Field and Welsh 2007 (doi
    10.1111/j.1467-9868.2007.00593.x) on resampling whole clusters.
    """
    array = np.asarray(values, np.float64)
    owners = list(range(len(array))) if patients is None else list(patients)
    if len(owners) != len(array):
        raise ValueError(
            f"{len(array)} values but {len(owners)} patients; expected one patient for each value"
        )
    if not np.isfinite(array).all():
        raise ValueError("a value is not finite; leave it out or replace it before computing an interval")
    if not 0 < level < 1:
        raise ValueError(f"level is {level:g}; expected a value between 0 and 1, such as 0.95")
    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(owner, len(numbers)) for owner in owners]
    if len(numbers) < 2:
        raise ValueError(f"an interval needs at least 2 patients, found {len(numbers)}")
    sums = np.bincount(index, weights=array)
    counts = np.bincount(index)
    rng = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    # In chunks: the table of draws is as large as resamples times patients.
    for start in range(0, num_resamples, _DRAWS_AT_ONCE):
        size = min(_DRAWS_AT_ONCE, num_resamples - start)
        drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=size)
        means[start : start + size] = (drawn @ sums) / (drawn @ counts)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
