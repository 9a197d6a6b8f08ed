"""One case by itself: from a folder, a bucket, or arrays in memory."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from glioray.api.places import absolute_uri
from glioray.cases.casefiles import CaseFiles
from glioray.cases.conventions import LabelConvention, find_convention
from glioray.cases.layouts import RECOGNISED, discover_cases
from glioray.cases.load import Case, assemble_case, check_tumour_size
from glioray.cases.load import load_case as load_case_files
from glioray.cases.nifti import encode_volume
from glioray.config import MODALITIES
from glioray.errors import DataError, UsageError
from glioray.storage import Storage, open_storage


def load_case(
    source: str | Path | Mapping[str, ArrayLike],
    *,
    case_id: str | None = None,
    labels: str | None = None,
    mask: ArrayLike | None = None,
    affine: ArrayLike | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
) -> Case:
    """Load one case: decoded, in RAS+ order, on one grid, in one scheme of labels.

    Args:
        source: a case's folder, or a folder or `s3://bucket/prefix` of several cases; or arrays in memory, (X, Y, Z)
            by modality: t1, t1c, t2, flair.
        case_id: which of several cases; for arrays, the case's name.
        labels: the label convention of the mask, such as "brats-et4" or "1=ed,2=et,3=ncr"; by default what names and
            numbers tell.
        mask: (X, Y, Z), for arrays.
        affine: (4, 4) from voxel index to mm in RAS+, for arrays.
        spacing_mm: voxel edges along X, Y, Z, for arrays in RAS+ order without an affine.

    Example:
        case = glioray.load_case("brats/BraTS2021_00000")
        case = glioray.load_case({"t1": t1, "flair": flair}, spacing_mm=(1.0, 1.0, 1.0))

    Raises:
        UsageError: several cases and no `case_id`, arrays without a grid, or an unknown label convention.
        DataError: there is no such case.
        CaseError: the case cannot be used: it is damaged, empty or on several grids, several label conventions fit its
            mask, or the mask is too large for a tumour and no convention is stated.
        StorageError: the folder or the bucket cannot be read.
    """
    convention = None if labels is None else find_convention(labels)
    if isinstance(source, Mapping):
        return _from_arrays(source, case_id or "case", convention, mask, affine, spacing_mm)
    if mask is not None or affine is not None or spacing_mm is not None:
        raise UsageError(
            "mask, affine and spacing_mm belong to arrays; files bring their own, so leave them out"
        )
    storage, files = find_case(str(source), case_id, labels=None if convention is None else convention.name)
    return _checked(load_case_files(storage, files, convention=convention), files, convention)


def find_case(
    source: str, case_id: str | None = None, *, labels: str | None = None
) -> tuple[Storage, CaseFiles]:
    """The files of one case, and where they lie; arguments and errors as of `load_case`."""
    storage = open_storage(absolute_uri(source, "source"))
    cases, problems = discover_cases(storage, labels=labels)
    if not cases:
        raise DataError(f"'{source}' holds no case; {problems[0] if problems else RECOGNISED}")
    if case_id is not None:
        names = [files.case_id for files in cases]
        cases = [files for files in cases if files.case_id == case_id]
        if not cases:
            for problem in problems:
                if case_id in (problem.case_id, *problem.file.split("/")):
                    raise DataError(f"'{source}' has a case '{case_id}' that cannot be used; {problem}")
            near = difflib.get_close_matches(case_id, names, n=3) or names[:3]
            raise DataError(
                f"'{source}' holds no case '{case_id}' among its {len(names)}; there are {', '.join(near)} and others"
            )
    if len(cases) > 1:
        raise UsageError(
            f"'{source}' holds {len(cases)} cases, {cases[0].case_id} the first; give case_id to choose one"
        )
    return storage, cases[0]


def _from_arrays(
    images: Mapping[str, ArrayLike],
    case_id: str,
    convention: LabelConvention | None,
    mask: ArrayLike | None,
    affine: ArrayLike | None,
    spacing_mm: tuple[float, float, float] | None,
) -> Case:
    unknown = [name for name in images if name not in MODALITIES]
    if unknown or not images:
        found = f"'{unknown[0]}'" if unknown else "no image"
        raise UsageError(f"the arrays have {found}; expected modalities of {', '.join(MODALITIES)}")
    if (affine is None) == (spacing_mm is None):
        raise UsageError("arrays need one grid; give affine, or spacing_mm for arrays in RAS+ order")
    grid: Any = np.diag([*(spacing_mm or ()), 1.0]) if affine is None else np.asarray(affine, np.float64)
    if grid.shape != (4, 4):
        raise UsageError(f"the affine has the shape {grid.shape}; expected (4, 4)")
    arrays = {name: np.asarray(array) for name, array in images.items()}
    if mask is not None:
        arrays["mask"] = np.asarray(mask)
    for name, array in arrays.items():
        if array.ndim != 3:
            raise UsageError(f"{name} has the shape {array.shape}; expected (X, Y, Z)")
    # The decoder's own checks: one grid, finite values, known labels.
    parts = {name: encode_volume(_storable(array), grid, compress=False) for name, array in arrays.items()}
    files = CaseFiles(
        case_id=case_id,
        patient_id=case_id,
        layout="brats2021",
        images={name: name for name in MODALITIES if name in images},
        mask=None if mask is None else "mask",
    )
    case = assemble_case(files, parts.__getitem__, convention=convention)
    return _checked(case, files, convention)


def _checked(case: Case, files: CaseFiles, convention: LabelConvention | None) -> Case:
    """The case. Raises: CaseError for a mask of no stated convention that is too large for a tumour."""
    if case.mask is not None and convention is None:
        check_tumour_size(case, files.mask or "")
    return case


def _storable(array: np.ndarray) -> np.ndarray:
    """The array in a type that NIfTI has."""
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        return array.astype(np.float64)
    return array.astype(np.float32) if array.dtype == np.float16 else array
