"""Caveats about a collection that a reader of its metrics should know."""

from __future__ import annotations

import re
from collections.abc import Sequence

from glioray.cases.load import MAX_TUMOUR_SHARE
from glioray.cases.manifest import CaseEntry
from glioray.config import MODALITIES, REGIONS

_UNCORRECTED = re.compile(r"_GlistrBoost\.nii", re.IGNORECASE)


def collection_notes(entries: Sequence[CaseEntry]) -> list[str]:
    """One sentence per caveat; empty for an ordinary BraTS collection."""
    notes = []
    incomplete = [entry for entry in entries if entry.modalities != MODALITIES]
    if incomplete:
        present = " and ".join(sorted({", ".join(entry.modalities) for entry in incomplete}))
        notes.append(f"{_count(incomplete, entries)} fewer than four modalities: {present}")
    without_spacing = [entry for entry in entries if entry.files.layout == "lgg-tif"]
    if without_spacing:
        notes.append(
            f"{_count(without_spacing, entries)} no voxel size: 1 x 1 x 1 mm is assumed, so that 1 mm is one voxel and "
            "1 ml is 1000 voxels"
        )
    partial = [entry for entry in entries if entry.has_mask and entry.files.layout == "lgg-1p19q"]
    if partial:
        notes.append(f"{_count(partial, entries)} a mask of a few slices: only those slices are used")
    whole = [entry for entry in entries if entry.labelled_regions == ("wt",)]
    if whole:
        notes.append(
            f"{_count(whole, entries)} a mask of the whole tumour only: TC and ET are not reported, and count as "
            "absent in training"
        )
    partial_regions = {entry.labelled_regions for entry in entries if entry.has_mask} - {REGIONS, ("wt",)}
    for known in sorted(partial_regions):
        those = [entry for entry in entries if entry.labelled_regions == known]
        notes.append(
            f"{_count(those, entries)} a mask that defines only {' and '.join(known).upper()}: other regions are not reported"
        )
    large = [entry for entry in entries if entry.tumour_voxels > MAX_TUMOUR_SHARE * entry.brain_voxels]
    if large:
        notes.append(
            f"{_count(large, entries)} a tumour of more than {100 * MAX_TUMOUR_SHARE:.0f} % of the brain, {large[0].case_id} "
            "the first: make sure that their masks are not of the brain"
        )
    automatic = [entry for entry in entries if _UNCORRECTED.search(entry.files.mask or "")]
    if automatic:
        notes.append(
            f"{_count(automatic, entries)} a mask made by the program GlistrBoost and corrected by nobody: models "
            "learn, and are measured against, that program's output"
        )
    return notes


def _count(some: Sequence[CaseEntry], entries: Sequence[CaseEntry]) -> str:
    verb = "has" if len(some) == 1 else "have"
    return f"{len(some)} of {len(entries)} cases {verb}"
