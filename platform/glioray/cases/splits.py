"""Reproducible splits into training, validation and test, by patient.

scikit-learn's splitters depend on the order of the input and on NumPy's generator; these depend on the ids alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

from glioray.errors import UsageError

SPLITS = ("train", "val", "test")


def split_patients(
    patient_ids: Iterable[str], ratios: tuple[float, float, float], *, seed: int = 0, shuffle: bool = False
) -> dict[str, tuple[str, ...]]:
    """The patients of "train", "val" and "test", each sorted by id.

    Args:
        patient_ids: duplicates count once.
        ratios: fractions of patients in the three splits, which add up to 1. A fraction above 0 gets at
            least one patient if there are enough, training first.
        seed: of the shuffle.
        shuffle: False fills the splits in the order of the ids (ten patients at .8/.2/0: the first eight
            train, the last two validate); True in the order of a seeded hash of each id.

    Raises:
        UsageError: ratios are negative or do not add up to 1.
    """
    if min(ratios) < 0 or not math.isclose(sum(ratios), 1.0, abs_tol=1e-6):
        raise UsageError(
            f"the split ratios are {ratios}; expected three numbers of at least 0 that add up to 1"
        )
    patients = _order_by_hash(patient_ids, seed) if shuffle else sorted(set(patient_ids))
    result, start = {}, 0
    for name, count in zip(SPLITS, _sizes(len(patients), ratios), strict=True):
        result[name] = tuple(sorted(patients[start : start + count]))
        start += count
    return result


def fold_patients(
    patient_ids: Iterable[str], num_folds: int, *, seed: int = 0
) -> tuple[tuple[str, ...], ...]:
    """Folds for cross-validation, each sorted by id; every patient is in exactly one fold.

    If there are fewer patients than `num_folds`, there are as many folds as patients.

    Raises:
        UsageError: fewer than two folds.
    """
    if num_folds < 2:
        raise UsageError(f"num_folds is {num_folds}; expected at least 2")
    patients = _order_by_hash(patient_ids, seed)
    num_folds = min(num_folds, len(patients))
    return tuple(tuple(sorted(patients[fold::num_folds])) for fold in range(num_folds))


def _order_by_hash(patient_ids: Iterable[str], seed: int) -> list[str]:
    """The ids in an order that depends only on each id and the seed."""
    return sorted(set(patient_ids), key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())


def _sizes(total: int, ratios: tuple[float, float, float]) -> list[int]:
    ends = [math.floor(total * share + 0.5) for share in (ratios[0], ratios[0] + ratios[1], sum(ratios))]
    sizes = [ends[0], ends[1] - ends[0], total - ends[1]]
    for index, ratio in enumerate(ratios):
        if ratio > 0 and sizes[index] == 0 and max(sizes) > 1:
            sizes[sizes.index(max(sizes))] -= 1
            sizes[index] += 1
    return sizes
