"""One case for the library: from its folder, out of a data set, from arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import glioray
from glioray.cases.phantom import write_phantoms
from glioray.errors import CaseError, DataError, UsageError
from glioray.storage import open_storage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_phantoms(open_storage(folder), num_cases=2, shape=(32, 32, 16))
    return folder


def _arrays(case: glioray.Case) -> dict[str, np.ndarray]:
    return dict(zip(case.modalities, case.images, strict=True))


def test_a_case_of_a_folder(folder: Path):
    case = glioray.load_case(folder / "BraTS2021_90000")
    same = glioray.load_case(str(folder), case_id="BraTS2021_90000")
    assert (case.case_id, case.images.shape) == ("BraTS2021_90000", (4, 32, 32, 16))
    assert np.array_equal(case.images, same.images)
    assert case.convention is not None
    assert case.convention.name == "brats-et4"


def test_arrays_are_read_as_files_are(folder: Path):
    case = glioray.load_case(folder / "BraTS2021_90000")
    assert case.mask is not None
    mask = np.array([0, 1, 2, 4], np.uint8)[case.mask]
    made = glioray.load_case(_arrays(case), mask=mask, affine=case.affine, case_id="mine")
    assert made.case_id == "mine"
    assert made.mask is not None
    assert np.array_equal(made.images, case.images)
    assert np.array_equal(made.mask, case.mask)
    assert np.array_equal(made.affine, case.affine)
    # Stored from right to left: an affine says so, and the case is in RAS+ all the same.
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = case.images.shape[1] - 1
    turned = {name: array[::-1] for name, array in _arrays(case).items()}
    assert np.array_equal(glioray.load_case(turned, affine=case.affine @ flip).images, case.images)


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.float32, np.int16])
def test_arrays_of_any_number_type(folder: Path, dtype: type):
    images = {"flair": np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(dtype)}
    case = glioray.load_case(images, spacing_mm=(1.0, 2.0, 3.0))
    assert (case.modalities, case.spacing_mm, case.mask) == (("flair",), (1.0, 2.0, 3.0), None)
    assert np.array_equal(case.images[0], images["flair"])


@pytest.mark.parametrize(
    ("images", "options", "error", "sentence"),
    [
        ({"t1": np.ones((2, 2, 2))}, {}, UsageError, "arrays need one grid; give affine, or spacing_mm"),
        (
            {"t3": np.ones((2, 2, 2))},
            {"spacing_mm": (1, 1, 1)},
            UsageError,
            "'t3'; expected modalities of t1",
        ),
        (
            {"t1": np.ones((2, 2))},
            {"spacing_mm": (1, 1, 1)},
            UsageError,
            r"t1 has the shape \(2, 2\); expected",
        ),
        ({"t1": np.ones((2, 2, 2))}, {"affine": np.eye(3)}, UsageError, r"affine has the shape \(3, 3\)"),
        ({"t1": np.ones((2, 2, 2))}, {"spacing_mm": (1, 1, 1)}, CaseError, "every voxel of t1 is 1"),
        (
            {"t1": np.arange(8.0).reshape(2, 2, 2) * np.nan},
            {"spacing_mm": (1, 1, 1)},
            CaseError,
            "8 voxels that are NaN",
        ),
        (
            {"t1": np.arange(8).reshape(2, 2, 2), "t2": np.arange(12).reshape(2, 2, 3)},
            {"spacing_mm": (1, 1, 1)},
            CaseError,
            "t2",
        ),
        (
            {"t1": np.arange(8).reshape(2, 2, 2)},
            {"spacing_mm": (1, 1, 1), "labels": "nnunet"},
            UsageError,
            "labels is 'nnunet'",
        ),
    ],
)
def test_arrays_that_are_no_case(
    images: Mapping[str, Any], options: dict[str, Any], error: type[Exception], sentence: str
):
    with pytest.raises(error, match=sentence):
        glioray.load_case(images, **options)


def test_which_case_is_meant(folder: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="holds 2 cases, BraTS2021_90000 the first; give case_id"):
        glioray.load_case(folder)
    with pytest.raises(DataError, match="no case 'BraTS2021_9000' among its 2; there are BraTS2021_9000"):
        glioray.load_case(folder, case_id="BraTS2021_9000")
    with pytest.raises(DataError, match="holds no case"):
        glioray.load_case(tmp_path)
    (tmp_path / "BraTS2021_90000").symlink_to(folder / "BraTS2021_90000")
    (tmp_path / "BraTS2021_90001").symlink_to("unmounted")
    with pytest.raises(
        DataError, match="cannot be used; file: BraTS2021_90001: is a link to a file that does"
    ):
        glioray.load_case(tmp_path, case_id="BraTS2021_90001")
    with pytest.raises(UsageError, match="spacing_mm belong to arrays"):
        glioray.load_case(folder / "BraTS2021_90000", spacing_mm=(1, 1, 1))
