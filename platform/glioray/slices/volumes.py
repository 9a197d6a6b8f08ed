"""A whole case before it is sliced: without its skull, without the coil's field, on voxels of one size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


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
