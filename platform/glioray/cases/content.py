"""Digests of what images show, by which one scan is recognised in several files.

Two files have the same digest if their voxels are alike up to the axis order, the data type and an empty margin.
Neither does the scale of the intensities count, unless an image has more than 65,536 values. Headers and compression
play no part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glioray.cases.load import background_of

_HEX_DIGITS = 16
_MAX_RANKS = 2**16  # values that are ranked; an image of more is continuous
_SAMPLE = 64  # every so many voxels tell that an image is continuous


def content_digests(
    images: np.ndarray, modalities: Sequence[str], mask: np.ndarray | None = None
) -> dict[str, str]:
    """Modality -> digest of its image; "mask" -> digest of the mask on the first image's axes.

    Args:
        images: (M, X, Y, Z).
        modalities: of the images.
        mask: (X, Y, Z) labels, or None.
    """
    digests = {}
    first = None
    for modality, image in zip(modalities, images, strict=True):
        box, numbers = _numbers(image)
        axes = _Axes.of(numbers)
        digests[modality] = _digest(axes.apply(numbers))
        first = first or (box, axes)
    if mask is not None and first is not None:
        box, axes = first
        digests["mask"] = _digest(axes.apply(_rank(mask[box], mask[box] > 0)))
    return digests


def _numbers(image: np.ndarray) -> tuple[tuple[slice, ...], np.ndarray]:
    """(the box of an image that is not background, a whole number for each of its voxels; 0 in the background)."""
    background = background_of(image)
    inside: NDArray[np.bool_] = np.ones(image.shape, bool, order="F")
    if background is not None:
        inside = image != background
    plane = np.any(inside, axis=0)  # (Y, Z)
    occupied = (np.any(inside, axis=(1, 2)), np.any(plane, axis=1), np.any(plane, axis=0))
    ends = [np.flatnonzero(along)[[0, -1]] for along in occupied]
    box = tuple(slice(int(low), int(high) + 1) for low, high in ends)
    return box, _rank(image[box], inside[box])


def _rank(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Each voxel's rank among the values inside, from 1, and 0 outside; of a continuous image the bits of its value."""
    places = np.flatnonzero(inside.ravel(order="F"))
    values = image.ravel(order="F")[places]
    if image.dtype.kind in "iu" and values.size:
        offsets = np.subtract(values, values.min(), dtype=np.int64)
        ranks = np.cumsum(np.bincount(offsets) > 0)[offsets]
    elif len(np.unique(values[::_SAMPLE])) > _MAX_RANKS or len(found := np.unique(values)) > _MAX_RANKS:
        ranks = (values.astype(np.float32) + np.float32(0)).view(np.uint32)
    else:
        ranks = np.searchsorted(found, values) + 1
    numbers = np.zeros(image.size, np.uint32 if ranks.max(initial=0) >= _MAX_RANKS else np.uint16)
    numbers[places] = ranks
    return numbers.reshape(image.shape, order="F")


@dataclass(frozen=True)
class _Axes:
    """Axes in an order that depends on the content.

    Attributes:
        order: of the axes: the longest first, of equal ones the one with the larger sums.
        flipped: those of the ordered axes that run backwards, so that the larger sums come first.
    """

    order: tuple[int, ...]
    flipped: tuple[int, ...]

    @classmethod
    def of(cls, numbers: np.ndarray) -> _Axes:
        plane = numbers.sum(axis=0, dtype=np.int64)  # (Y, Z)
        sums = (
            numbers.sum(axis=(1, 2), dtype=np.int64).tolist(),
            plane.sum(axis=1).tolist(),
            plane.sum(axis=0).tolist(),
        )
        keys = [(len(along), max(along, along[::-1])) for along in sums]
        order = tuple(sorted(range(3), key=lambda axis: keys[axis], reverse=True))
        return cls(order, tuple(place for place, axis in enumerate(order) if sums[axis] < sums[axis][::-1]))

    def apply(self, array: np.ndarray) -> np.ndarray:
        return np.flip(array.transpose(self.order), self.flipped)


def _digest(array: np.ndarray) -> str:
    checksum = hashlib.sha256(f"{array.shape}".encode())
    checksum.update(np.ascontiguousarray(array).data)
    return checksum.hexdigest()[:_HEX_DIGITS]
