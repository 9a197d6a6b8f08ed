"""The public collections: how their cases are named, and which numbers their masks have.

A convention is found by the collection that a case's names tell, by its layout, and by the numbers in all masks of
its collection. Where these leave several conventions, nothing is assumed: the user is asked.

Sources: the pages of the BraTS challenges 2017 to 2025, and real masks of each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from glioray.cases.casefiles import CaseFiles
from glioray.cases.conventions import CONVENTIONS, STATE_LABELS, LabelConvention, find_convention
from glioray.errors import CaseError, UsageError


@dataclass(frozen=True)
class Collection:
    """A public collection.

    Attributes:
        name: of the collection.
        pattern: matches somewhere in the id of a case, or else in the names of its files and folders.
        conventions: that its masks follow, the usual one first.
        is_mixed: whether copies of it mix these conventions, so that each mask is read by its own numbers.
        layouts: in which the names are those of this collection.
    """

    name: str
    pattern: str
    conventions: tuple[str, ...]
    is_mixed: bool = False
    layouts: tuple[str, ...] = ("brats2021", "brats2023")


COLLECTIONS = (
    Collection("BraTS-PED", r"BraTS-PED-\d", ("brats-ped",)),
    Collection("BraTS-MEN-RT", r"BraTS-MEN-RT-\d", ("brats-gtv",)),
    Collection("BraTS-MEN", r"BraTS-MEN-\d", ("brats-et3",)),
    # A cavity since 2025.
    Collection("BraTS-MET", r"BraTS-MET-\d", ("brats-et3", "brats2024")),
    Collection("BraTS-SSA", r"BraTS-SSA-\d", ("brats-et3",)),
    Collection("BraTS-GLI after treatment", r"BraTS-GLI-\d+-[1-9]\d\d(?!\d)", ("brats2024",)),
    Collection("BraTS-GLI", r"BraTS-GLI-\d", ("brats-et3",), is_mixed=True),
    Collection(
        "BraTS 2017 to 2021",
        r"BraTS(?:1\d|20|201\d|202[01])[-_]|TCGA[-_]|(?<![^/\n])[HL]GG/",
        ("brats-et4", "brats-et3"),
        is_mixed=True,
    ),
    Collection("Decathlon Task01", r"BRATS_\d", ("msd",), layouts=("msd",)),
)
"""The first that matches counts."""

_PATTERNS = [
    (re.compile(rf"(?<![A-Za-z0-9])(?:{collection.pattern})", re.IGNORECASE), collection)
    for collection in COLLECTIONS
]


def collection_of(files: CaseFiles) -> Collection | None:
    """The collection that a case's names tell, or None."""
    for text in (files.case_id, "\n".join(files.keys())):
        for pattern, collection in _PATTERNS:
            if files.layout in collection.layouts and pattern.search(text):
                return collection
    return None


def group_of(files: CaseFiles) -> str:
    """Name of the group of cases whose masks' numbers are looked at together."""
    collection = collection_of(files)
    return collection.name if collection else files.layout


@dataclass(frozen=True)
class Reading:
    """How a mask can be read.

    Attributes:
        numbers: that decide, in order.
        candidates: the conventions that fit; not empty. The first has a number for each label that it reads.
        is_decided: whether the first is its convention. If not, the user must state one.
    """

    numbers: tuple[int, ...]
    candidates: tuple[LabelConvention, ...]
    is_decided: bool

    def __str__(self) -> str:
        """The numbers of an undecided mask, and the conventions that fit."""
        *others, last = map(str, self.candidates)
        fitting = f"{', '.join(others)} and {last}" if others else last
        return f"the labels {', '.join(map(str, self.numbers)) or '0'}, which fit {fitting}"

    def as_error(self, files: CaseFiles) -> CaseError:
        """The question for the convention of a case's mask."""
        return CaseError(files.case_id, files.mask or "", f"holds {self}", STATE_LABELS)


