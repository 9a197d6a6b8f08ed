"""Label conventions of the public collections: the numbers in their masks, and what each marks.

Internal labels: 0 background, 1 necrotic core (NCR), 2 oedema (ED), 3 enhancing tumour (ET), 4 resection
cavity (RC). The numbers in files differ: a 4 means ET in BraTS 2017 to 2021, RC in BraTS 2024 and oedema in
BraTS-PED. `cases.collections` finds the convention of a collection. Imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from glioray.config import REGIONS
from glioray.errors import UsageError

LABELS = ("background", "ncr", "ed", "et", "rc")
"""The names of the internal labels; the index is the label."""

REGION_LABELS: dict[str, tuple[int, ...]] = {"wt": (1, 2, 3), "tc": (1, 3), "et": (3,)}
"""The internal labels in each of the nested regions of BraTS; RC is in none."""

_STORED_AS = {name: label for label, name in enumerate(LABELS)} | {"wt": 2, "tc": 1}
"""Part of a tumour -> internal label. A whole tumour that is not divided is stored as ED, so that WT is right; a core
that is not divided as NCR, so that WT and TC are."""

STATE_LABELS = "state the convention with --labels NAME (labels= in the library)"
"""Advice in messages about masks that can be read in several ways."""

_STATED = re.compile(r"\d+=[a-z]+(?:,\d+=[a-z]+)*")


@dataclass(frozen=True)
class LabelConvention:
    """The label numbers of a collection.

    Attributes:
        name: in the manifest.
        parts: number in the file, other than 0 -> what it marks: ncr, ed, et or rc, or, where the mask does not
            divide them, tc (the core: NCR and ET) or wt (the whole tumour). Several numbers may mark the same.
    """

    name: str
    parts: Mapping[int, str]

    @property
    def to_internal(self) -> dict[int, int]:
        """Number in the file -> internal label."""
        return {0: 0} | {number: _STORED_AS[part] for number, part in self.parts.items()}

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions of WT, TC and ET that masks define; the others are not reported."""
        parts = set(self.parts.values())
        defined = {"et": "et" in parts, "tc": "tc" in parts or {"ncr", "et"} <= parts}
        defined["wt"] = "wt" in parts or ("ed" in parts and defined["tc"])
        return tuple(name for name in REGIONS if defined[name])

    def __str__(self) -> str:
        """Such as "brats-et4 (1 NCR, 2 ED, 4 ET)"."""
        return f"{self.name} ({', '.join(f'{n} {part.upper()}' for n, part in sorted(self.parts.items()))})"


CONVENTIONS: dict[str, LabelConvention] = {
    convention.name: convention
    for convention in (
        LabelConvention("brats-et4", {1: "ncr", 2: "ed", 4: "et"}),
        LabelConvention("brats-et3", {1: "ncr", 2: "ed", 3: "et"}),
        LabelConvention("brats2024", {1: "ncr", 2: "ed", 3: "et", 4: "rc"}),
        LabelConvention("brats-ped", {1: "et", 2: "ncr", 3: "ncr", 4: "ed"}),
        LabelConvention("brats-gtv", {1: "tc"}),
        LabelConvention("msd", {1: "ed", 2: "ncr", 3: "et"}),
        LabelConvention("wt", {1: "wt"}),
        LabelConvention("wt-255", {255: "wt"}),
    )
}
"""BraTS 2017 to 2021; BraTS 2023 (GLI, MEN, MET, SSA) and re-labelled copies; BraTS 2024 and 2025 after treatment;
BraTS-PED, whose non-enhancing tumour (2) and cyst (3) both belong to the core that does not enhance; BraTS-MEN-RT, whose
gross tumour volume is the core without oedema; Medical Segmentation Decathlon Task01 (and output of nnU-Net's BraTS
converter); whole tumour only, as 1 (LGG-1p19qDeletion) or as 255 (tif slices)."""


EXPECTED_LABELS = (
    f"one of {', '.join(CONVENTIONS)}, or what each number marks, such as 1=ed,2=et,3=ncr (of ncr, ed, et, rc, tc, wt; "
    "each number once, with a tumour among them)"
)


def find_convention(name: str) -> LabelConvention:
    """The convention of a name, or of numbers and parts such as "1=ed,2=et,3=ncr".

    Raises:
        UsageError: neither, or parts that define no region.
    """
    if name in CONVENTIONS:
        return CONVENTIONS[name]
    if _STATED.fullmatch(name):
        pairs = [item.split("=") for item in name.split(",")]
        parts = {int(number): part for number, part in pairs}
        if (
            len(parts) == len(pairs)
            and min(parts) > 0
            and max(parts) < 256
            and set(parts.values()) <= set(_STORED_AS)
        ):
            convention = make_convention(parts)
            if convention.regions:
                return convention
    raise UsageError(f"labels is '{name[:40]}'; expected {EXPECTED_LABELS}")


def make_convention(parts: Mapping[int, str]) -> LabelConvention:
    """The convention with these parts: one of `CONVENTIONS`, or else one that is named after its parts."""
    for convention in CONVENTIONS.values():
        if convention.parts == parts:
            return convention
    ordered = dict(sorted(parts.items()))
    return LabelConvention(",".join(f"{number}={part}" for number, part in ordered.items()), ordered)
