"""A whole case before it is sliced: without its skull, without the coil's field, on voxels of one size."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from glioray.cases.load import Case, brain_mask
from glioray.config import PreprocessConfig
from glioray.errors import CaseError
from glioray.slices.enhance import bias_field, brain_of_head

MAX_VOXELS = 512**3
"""Of a resampled volume; as many as a file may have."""

_MAX_NEGATIVE = 0.01


def prepare_volume(case: Case, config: PreprocessConfig) -> Case:
    """The case with the modalities that are asked for, stripped, corrected and resampled, as far as they are.

    In this order: the choice of modalities, skull stripping (found on T1 where that is fed, or else on the first
    one, and applied to all; the mask stays as it is), N4 inside the brain, resampling (images linearly, the mask by
    the nearest voxel). Whatever is changed has a background of 0. Where there is nothing to do, it is the very same
    case. Modalities that are not fed change nothing: a served model is sent none of them.

    A resampled case has a whole number of voxels in the box that it had, so `spacing_mm` and `affine` are those
    of its new grid, within half a voxel in the whole box of the spacing asked for. `reference` stays the header
    of the file: its grid is where `probs_on_grid` brings a prediction back to.

    Raises:
        CaseError: a modality is missing, a brain is not found, values are not the scanner's, or the spacing would
            make a volume of more than `MAX_VOXELS`.
        UsageError: a package is not installed.
    """
    case = _pick(case, config.modalities)
    if config.skull_strip:
        case = _strip(case)
    if config.n4:
        case = _correct(case)
    if config.spacing_mm is not None:
        case = _resample_case(case, config.spacing_mm)
    return case


def probs_on_grid(probs: NDArray[np.float32], shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """(C, X, Y, Z) probabilities on a case's own grid, of (C, X', Y', Z') on that of its prepared volume.

    Both grids fill the same box, as `prepare_volume` resamples: their outer edges coincide, not the centres of
    their first voxels. Linear, so that what added up to 1 over the channels still does, within rounding.
    """
    if probs.shape[1:] == shape:
        return probs
    return np.stack([resample(channel, shape) for channel in probs])


def resample(volume: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The volume, (X', Y', Z'), linearly on another grid, (X, Y, Z), that fills the same box; float32.

    Where the new voxels are larger, each is a mean over the old ones around it (a tent of its own width), so
    that fine detail does not alias. Single-threaded throughout: the same bits wherever it runs.
    """
    values = np.asarray(volume, np.float32)
    for axis, length in enumerate(shape):
        if values.shape[axis] != length:
            moved = np.ascontiguousarray(np.moveaxis(values, axis, 0))
            mixed = _tents(len(moved), length) @ moved.reshape(len(moved), -1)
            values = np.moveaxis(mixed.reshape(length, *moved.shape[1:]), 0, axis)
    return values


def resample_labels(labels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The labels, (X', Y', Z'), of the nearest voxel of another grid, (X, Y, Z), that fills the same box."""
    nearest = [
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
        for old, new in zip(labels.shape, shape, strict=True)
    ]
    return labels[np.ix_(*nearest)]


def _strip(case: Case) -> Case:
    number = case.modalities.index("t1") if "t1" in case.modalities else 0
    brain = brain_of_head(case.images[number], case.spacing_mm, case.case_id)
    return replace(case, images=_stacked([np.where(brain, image, 0) for image in case.images]))


def _pick(case: Case, modalities: tuple[str, ...]) -> Case:
    if case.modalities == modalities:
        return case
    missing = [modality for modality in modalities if modality not in case.modalities]
    if missing:
        found = f"has {', '.join(case.modalities)} but no {missing[0]}; expected {', '.join(modalities)}"
        raise CaseError(case.case_id, "", found, "set preprocess.modalities or leave the case out")
    images = _stacked([case.images[case.modalities.index(modality)] for modality in modalities])
    return replace(case, images=images, modalities=modalities)


def _correct(case: Case) -> Case:
    brain = brain_mask(case.images)
    num_brain = int(np.count_nonzero(brain))
    for modality, image in zip(case.modalities, case.images, strict=True):
        share = np.count_nonzero(image[brain] < 0) / max(num_brain, 1)
        # N4 passes over a few, as resampling leaves behind; z-scores are negative by half.
        if share > _MAX_NEGATIVE:
            found = f"{100 * share:.0f} % of the brain in {modality} are negative; N4 wants a scanner's own values"
            advice = "set preprocess.n4 to false or export it before normalising"
            raise CaseError(case.case_id, "", found, advice)
    corrected = [
        np.where(brain, image / bias_field(image, brain, case.spacing_mm, case.case_id), 0).astype(np.float32)
        for image in case.images
    ]
    return replace(case, images=_stacked(corrected))


def _resample_case(case: Case, spacing_mm: tuple[float, float, float]) -> Case:
    old = case.images.shape[1:]
    x, y, z = (
        max(1, round(n * now / then)) for n, now, then in zip(old, case.spacing_mm, spacing_mm, strict=True)
    )
    new = (x, y, z)
    if new == old:
        return case
    if math.prod(new) > MAX_VOXELS:
        sides, found = (" x ".join(f"{mm:g}" for mm in edges) for edges in (spacing_mm, case.spacing_mm))
        raise CaseError(
            case.case_id,
            "",
            f"its voxels of {found} mm become {new} of {sides} mm; expected at most {MAX_VOXELS} in all",
            "check its voxel size, or raise preprocess.spacing_mm",
        )
    brain = brain_mask(case.images)
    inside = resample_labels(brain, new)
    # Each voxel at the brain's edge is a mean over those old ones that are brain: no background bleeds in. The
    # nearest of them is, so that the weight is never 0.
    weight = np.where(inside, resample(brain, new), 1)
    images = [np.where(inside, resample(np.where(brain, image, 0), new) / weight, 0) for image in case.images]
    step = np.array(old) / np.array(new)
    to_old = np.diag([*step, 1.0])
    to_old[:3, 3] = step / 2 - 0.5
    x_mm, y_mm, z_mm = (float(mm * ratio) for mm, ratio in zip(case.spacing_mm, step, strict=True))
    return replace(
        case,
        images=_stacked(images),
        mask=None if case.mask is None else np.asfortranarray(resample_labels(case.mask, new)),
        affine=case.affine @ to_old,
        spacing_mm=(x_mm, y_mm, z_mm),
    )


def _stacked(volumes: list[NDArray[Any]]) -> NDArray[Any]:
    """(M, X, Y, Z) with x running fastest, as `load_case` stores it: an axial slice is one block."""
    return np.stack([volume.T for volume in volumes]).transpose(0, 3, 2, 1)


def _tents(num_old: int, num_new: int) -> sparse.csr_array:
    """(new, old) weights of linear resampling along one axis; rows add up to 1."""
    step = num_old / num_new
    width = max(step, 1.0)
    centres = (np.arange(num_new) + 0.5) * step - 0.5
    reach = int(np.ceil(width))
    columns = np.floor(centres).astype(int)[:, None] + np.arange(-reach, reach + 2)
    weights = np.clip(1 - np.abs(columns - centres[:, None]) / width, 0, None)
    rows = np.broadcast_to(np.arange(num_new)[:, None], columns.shape)
    # What would lie beyond the edge is the edge's own voxel.
    inside = np.clip(columns, 0, num_old - 1)
    weights /= weights.sum(axis=1, keepdims=True)
    kept = weights > 0
    entries = (weights[kept].astype(np.float32), (rows[kept], inside[kept]))
    return sparse.coo_array(entries, shape=(num_new, num_old)).tocsr()
