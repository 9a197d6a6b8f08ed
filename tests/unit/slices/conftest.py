"""Small synthetic cases and stacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from glioray.cases.casefiles import CaseFiles
from glioray.cases.load import Case
from glioray.cases.manifest import CaseEntry
from glioray.cases.nifti import encode_volume, read_header
from glioray.slices.preprocess import SliceStack


@pytest.fixture
def make_case() -> Callable[..., Case]:
    """A case whose brain is an ellipsoid off the centre in a constant background."""

    def make(
        *,
        shape: tuple[int, int, int] = (44, 50, 30),
        radii: tuple[float, float, float] = (13, 17, 9),
        dtype: str = "int16",
        background: tuple[float, ...] = (0, 0, 0, 0),
        with_mask: bool = True,
    ) -> Case:
        rng = np.random.default_rng(7)
        grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
        centre = np.array([20, 24, 15]).reshape(3, 1, 1, 1)
        distance = (((grid - centre) / np.reshape(radii, (3, 1, 1, 1))) ** 2).sum(axis=0)
        means, spreads = np.array([300, 900, 5000, 20000]), np.array([40, 300, 900, 3000])
        images = rng.normal(means[:, None, None, None], spreads[:, None, None, None], (4, *shape))
        outside = np.broadcast_to(np.reshape(background, (4, 1, 1, 1)), images.shape)
        images = np.where(distance <= 1, images, outside).astype(dtype)
        mask = np.where(distance <= 0.3, 2, 0).astype(np.uint8)
        mask[distance <= 0.15] = 3
        mask[distance <= 0.05] = 1
        affine = np.diag([1.0, 1.5, 2.0, 1.0])
        return Case(
            case_id="A",
            images=images,
            mask=mask if with_mask else None,
            affine=affine,
            spacing_mm=(1.0, 1.5, 2.0),
            reference=read_header(encode_volume(mask, affine), name="A"),
            convention=None,
        )

    return make


@pytest.fixture
def make_stack() -> Callable[..., SliceStack]:
    """A stack in which no two slices share a pixel value and half of the slices have tumour."""

    def make(case_id: str, count: int = 10, *, plane: str = "axial", with_mask: bool = True) -> SliceStack:
        rng = np.random.default_rng([count, *case_id.encode()])
        mask = rng.integers(0, 4, (count, 32, 48), np.uint8)
        mask[::2] = 0
        return SliceStack(
            case_id=case_id,
            plane=plane,
            images=rng.normal(size=(count, 4, 32, 48)).astype(np.float16),
            mask=mask if with_mask else None,
            origin=(3, -2, 5),
            shape=(60, 50, 40),
            spacing_mm=(1.0, 1.0, 2.0),
            label_voxels=(10, 1, 2, 3, 0),
        )

    return make


@pytest.fixture
def make_entry() -> Callable[..., CaseEntry]:
    """The manifest entry of a case."""

    def make(case_id: str = "A", checksum: str = "c" * 64) -> CaseEntry:
        values: dict[str, Any] = {
            "shape": (60, 50, 40),
            "spacing_mm": (1.0, 1.0, 2.0),
            "convention": "brats-et4",
        }
        files = CaseFiles(case_id=case_id, patient_id=case_id, layout="brats2021", images={}, mask=None)
        return CaseEntry(
            files=files, checksum=checksum, checksums={}, label_voxels={}, brain_voxels=1, **values
        )

    return make
