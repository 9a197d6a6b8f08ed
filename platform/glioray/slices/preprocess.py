"""The deterministic part between a case and its slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glioray.cases.labels import LABELS
from glioray.cases.load import Case, FullVolume, brain_mask
from glioray.config import PreprocessConfig
from glioray.errors import CaseError
from glioray.slices.enhance import bounding_box, equalize
from glioray.slices.volumes import prepare_volume

# RAS+ volumes are (X, Y, Z); slices are (S, H, W). As NIfTI stores x fastest, the axial order is contiguous.
PLANE_AXES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 1, 2)}
"""By plane, the axes of a case (of X, Y, Z) that its slices' (S, H, W) run along."""


@dataclass(frozen=True, kw_only=True)
class SliceStack:
    """All slices of one case through its brain, in one plane.

    Attributes:
        case_id: the case as the data set names it.
        plane: of the slices: axial is (Z; Y, X), coronal (Y; Z, X), sagittal (X; Y, Z).
        images: (S, C, H, W) float16, C in the order of the config's modalities, background 0; where it says
            so, the brain's mask as 0 and 1 comes last.
        mask: (S, H, W) uint8 internal labels, or None.
        origin: index of the window's first voxel along (S, H, W), negative where it is padded.
        shape: (X, Y, Z) of the case; of its new grid where it was resampled, as all that follows.
        spacing_mm: along X, Y, Z.
        label_voxels: voxels of each label in the whole case, (5,); those outside the window count.
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
        """Values of the window's pixels, (..., S, H, W), put back into the case, (..., X, Y, Z); 0 around it."""
        order = PLANE_AXES[self.plane]
        permuted = tuple(self.shape[axis] for axis in order)
        volume = np.zeros((*slices.shape[:-3], *permuted), slices.dtype)
        source, target = _windows(self.origin, slices.shape[-3:], permuted)
        into, out_of = _any_lead(source), _any_lead(target)
        volume[into] = slices[out_of]
        lead = slices.ndim - 3
        return np.transpose(volume, [*range(lead), *(lead + np.argsort(order))])

    def cut(self, volume: NDArray[Any]) -> NDArray[Any]:
        """A volume of the case, (X, Y, Z), as the window's pixels, (S, H, W): undoes `restore`."""
        turned = np.transpose(volume, PLANE_AXES[self.plane])
        slices = np.zeros(self.images.shape[:1] + self.images.shape[2:], volume.dtype)
        source, target = _windows(self.origin, slices.shape, turned.shape)
        slices[target] = turned[source]
        return slices


