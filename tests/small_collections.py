"""Small collections on disk: each case 12 x 12 x 8 voxels, of which 8 x 8 x 6 are brain."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from glioray.cases.nifti import encode_volume
from glioray.storage import FileStorage

NEW = {"t1": "-t1n", "t1c": "-t1c", "t2": "-t2w", "flair": "-t2f", "mask": "-seg"}
OLD = {"t1": "_t1", "t1c": "_t1ce", "t2": "_t2", "flair": "_flair", "mask": "_seg"}
SHAPE = (12, 12, 8)
BRAIN = np.s_[2:-2, 2:-2, 1:-1]
VOXELS_EACH = 5


def image(seed: int) -> np.ndarray:
    array = np.zeros(SHAPE, np.int16)
    array[BRAIN] = np.random.default_rng(seed).integers(1, 900, array[BRAIN].shape)
    return array


def mask_of(numbers: Collection[int]) -> np.ndarray:
    """A mask with `VOXELS_EACH` voxels of each number."""
    mask = np.zeros(SHAPE, np.uint8)
    for row, number in enumerate(sorted(set(numbers) - {0})):
        mask[3 : 3 + VOXELS_EACH, 3 + row, 4] = number
    return mask


def write_case(
    storage: FileStorage,
    case_id: str,
    mask: Collection[int] | np.ndarray | None,
    names: Mapping[str, str] = OLD,
    folder: str | None = None,
    seed: int = 0,
) -> None:
    """Write a case; `mask` is an array, or the numbers that it holds. Other seeds are other patients."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    for number, (role, suffix) in enumerate(names.items()):
        array = image(10 * seed + number)
        if role == "mask":
            if mask is None:
                continue
            array = mask if isinstance(mask, np.ndarray) else mask_of(mask)
        key = f"{case_id if folder is None else folder}/{case_id}{suffix}.nii.gz"
        storage.write(key.lstrip("/"), encode_volume(array, affine))