def read_numbers(
    numbers: AbstractSet[int], files: CaseFiles, group_numbers: AbstractSet[int] = frozenset()
) -> Reading:
    """How the numbers of a mask can be read.

    Args:
        numbers: in the mask.
        files: of the case.
        group_numbers: in the masks of all cases with the same `group_of`, if known.
    """
    own, together = set(numbers) - {0}, (set(numbers) | set(group_numbers)) - {0}
    collection = collection_of(files)
    usual = _usual(files, collection, own, together)
    if together == {1} and (usual is None or usual.name != "brats-gtv"):
        # The whole tumour or its core, or else one part that is alone in every case.
        fitting = [find_convention("wt"), find_convention("brats-gtv"), *([usual] if usual else [])]
        return Reading((1,), tuple(fitting), is_decided=False)
    if usual is not None:
        return Reading(tuple(sorted(own)), (usual,), is_decided=True)
    decisive = own if collection is not None and collection.is_mixed else together
    for wanted in (decisive, own):
        if fitting := _fitting(wanted, is_named=collection is not None):
            return Reading(tuple(sorted(wanted)), tuple(fitting), is_decided=False)
    # No convention has these numbers, which converting the mask says.
    names = collection.conventions if collection is not None else _BY_LAYOUT.get(files.layout, ("brats-et3",))
    return Reading(tuple(sorted(own)), (find_convention(names[0]),), is_decided=True)


def detect_convention(
    numbers: AbstractSet[int], files: CaseFiles, group_numbers: AbstractSet[int] = frozenset()
) -> LabelConvention:
    """The convention of a mask, of which nothing is stated; arguments as of `read_numbers`.

    Without numbers, the convention that masks of such a case usually have.

    Raises:
        CaseError: several conventions fit.
    """
    reading = read_numbers(numbers, files, group_numbers)
    if not reading.is_decided:
        raise reading.as_error(files)
    return reading.candidates[0]


def decide_conventions(masks: Sequence[tuple[CaseFiles, AbstractSet[int]]]) -> dict[str, LabelConvention]:
    """The convention of each mask, by case id, from the numbers that all masks hold.

    Args:
        masks: of which nothing is stated: the files of each case, and the numbers in its mask.

    Raises:
        UsageError: several conventions fit.
    """
    together: dict[str, set[int]] = {}
    for files, numbers in masks:
        together.setdefault(group_of(files), set()).update(numbers)
    readings = {
        files.case_id: read_numbers(numbers, files, together[group_of(files)]) for files, numbers in masks
    }
    undecided = [case_id for case_id, reading in readings.items() if not reading.is_decided]
    if undecided:
        raise UsageError(
            f"{len(undecided)} of {len(masks)} masks, that of {undecided[0]} the first, hold {readings[undecided[0]]}; "
            f"{STATE_LABELS}"
        )
    return {case_id: reading.candidates[0] for case_id, reading in readings.items()}


def _usual(
    files: CaseFiles, collection: Collection | None, own: AbstractSet[int], together: AbstractSet[int]
) -> LabelConvention | None:
    """The convention that names, layout and numbers decide together, or None."""
    if collection is None:
        # 1 and 2 mean the same in every adult collection. A 4 without a 1 is as usual for a cavity as for ET.
        named = _BY_LAYOUT.get(files.layout, ())
        if 4 in together:
            named = tuple(
                name for name in named if name == "brats-et4" and 1 in together and 3 not in together
            )
        tried = [own | (together & {3, 4})]
    else:
        named = collection.conventions
        tried = [together, own] if collection.is_mixed else [together]
    for wanted in tried:
        for name in named:
            if wanted <= set(CONVENTIONS[name].parts):
                return CONVENTIONS[name]
    return None


_BY_LAYOUT = {"brats2021": ("brats-et4", "brats-et3"), "brats2023": ("brats-et3",)}
"""The conventions of cases of no known collection, by the years that name files in this way."""


def _fitting(numbers: AbstractSet[int], *, is_named: bool) -> list[LabelConvention]:
    """The conventions that have all these numbers, one for each way to read them."""
    readings: dict[tuple[str, ...], LabelConvention] = {}
    for convention in CONVENTIONS.values():
        if numbers <= set(convention.parts) and not (is_named and convention.name == "brats-ped"):
            readings.setdefault(tuple(convention.parts[number] for number in sorted(numbers)), convention)
    return list(readings.values())