def preprocess(case: Case, config: PreprocessConfig, *, whole: bool = False) -> tuple[SliceStack, ...]:
    """The slices of a case, a stack for each plane: prepared, cropped to the brain, z-scored inside it, windowed.

    Intensities inside the brain are cut at percentiles, equalised (CLAHE) and z-scored, each as far as asked for;
    those of a case that was cut to its segmented slices by the whole volume, as a prediction of it sees them.

    Args:
        case: as `load_case` gives it.
        config: the settings.
        whole: widen the window to hold the whole brain (prediction) rather than cut it (training).

    Raises:
        CaseError: the images hold nothing but background; and as `prepare_volume`.
        UsageError: as `prepare_volume`.
    """
    if case.full_volume is not None:
        case, config = _cut_late(case, case.full_volume, config)
    case = prepare_volume(case, config)
    # In (Z, Y, X), the order of the file's bytes, for speed; each plane is a transposition of it.
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
        turn = [2 - axis for axis in PLANE_AXES[plane]]
        start = [box[axis].start for axis in turn]
        length = [box[axis].stop - box[axis].start for axis in turn]
        size = [length[0], *config.size]
        if whole:
            size[1:] = [
                max(wanted, _round_up(found)) for wanted, found in zip(size[1:], length[1:], strict=True)
            ]
        shift = [(found - wanted) // 2 for found, wanted in zip(length, size, strict=True)]
        images = np.zeros((size[0], len(volumes) + config.brain_channel, *size[1:]), np.float16)
        source, target = _windows(shift, size, length)
        # Torch turns and halves in one pass; numpy's own cast to float16 is twenty times slower.
        fills.append((turn, source, torch.from_numpy(images).transpose(0, 1)[_any_lead(target)]))
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
        for turn, source, window in fills:
            window[channel].copy_(torch.from_numpy(values.transpose(turn)[source]))
    if config.brain_channel:
        for turn, source, window in fills:
            window[-1].copy_(torch.from_numpy(inside.transpose(turn)[source]))
    return tuple(stacks)


def _cut_late(case: Case, full_volume: FullVolume, config: PreprocessConfig) -> tuple[Case, PreprocessConfig]:
    """The case cut out of its whole volume when that is normalised, and the config of what is left to do.

    Resampling is left: it would tear the slices apart that were kept.
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
    return CaseError(case_id, "", "every voxel is background", "export the images again or drop the case")


def _enhance(values: NDArray[np.float32], inside: NDArray[np.bool_], config: PreprocessConfig) -> None:
    """Cut at percentiles of the brain, then of equalised contrast, in place; what is around it is left to others."""
    if config.percentiles is not None:
        low, high = np.percentile(values[inside], config.percentiles)
        np.clip(values, float(low), float(high), out=values)
    if config.clahe:
        values[:] = equalize(values, inside, config.clahe)


def unit_range(voxels: NDArray[np.float32]) -> tuple[float, float]:
    """What becomes 0 and 1 under "unit": 0 (or the 0.1th percentile where that is negative), and the 99.9th.

    Args:
        voxels: those of the brain, in one modality.
    """
    low, high = (float(value) for value in np.percentile(voxels, (0.1, 99.9)))
    return min(low, 0.0), high


def _normalize(
    values: NDArray[np.float32], inside: NDArray[np.bool_], config: PreprocessConfig, case_id: str
) -> None:
    """z-scores by the statistics of the brain, or its own range as [0, 1], in place; background becomes 0."""
    if config.normalize == "unit":
        low, high = unit_range(values[inside])
        if high <= low:
            found = f"the brain's intensities end at {high:g}, with nothing above"
            raise CaseError(case_id, "", found, "export the images again or drop the case")
        values -= low
        values *= 1 / (high - low)
        np.clip(values, 0, 1, out=values)
    if config.normalize == "zscore":
        voxels = values[inside]
        # float64 accumulators: a million voxels of up to 32767 lose digits in float32. And numpy's, which do
        # not depend on the number of threads: a case decodes to the same bits wherever it is decoded.
        mean = float(voxels.mean(dtype=np.float64))
        voxels -= mean
        std = math.sqrt(float(np.einsum("i,i->", voxels, voxels, dtype=np.float64)) / len(voxels))
        values -= mean
        values *= 1 / std if std > 0 else 0.0
        np.clip(values, *config.clip, out=values)
    values *= inside
    limit = float(np.finfo(np.float16).max)
    if config.normalize == "none" and max(-values.min(), values.max()) > limit:
        found = f"holds values up to {np.abs(values).max():g}; slices hold at most {limit:g} without z-scores"
        raise CaseError(case_id, "", found, "set preprocess.normalize to zscore")


def _windows(
    origin: Sequence[int], size: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a window lies in a volume, and where that part lies in the window."""
    source, target = [], []
    for start, length, limit in zip(origin, size, shape, strict=True):
        low, high = max(start, 0), min(start + length, limit)
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    return tuple(source), tuple(target)


def _any_lead(window: tuple[slice, ...]) -> Any:
    """The window in the last axes of an array, whatever its first ones."""
    return (Ellipsis, *window)


def _round_up(length: int, multiple: int = 16) -> int:
    return -(-length // multiple) * multiple
