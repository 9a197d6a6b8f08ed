"""Preprocessing of whole volumes: skull stripping, bias-field correction and resampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from glioray.cancellation import raise_if_cancelled
from glioray.cases.load import Case, brain_mask
from glioray.config import PreprocessConfig
from glioray.errors import CaseError
from glioray.slices.enhance import estimate_bias_field, extract_brain

MAX_VOXELS = 512**3
"""The most voxels in a resampled volume, as in a file."""

_MAX_NEGATIVE = 0.01
_MAX_SPACING_RATIO = 1.6


def prepare_volume(case: Case, config: PreprocessConfig) -> Case:
    """Select modalities, strip the skull, correct the bias field and resample, as configured.

    In this order: selection of modalities; skull stripping (found on T1, or on the first modality if T1 is not
    selected, and applied to all images but not to the mask); N4 inside the brain; resampling (images linearly,
    the mask by nearest neighbour). Changed images have a background of 0. Returns the same object if nothing
    changes. Modalities that are not selected have no influence, since a served model does not receive them.

    A resampled case fills the same box with a whole number of voxels; `spacing_mm` and `affine` describe the
    new grid, whose extent differs from the requested spacing by at most half a voxel per axis. `reference` is
    still the header of the file, to whose grid `probs_on_grid` returns a prediction.

    Raises:
        CaseError: a modality is missing, no brain is found, intensities are not raw scanner values, or the
            resampled volume would have more than `MAX_VOXELS`.
        UsageError: a package is not installed.
    """
    case = _select_modalities(case, config.modalities)
    if config.skull_strip:
        case = _strip_skull(case)
    if config.n4:
        case = _correct_bias(case)
    if config.spacing_mm is not None:
        case = _resample_case(case, config.spacing_mm)
    return case


def probs_on_grid(probs: NDArray[np.float32], shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Resample probabilities, (C, X', Y', Z'), to the case's own grid, (C, X, Y, Z).

    Both grids fill the same box, as in `prepare_volume`: their outer edges coincide, not the centres of their
    first voxels. Linear, so that channels that add up to 1 still do, within rounding.
    """
    if probs.shape[1:] == shape:
        return probs
    return np.stack([resample(channel, shape) for channel in probs])


def find_unlike_axis(own_mm: Sequence[float], trained_mm: Sequence[float]) -> int | None:
    """The first axis along which voxels are more than 1.6 times as large, or small, as in training; None if there is none."""
    ratios = [own / trained for own, trained in zip(own_mm, trained_mm, strict=True)]
    return next(
        (n for n, r in enumerate(ratios) if not 1 / _MAX_SPACING_RATIO <= r <= _MAX_SPACING_RATIO), None
    )


def resampled_shape(
    case: Case, spacing_mm: tuple[float, float, float], *, max_voxels: int = MAX_VOXELS
) -> tuple[int, int, int]:
    """The (X, Y, Z) of a case that `prepare_volume` resamples to a voxel size in mm.

    Raises:
        CaseError: more than `max_voxels`.
    """
    old = case.images.shape[1:]
    x, y, z = (
        max(1, round(n * now / then)) for n, now, then in zip(old, case.spacing_mm, spacing_mm, strict=True)
    )
    if x * y * z > max_voxels:
        target, source = (" x ".join(f"{mm:g}" for mm in edges) for edges in (spacing_mm, case.spacing_mm))
        raise CaseError(
            case.case_id,
            "",
            f"resampling from {source} mm to {target} mm gives {(x, y, z)} voxels; expected at most {max_voxels} in all",
            "check its voxel size, or increase preprocess.spacing_mm",
        )
    return x, y, z


