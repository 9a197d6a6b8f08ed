"""Label conventions of the public collections, and their mapping to internal labels.

Internal labels: 0 background, 1 necrotic core (NCR), 2 oedema (ED), 3 enhancing tumour (ET), 4 resection
cavity (RC). A 4 in a file means ET in BraTS 2017 to 2021 but RC in BraTS 2024, so the convention is
detected once per data set and then read from its manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from glioray.config import REGIONS
from glioray.errors import CaseError

LABELS = ("background", "ncr", "ed", "et", "rc")
"""The names of the internal labels; the index is the label."""

REGION_LABELS: dict[str, tuple[int, ...]] = {"wt": (1, 2, 3), "tc": (1, 3), "et": (3,)}
"""The internal labels in each of the nested regions of BraTS; RC is in none."""

_ROUNDING = 1e-3  # masks stored as floats may hold 0.99999997 for 1


@dataclass(frozen=True)
class LabelConvention:
    """The label numbers of a collection.

    Attributes:
        name: in the manifest.
        to_internal: number in the file -> internal label.
        regions: the regions that its masks define. A mask of the whole tumour only is stored as oedema, so
            that WT is right; TC and ET are not reported, and a model learns to predict them as empty.
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
(and output of nnU-Net's BraTS converter); whole tumour only, as 1 (LGG-1p19qDeletion) or as 255 (tif slices)."""


def detect_convention(
    labels_seen: AbstractSet[int], layout: str, collection_labels: AbstractSet[int] = frozenset()
) -> LabelConvention:
    """The convention of a mask.

    A mask with neither 3 nor 4 gets the convention of the rest of its collection, or else its layout's usual
    one; 1 and 2 mean the same in every BraTS.

    Args:
        labels_seen: the numbers in the mask.
        layout: of the case, as in `CaseFiles`.
        collection_labels: the numbers in all masks of the data set, if known.
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
    return _map_labels(
        _whole_numbers(mask, case_id, file), convention.to_internal, convention.name, case_id, file
    )


def from_internal(
    mask: np.ndarray, convention: LabelConvention, *, case_id: str = "", file: str = ""
) -> np.ndarray:
    """Convert internal labels to the numbers of a convention, uint8.

    A convention of the whole tumour only has one number for all tumour labels; a cavity becomes background.

    Raises:
        CaseError: the convention has no number for a label.
    """
    back = {internal: number for number, internal in convention.to_internal.items()}
    if convention.regions == ("wt",):
        back |= dict.fromkeys(REGION_LABELS["wt"], back[2]) | {4: 0}
    return _map_labels(np.asarray(mask), back, convention.name, case_id, file)


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
    array: np.ndarray, table: Mapping[int, int], name: str, case_id: str, file: str
) -> np.ndarray:
    where, values = _foreground(array)
    numbers = np.unique(values).tolist()
    unknown = sorted(set(numbers) - set(table))
    if unknown:
        allowed = ", ".join(str(number) for number in sorted(table))
        found = f"holds the label {unknown[0]:g}; the convention {name} has {allowed}"
        raise CaseError(case_id, file, found, "correct the label, or set the convention of the data set")
    mapped = np.zeros(values.shape, dtype=np.uint8)
    for number in numbers:
        mapped[values == number] = table[int(number)]
    result = np.zeros_like(array, dtype=np.uint8)
    result.ravel(order="K")[where] = mapped
    return result
