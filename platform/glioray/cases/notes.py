"""Caveats about a collection that a reader of its metrics should know."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from glioray.cases.load import MAX_TUMOUR_SHARE
from glioray.config import MODALITIES, REGIONS

if TYPE_CHECKING:
    from glioray.cases.manifest import CaseEntry

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
    noted = [entry for entry in entries if entry.notes]
    if noted:
        notes.append(f"{_count(noted, entries)} files to look at: {_listed([e.notes[0] for e in noted])}")
    same = _same_images(entries)
    if same:
        verb = "shows" if len(same) == 1 else "show"
        notes.append(
            f"{len(same)} of {len(entries)} cases {verb} the images of another case, and the two are one patient in "
            f"splits and intervals: {_listed(same)}"
        )
    return notes


def _same_images(entries: Sequence[CaseEntry]) -> list[str]:
    """Each case that shares an image with an earlier one of its patient: what is the same, and if the masks differ."""
    owners: dict[tuple[str, str], CaseEntry] = {}
    found = []
    for entry in entries:
        keys = [(entry.patient_id, digest) for digest in sorted(entry.image_digests)]
        twin = next((owners[key] for key in keys if key in owners), None)
        for key in keys:
            owners.setdefault(key, entry)
        if twin is None:
            continue
        shared = [m for m in entry.modalities if entry.digests[m] in twin.image_digests]
        alone = "" if len(shared) == len(entry.modalities) else f" in {', '.join(shared)}"
        masks = [one.digests.get("mask") for one in (twin, entry)]
        differ = "; their masks differ" if not alone and None not in masks and len(set(masks)) == 2 else ""
        found.append(f"{entry.case_id} is {twin.case_id}{alone}{differ}")
    return found


def _listed(texts: Sequence[str], most: int = 5) -> str:
    more = f"; and {len(texts) - most} more" if len(texts) > most else ""
    return f"{'; '.join(texts[:most])}{more}"


def _count(some: Sequence[CaseEntry], entries: Sequence[CaseEntry]) -> str:
    verb = "has" if len(some) == 1 else "have"
    return f"{len(some)} of {len(entries)} cases {verb}"
