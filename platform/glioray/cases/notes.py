"""What one should know of a collection before one reads figures of it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from glioray.cases.manifest import CaseEntry
from glioray.config import MODALITIES, REGIONS

_UNCORRECTED = re.compile(r"_GlistrBoost\.nii", re.IGNORECASE)


def collection_notes(entries: Sequence[CaseEntry]) -> list[str]:
    """A sentence for each thing that these cases' files do not tell; none of an ordinary BraTS collection."""
    notes = []
    lacking = [entry for entry in entries if entry.modalities != MODALITIES]
    if lacking:
        there = " and ".join(sorted({", ".join(entry.modalities) for entry in lacking}))
        notes.append(f"{_cases(lacking, entries)} fewer than four modalities: {there}")
    unplaced = [entry for entry in entries if entry.files.layout == "lgg-tif"]
    if unplaced:
        notes.append(
            f"{_cases(unplaced, entries)} no voxel size: 1 x 1 x 1 mm is assumed, so that mm are voxels and ml "
            "thousands of voxels"
        )
    partial = [entry for entry in entries if entry.has_mask and entry.files.layout == "lgg-1p19q"]
    if partial:
        notes.append(
            f"{_cases(partial, entries)} a mask of a few slices: nothing else of them is used with it"
        )
    whole = [entry for entry in entries if entry.has_mask and entry.labelled_regions != REGIONS]
    if whole:
        notes.append(
            f"{_cases(whole, entries)} a mask of the whole tumour alone: TC and ET are not reported of them, and in "
            "training count as absent"
        )
    automatic = [entry for entry in entries if _UNCORRECTED.search(entry.files.mask or "")]
    if automatic:
        notes.append(
            f"{_cases(automatic, entries)} a mask by the program GlistrBoost that nobody corrected: what is learned from "
            "and judged by it is that program's view"
        )
    return notes


def _cases(some: Sequence[CaseEntry], entries: Sequence[CaseEntry]) -> str:
    verb = "has" if len(some) == 1 else "have"
    return f"{len(some)} of {len(entries)} cases {verb}"
