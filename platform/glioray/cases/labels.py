"""Label conventions of the public collections, mapped to one internal scheme.

Internal: 0 background, 1 necrotic core (NCR), 2 oedema (ED), 3 enhancing tumour (ET), 4 resection
cavity (RC). A 4 in a file means ET in BraTS 2017 to 2021 and RC in BraTS 2024, so that a convention
is detected for a data set, stated in its manifest, and used from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from glioray.config import REGIONS
from glioray.errors import CaseError

LABELS = ("background", "ncr", "ed", "et", "rc")
"""The internal labels' names, by number."""

REGION_LABELS: dict[str, tuple[int, ...]] = {"wt": (1, 2, 3), "tc": (1, 3), "et": (3,)}
"""The internal labels that make up each of the nested regions of BraTS; RC is in none."""

_ROUNDING = 1e-3  # Masks stored as floats hold 0.99999997 for 1.


@dataclass(frozen=True)
class LabelConvention:
    """How a collection writes its labels.

    Attributes:
        name: as the manifest states it.
        to_internal: number in the file -> internal label.
        regions: what a mask in it tells. One that knows the whole tumour alone is held as oedema, so that
            WT is right; nothing is reported of TC and ET, and a model's outputs for them learn "empty".
    """

    name: str
    to_internal: Mapping[int, int]
    regions: tuple[str, ...] = REGIONS


CONVENTIONS: dict[str, LabelConvention] = {
    convention.name: convention
    for convention in (
        LabelConvention("brats-et4", {0: 0, 1: 1, 2: 2, 4: 3}),
        LabelConvention("brats-et3", {0: 0, 1: 1, 2: 2, 3: 3}),
        LabelConvention("brats2024", {0: 0, 1: 1, 2: 2, 3: 3, 4: 4}),
        LabelConvention("msd", {0: 0, 1: 2, 2: 1, 3: 3}),
        LabelConvention("wt", {0: 0, 1: 2}, ("wt",)),
        LabelConvention("wt-255", {0: 0, 255: 2}, ("wt",)),
    )
}
"""BraTS 2017 to 2021; BraTS 2023 and re-labelled copies; BraTS 2024; Medical Segmentation Decathlon Task01
(and data that nnU-Net's BraTS converter wrote); whole tumour alone, as 1 (LGG-1p19qDeletion) or as 255 (tif slices)."""


def detect_convention(
    labels_seen: AbstractSet[int], layout: str, collection_labels: AbstractSet[int] = frozenset()
) -> LabelConvention:
    """The convention of a mask.

    Args:
        labels_seen: the numbers in the mask.
        layout: of the case, as `layouts.discover_cases` names it.
        collection_labels: the numbers seen anywhere in the data set, where that is known.

    A mask with neither 3 nor 4 takes what the rest of its collection says, or its layout's usual one;
    1 and 2 mean the same in all of BraTS.
    """
    if layout == "msd":
        return CONVENTIONS["msd"]
    seen = set(labels_seen) & {3, 4}
    collection = set(collection_labels) & {3, 4} | seen
    if seen == {3, 4} or (layout == "brats2023" and collection == {3, 4}):
        return CONVENTIONS["brats2024"]
    if not seen and len(collection) == 1:
        seen = collection
    if not seen:
        seen = {4} if layout == "brats2021" else {3}
    return CONVENTIONS["brats-et4" if seen == {4} else "brats-et3"]


def labels_in(mask: np.ndarray, *, case_id: str = "", file: str = "") -> set[int]:
    """The numbers in a mask.

    Raises:
        CaseError: values that are not whole numbers, NaN included, or more than 16 different ones.
    """
    numbers = _whole_numbers(mask, case_id, file)
    where, foreground = _foreground(numbers)
    values = np.unique(foreground)
    if values.size > 16:
        found = f"holds {values.size} different values; expected the few labels of a mask"
        raise CaseError(case_id, file, found, "check that it is a mask and not an image")
    background = set() if where.all() else {0}
    return {int(value) for value in values} | background


def to_internal(
    mask: np.ndarray, convention: LabelConvention, *, case_id: str = "", file: str = ""
) -> np.ndarray:
    """The mask in internal labels, uint8, of the same shape; 0.99999997 counts as 1.

    Raises:
        CaseError: a number that the convention does not know, or that is not whole.
    """
    return _mapped(
        _whole_numbers(mask, case_id, file), convention.to_internal, convention.name, case_id, file
    )


def from_internal(
    mask: np.ndarray, convention: LabelConvention, *, case_id: str = "", file: str = ""
) -> np.ndarray:
    """The mask in the convention's own numbers, uint8.

    A convention that knows the whole tumour alone has one number for all its labels, and none for a cavity.

    Raises:
        CaseError: a label for which the convention has no number.
    """
    back = {internal: number for number, internal in convention.to_internal.items()}
    if convention.regions == ("wt",):
        back |= dict.fromkeys(REGION_LABELS["wt"], back[2]) | {4: 0}
    return _mapped(np.asarray(mask), back, convention.name, case_id, file)


def _whole_numbers(mask: np.ndarray, case_id: str, file: str) -> np.ndarray:
    array = np.asarray(mask)
    if array.dtype.kind in "iub":
        return array
    with np.errstate(invalid="ignore"):
        rounded = np.rint(array)
        off = ~(np.abs(array - rounded) <= _ROUNDING)
    if off.any():
        found = f"holds {array[off].flat[0]:g} where labels are whole numbers ({np.count_nonzero(off)} such voxels)"
        raise CaseError(case_id, file, found, "resample masks with nearest neighbour, and export them again")
    return rounded


def _foreground(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a mask is not 0 and what it holds there, in the order of memory; most of a mask is background."""
    flat = array.ravel(order="K")
    where = flat != 0
    return where, flat[where]


def _mapped(array: np.ndarray, table: Mapping[int, int], name: str, case_id: str, file: str) -> np.ndarray:
    where, values = _foreground(array)
    numbers = np.unique(values).tolist()
    unknown = sorted(set(numbers) - set(table))
    if unknown:
        known = ", ".join(str(number) for number in sorted(table))
        found = f"holds the label {unknown[0]:g}; the convention {name} has {known}"
        raise CaseError(case_id, file, found, "correct the label or state the data set's convention")
    mapped = np.zeros(values.shape, dtype=np.uint8)
    for number in numbers:
        mapped[values == number] = table[int(number)]
    result = np.zeros_like(array, dtype=np.uint8)
    result.ravel(order="K")[where] = mapped
    return result