def resample(volume: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Resample (X', Y', Z') linearly to another grid, (X, Y, Z), of the same box; float32.

    Larger voxels are weighted means (by a tent of their own width) of the old ones around them, which avoids
    aliasing; torch's interpolate does so in 2-D only and scipy's zoom not at all. Single-threaded, so that
    results are reproducible.
    """
    values = np.asarray(volume, np.float32)
    for axis, length in enumerate(shape):
        if values.shape[axis] != length:
            first = np.ascontiguousarray(np.moveaxis(values, axis, 0))
            resampled = _tent_weights(len(first), length) @ first.reshape(len(first), -1)
            values = np.moveaxis(resampled.reshape(length, *first.shape[1:]), 0, axis)
    return values


def resample_labels(labels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Resample labels, (X', Y', Z'), by nearest neighbour to another grid, (X, Y, Z)."""
    nearest = [
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
        for old, new in zip(labels.shape, shape, strict=True)
    ]
    return labels[np.ix_(*nearest)]


def _strip_skull(case: Case) -> Case:
    number = case.modalities.index("t1") if "t1" in case.modalities else 0
    brain = extract_brain(case.images[number], case.spacing_mm, case.case_id)
    return replace(case, images=_stack([np.where(brain, image, 0) for image in case.images]))


def _select_modalities(case: Case, modalities: tuple[str, ...]) -> Case:
    if case.modalities == modalities:
        return case
    missing = [modality for modality in modalities if modality not in case.modalities]
    if missing:
        found = f"has {', '.join(case.modalities)} but no {missing[0]}; expected {', '.join(modalities)}"
        raise CaseError(case.case_id, "", found, "set preprocess.modalities or leave the case out")
    images = _stack([case.images[case.modalities.index(modality)] for modality in modalities])
    return replace(case, images=images, modalities=modalities)


def _correct_bias(case: Case) -> Case:
    brain = brain_mask(case.images)
    num_brain = int(np.count_nonzero(brain))
    for modality, image in zip(case.modalities, case.images, strict=True):
        negative = np.count_nonzero(image[brain] < 0) / max(num_brain, 1)
        # Resampling may leave a few negative values, which N4 ignores; half of all z-scores are negative.
        if negative > _MAX_NEGATIVE:
            found = (
                f"{100 * negative:.0f} % of the brain in {modality} is negative; N4 needs raw scanner values"
            )
            advice = "set preprocess.n4 to false or export the case before normalisation"
            raise CaseError(case.case_id, "", found, advice)
    corrected = []
    for image in case.images:
        raise_if_cancelled()
        field = estimate_bias_field(image, brain, case.spacing_mm, case.case_id)
        corrected.append(np.where(brain, image / field, 0).astype(np.float32))
    return replace(case, images=_stack(corrected))


def _resample_case(case: Case, spacing_mm: tuple[float, float, float]) -> Case:
    old, new = case.images.shape[1:], resampled_shape(case, spacing_mm)
    if new == old:
        return case
    brain = brain_mask(case.images)
    inside = resample_labels(brain, new)
    # Each voxel at the brain's edge is a mean of old voxels inside the brain only, so that no background is mixed
    # in. The nearest old voxel is inside, so the weight is never 0.
    weight = np.where(inside, resample(brain, new), 1)
    images = [np.where(inside, resample(np.where(brain, image, 0), new) / weight, 0) for image in case.images]
    step = np.array(old) / np.array(new)
    to_old = np.diag([*step, 1.0])
    to_old[:3, 3] = step / 2 - 0.5
    x_mm, y_mm, z_mm = (float(mm * ratio) for mm, ratio in zip(case.spacing_mm, step, strict=True))
    return replace(
        case,
        images=_stack(images),
        mask=None if case.mask is None else np.asfortranarray(resample_labels(case.mask, new)),
        affine=case.affine @ to_old,
        spacing_mm=(x_mm, y_mm, z_mm),
    )


def _stack(volumes: list[NDArray[Any]]) -> NDArray[Any]:
    """Stack volumes to (M, X, Y, Z) with x fastest in memory, as in `load_case`."""
    return np.stack([volume.T for volume in volumes]).transpose(0, 3, 2, 1)


def _tent_weights(num_old: int, num_new: int) -> sparse.csr_array:
    """(new, old) weights of linear resampling along one axis; rows add up to 1."""
    step = num_old / num_new
    width = max(step, 1.0)
    centres = (np.arange(num_new) + 0.5) * step - 0.5
    reach = int(np.ceil(width))
    columns = np.floor(centres).astype(int)[:, None] + np.arange(-reach, reach + 2)
    weights = np.clip(1 - np.abs(columns - centres[:, None]) / width, 0, None)
    rows = np.broadcast_to(np.arange(num_new)[:, None], columns.shape)
    # Beyond the edge the outermost voxel is repeated.
    inside = np.clip(columns, 0, num_old - 1)
    weights /= weights.sum(axis=1, keepdims=True)
    kept = weights > 0
    entries = (weights[kept].astype(np.float32), (rows[kept], inside[kept]))
    return sparse.coo_array(entries, shape=(num_new, num_old)).tocsr()
