"""The deterministic steps from a case to its slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glioray.cases.labels import LABELS
from glioray.cases.load import Case, FullVolume, brain_mask
from glioray.config import PreprocessConfig
from glioray.errors import CaseError
from glioray.slices.enhance import bounding_box, equalize
from glioray.slices.volumes import prepare_volume

# RAS+ volumes are (X, Y, Z); slices are (S, H, W). As NIfTI stores x fastest, the axial order is contiguous.
PLANE_AXES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 1, 2)}
"""The axes of a case's (X, Y, Z) that are (S, H, W) of its slices, by plane."""


@dataclass(frozen=True, kw_only=True)
class SliceStack:
    """All slices of a case through its brain, in one plane.

    If the case was resampled, all geometry refers to the new grid.

    Attributes:
        case_id: the case's name in the data set.
        plane: of the slices: axial is (Z; Y, X), coronal (Y; Z, X), sagittal (X; Y, Z).
        images: (S, C, H, W) float16, background 0; C are the config's modalities in order, then the brain's
            mask as 0 and 1 if `brain_channel` is set.
        mask: (S, H, W) uint8 internal labels, or None.
        origin: the index in the case of the window's first voxel along (S, H, W); negative if padded.
        shape: (X, Y, Z) of the case.
        spacing_mm: voxel edges along X, Y, Z.
        label_voxels: (5,), the number of voxels of each label in the whole case, also outside the window.
    """

    case_id: str
    plane: str
    images: NDArray[np.float16]
    mask: NDArray[np.uint8] | None
    origin: tuple[int, int, int]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    label_voxels: tuple[int, ...]

    @property
    def voxel_ml(self) -> float:
        """The volume of one voxel in millilitres."""
        return float(np.prod(self.spacing_mm)) / 1000

    def restore(self, slices: NDArray[Any]) -> NDArray[Any]:
        """Insert values of the window, (..., S, H, W), into the case, (..., X, Y, Z).

        Values outside the window are 0.
        """
        order = PLANE_AXES[self.plane]
        permuted = tuple(self.shape[axis] for axis in order)
        volume = np.zeros((*slices.shape[:-3], *permuted), slices.dtype)
        source, target = _windows(self.origin, slices.shape[-3:], permuted)
        volume[source] = slices[target]
        lead = slices.ndim - 3
        return np.transpose(volume, [*range(lead), *(lead + np.argsort(order))])

    def cut(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Cut a volume of the case, (X, Y, Z), to the window, (S, H, W); the inverse of `restore`."""
        permuted = np.transpose(volume, PLANE_AXES[self.plane])
        slices = np.zeros(self.images.shape[:1] + self.images.shape[2:], volume.dtype)
        source, target = _windows(self.origin, slices.shape, permuted.shape)
        slices[target] = permuted[source]
        return slices


def preprocess(case: Case, config: PreprocessConfig, *, whole: bool = False) -> tuple[SliceStack, ...]:
    """The preprocessed slices of a case through its brain, one stack per plane.

    Intensities inside the brain are clipped at percentiles, equalised (CLAHE) and normalised, as configured. A
    case that was cut to its segmented slices is normalised by its full volume, as in prediction.

    Args:
        case: from `load_case`.
        config: the settings.
        whole: True enlarges the window to the whole brain (prediction); False may cut the brain (training).

    Raises:
        CaseError: the images are all background; or as `prepare_volume`.
        UsageError: as `prepare_volume`.
    """
    # Here, because nodes that only copy slices, and whoever asks what a cache holds, do without torch's second.
    import torch

    if case.full_volume is not None:
        case, config = _normalize_then_cut(case, case.full_volume, config)
    case = prepare_volume(case, config)
    # (Z, Y, X) is contiguous in memory, so it is fastest; each plane is a transposition of it.
    volumes = [image.T for image in case.images]
    brain = brain_mask(case.images).T
    box = bounding_box(brain)
    if box is None:
        raise _no_brain(case.case_id)
    label_voxels = (0,) * len(LABELS)
    if case.mask is not None:
        label_voxels = tuple(int(np.count_nonzero(case.mask == label)) for label in range(len(LABELS)))

    stacks, fills = [], []
    for plane in config.planes:
        order = [2 - axis for axis in PLANE_AXES[plane]]
        start = [box[axis].start for axis in order]
        length = [box[axis].stop - box[axis].start for axis in order]
        size = [length[0], *config.size]
        if whole:
            size[1:] = [
                max(wanted, _round_up(found)) for wanted, found in zip(size[1:], length[1:], strict=True)
            ]
        shift = [(found - wanted) // 2 for found, wanted in zip(length, size, strict=True)]
        images = np.zeros((size[0], len(volumes) + config.brain_channel, *size[1:]), np.float16)
        source, target = _windows(shift, size, length)
        # torch transposes and casts in one pass; NumPy's cast to float16 is twenty times slower.
        fills.append((order, source, torch.from_numpy(images).transpose(0, 1)[target]))
        origin = tuple(s + d for s, d in zip(start, shift, strict=True))
        stack = SliceStack(
            case_id=case.case_id,
            plane=plane,
            images=images,
            mask=None,
            origin=(origin[0], origin[1], origin[2]),
            shape=(case.images.shape[1], case.images.shape[2], case.images.shape[3]),
            spacing_mm=case.spacing_mm,
            label_voxels=label_voxels,
        )
        stacks.append(stack if case.mask is None else replace(stack, mask=stack.cut(case.mask)))

    inside = np.ascontiguousarray(brain[box])
    values = np.empty(inside.shape, np.float32)
    for channel, volume in enumerate(volumes):
        np.copyto(values, volume[box])
        _enhance(values, inside, config)
        _normalize(values, inside, config, case.case_id)
        for order, source, window in fills:
            window[channel].copy_(torch.from_numpy(values.transpose(order)[source]))
    if config.brain_channel:
        for order, source, window in fills:
            window[-1].copy_(torch.from_numpy(inside.transpose(order)[source]))
    return tuple(stacks)


def _normalize_then_cut(
    case: Case, full_volume: FullVolume, config: PreprocessConfig
) -> tuple[Case, PreprocessConfig]:
    """Normalise the full volume and cut it to the case's slices.

    Returns the cut case and the config of the remaining steps. Resampling remains: on the full volume it
    would mix segmented slices with others.
    """
    whole = replace(case, images=full_volume.images, mask=None, full_volume=None)
    whole = prepare_volume(whole, config.replace(spacing_mm=None))
    brain = brain_mask(whole.images).T
    box = bounding_box(brain)
    if box is None:
        raise _no_brain(case.case_id)
    inside = np.ascontiguousarray(brain[box])
    images = np.zeros((len(whole.images), *brain.shape), np.float32)
    for image, raw in zip(images, whole.images, strict=True):
        values = np.array(raw.T[box], np.float32)
        _enhance(values, inside, config)
        _normalize(values, inside, config, case.case_id)
        image[box] = values
    cut = replace(
        case,
        images=full_volume.cut(images.transpose(0, 3, 2, 1)),
        modalities=whole.modalities,
        full_volume=None,
    )
    return cut, config.replace(skull_strip=False, n4=False, percentiles=None, clahe=0.0, normalize="none")


def _no_brain(case_id: str) -> CaseError:
    return CaseError(
        case_id, "", "every voxel is background", "export the images again or leave the case out"
    )


def _enhance(values: NDArray[np.float32], inside: NDArray[np.bool_], config: PreprocessConfig) -> None:
    """Clip at percentiles of the brain and equalise in place; background is undefined."""
    if config.percentiles is not None:
        low, high = np.percentile(values[inside], config.percentiles)
        np.clip(values, float(low), float(high), out=values)
    if config.clahe:
        values[:] = equalize(values, inside, config.clahe)


def unit_range(voxels: NDArray[np.float32]) -> tuple[float, float]:
    """The intensities that become 0 and 1 under "unit".

    They are 0, or the 0.1th percentile if that is negative, and the 99.9th percentile.

    Args:
        voxels: of the brain, in one modality.
    """
    low, high = (float(value) for value in np.percentile(voxels, (0.1, 99.9)))
    return min(low, 0.0), high


def _normalize(
    values: NDArray[np.float32], inside: NDArray[np.bool_], config: PreprocessConfig, case_id: str
) -> None:
    """Normalise in place by statistics of the brain; the background becomes 0."""
    if config.normalize == "unit":
        low, high = unit_range(values[inside])
        if high <= low:
            found = f"the 99.9th percentile of the brain is {high:g}; expected more than {low:g}"
            raise CaseError(case_id, "", found, "export the images again or leave the case out")
        values -= low
        values *= 1 / (high - low)
        np.clip(values, 0, 1, out=values)
    if config.normalize == "zscore":
        voxels = values[inside]
        # float64 accumulators, since a million voxels of up to 32767 lose digits in float32; and NumPy's, which
        # do not depend on the number of threads, so that results are reproducible.
        mean = float(voxels.mean(dtype=np.float64))
        voxels -= mean
        std = math.sqrt(float(np.einsum("i,i->", voxels, voxels, dtype=np.float64)) / len(voxels))
        values -= mean
        values *= 1 / std if std > 0 else 0.0
        np.clip(values, *config.clip, out=values)
    values *= inside
    limit = float(np.finfo(np.float16).max)
    if config.normalize == "none" and max(-values.min(), values.max()) > limit:
        found = (
            f"holds values up to {np.abs(values).max():g}; expected at most {limit:g} without normalisation"
        )
        raise CaseError(case_id, "", found, "set preprocess.normalize to zscore")


def _windows(origin: Sequence[int], size: Sequence[int], shape: Sequence[int]) -> tuple[Any, Any]:
    """Index the part of a volume inside a window, and that part within the window.

    Both index the last axes of an array.
    """
    source, target = [], []
    for start, length, limit in zip(origin, size, shape, strict=True):
        low, high = max(start, 0), min(start + length, limit)
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    return (..., *source), (..., *target)


def _round_up(length: int, multiple: int = 16) -> int:
    return -(-length // multiple) * multiple
