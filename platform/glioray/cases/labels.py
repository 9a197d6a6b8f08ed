"""Masks: their numbers, and converting them to internal labels and back (see `cases.conventions`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from glioray.cases.conventions import LABELS, REGION_LABELS, STATE_LABELS, LabelConvention
from glioray.config import REGIONS
from glioray.errors import CaseError

__all__ = ["LABELS", "REGION_LABELS", "from_internal", "labels_in", "to_internal"]

_ROUNDING = 1e-3  # masks stored as floats may hold 0.99999997 for 1


def labels_in(mask: np.ndarray, *, case_id: str = "", file: str = "") -> set[int]:
    """The set of numbers in a mask.

    Raises:
        CaseError: a value is NaN or not a whole number, or there are more than 16 different values.
    """
    numbers = _whole_numbers(mask, case_id, file)
    where, foreground = _foreground(numbers)
    values = np.unique(foreground)
    if values.size > 16:
        found = f"holds {values.size} different values; expected at most 16 labels"
        raise CaseError(case_id, file, found, "check that it is a mask and not an image")
    background = set() if where.all() else {0}
    return {int(value) for value in values} | background


def to_internal(
    mask: np.ndarray, convention: LabelConvention, *, case_id: str = "", file: str = ""
) -> np.ndarray:
    """Convert a mask to internal labels, uint8 of the same shape; 0.99999997 counts as 1.

    Raises:
        CaseError: a number is not whole or not in the convention.
    """
    table = convention.to_internal

    def refuse(number: float) -> CaseError:
        allowed = ", ".join(str(number) for number in sorted(table))
        found = f"holds the label {number:g}; the convention {convention.name} has {allowed}"
        return CaseError(case_id, file, found, f"correct the label, or {STATE_LABELS}")

    return _map_labels(_whole_numbers(mask, case_id, file), table, refuse)


def from_internal(
    mask: np.ndarray, convention: LabelConvention, *, case_id: str = "", file: str = ""
) -> np.ndarray:
    """Convert internal labels to the numbers of a convention, uint8.

    Where several numbers mark one part, the lowest is written. A convention that does not divide the tumour, or the
    core, has one number for all of it; what is outside becomes background.

    Raises:
        CaseError: the convention has no number for a label.
    """
    back: dict[int, int] = {}
    for number, label in sorted(convention.to_internal.items()):
        back.setdefault(label, number)
    if convention.regions != REGIONS:
        whole = back.get(2, 0) if "wt" in convention.regions else 0
        core = back.get(1, whole)
        back = {1: core, 2: whole, 3: core, 4: 0} | back

    def refuse(label: int) -> CaseError:
        found = f"holds {LABELS[label].upper()}, for which the convention {convention.name} has no number"
        fitting = "brats2024" if label == LABELS.index("rc") else "brats-et4"
        return CaseError(case_id, file, found, f"choose another with --labels, such as {fitting}")

    return _map_labels(np.asarray(mask), back, refuse)


def _whole_numbers(mask: np.ndarray, case_id: str, file: str) -> np.ndarray:
    array = np.asarray(mask)
    if array.dtype.kind in "iub":
        return array
    with np.errstate(invalid="ignore"):
        rounded = np.rint(array)
        off = ~(np.abs(array - rounded) <= _ROUNDING)
    if off.any():
        found = f"holds {array[off].flat[0]:g} ({np.count_nonzero(off)} such voxels); expected whole numbers"
        raise CaseError(case_id, file, found, "resample masks by nearest neighbour and export them again")
    return rounded


def _foreground(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(where a mask is not 0, its values there), flat in memory order."""
    flat = array.ravel(order="K")
    where = flat != 0
    return where, flat[where]


def _map_labels(
    array: np.ndarray, table: Mapping[int, int], refuse: Callable[[Any], CaseError]
) -> np.ndarray:
    where, values = _foreground(array)
    numbers = np.unique(values).tolist()
    unknown = sorted(set(numbers) - set(table))
    if unknown:
        raise refuse(unknown[0])
    mapped = np.zeros(values.shape, dtype=np.uint8)
    for number in numbers:
        mapped[values == number] = table[int(number)]
    result = np.zeros_like(array, dtype=np.uint8)
    result.ravel(order="K")[where] = mapped
    return result
