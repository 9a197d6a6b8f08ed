"""A case of other voxels on request: a network that thresholds what it sees shows where everything lands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor, nn

from glioray.cases.load import Case
from glioray.cases.nifti import make_header
from glioray.errors import CaseError, ModelError
from glioray.tasks.segmentation.case_metrics import evaluate_case
from glioray.tasks.segmentation.package import ModelSpec
from glioray.tasks.segmentation.predictor import Predictor

BOX_MM = (120.0, 144.0, 110.0)
CENTRE_MM, RADIUS_MM = np.array([75.0, 62.0, 60.0]), 20.0
TRAINED_MM = (2.0, 2.0, 2.0)
GRIDS = {
    "finer": (1.0, 1.0, 1.0),
    "coarser": (4.0, 4.0, 4.0),
    "thick slices": (1.0, 1.0, 5.0),
    "sagittal, thick": (5.5, 1.2, 1.2),
    "one axis": (2.0, 2.0, 4.0),
}


class _Threshold(nn.Module):
    """WT, TC and ET where the z-score of FLAIR is above 1."""

    def forward(self, images: Tensor) -> Tensor:
        return 20 * (images[:, -1:] - 1).expand(-1, 3, -1, -1)


@pytest.fixture
def predictor(make_spec: Callable[..., ModelSpec]) -> Predictor:
    spec = make_spec(**{"preprocess.planes": ["axial", "sagittal"], "preprocess.clip": [-5.0, 20.0]})
    return Predictor(replace(spec, spacing_mm=TRAINED_MM), _Threshold())


def _case(spacing_mm: tuple[float, float, float]) -> Case:
    """An ellipsoid of a head with a brighter ball of a tumour, the same in mm on any grid."""
    x, y, z = (round(mm / step) for mm, step in zip(BOX_MM, spacing_mm, strict=True))
    places = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in (x, y, z)), indexing="ij"), -1) * spacing_mm
    head = (((places - np.array(BOX_MM) / 2) / (0.48 * np.array(BOX_MM))) ** 2).sum(-1) < 1
    ball = ((places - CENTRE_MM) ** 2).sum(-1) < RADIUS_MM**2
    image = np.where(head, np.where(ball, 400, 100), 0).astype(np.int16)
    affine = np.diag([*spacing_mm, 1.0])
    return Case(
        case_id="ball",
        images=np.stack([image] * 4),
        modalities=("t1", "t1c", "t2", "flair"),
        mask=np.where(ball, 3, 0).astype(np.uint8),
        affine=affine,
        spacing_mm=spacing_mm,
        reference=make_header((x, y, z), image.dtype, affine, name="t1"),
        convention=None,
    )


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def _centre_mm(mask: NDArray[np.uint8], case: Case) -> NDArray[np.float64]:
    return (np.argwhere(mask > 0).mean(axis=0) + 0.5) * case.spacing_mm


@pytest.mark.parametrize("name", GRIDS)
def test_the_tumour_is_found_where_it_is_on_the_cases_own_grid(predictor: Predictor, name: str) -> None:
    case = _case(GRIDS[name])
    with pytest.raises(ModelError, match=r"send resample=true \(--resample in a job\)"):
        predictor.predict(case)
    mask = predictor.predict(case, resample=True)
    assert case.mask is not None
    assert mask.shape == case.images.shape[1:]
    overlap = _dice(mask > 0, case.mask > 0)
    assert overlap > 0.9
    # A shift by half a voxel of either grid would be 0.5 mm at least.
    np.testing.assert_allclose(_centre_mm(mask, case), _centre_mm(case.mask, case), atol=0.2)
    assert evaluate_case(predictor, case, resample=True)[0]["wt"]["dice"] == pytest.approx(overlap)


def test_permuted_axes_permute_the_probabilities(make_spec: Callable[..., ModelSpec]) -> None:
    spec = make_spec()
    predictor = Predictor(replace(spec, spacing_mm=TRAINED_MM), _Threshold())
    case = _case((1.0, 1.2, 5.0))
    probs = predictor.probs(case, resample=True)
    assert probs.max() > 0.99
    for order in ((1, 0, 2), (2, 0, 1), (2, 1, 0)):
        x, y, z = (case.spacing_mm[axis] for axis in order)
        images = case.images.transpose(0, *(1 + axis for axis in order))
        turned = replace(case, images=images, mask=None, spacing_mm=(x, y, z))
        found = predictor.probs(turned, resample=True)
        # Brain means are in another order of voxels: what is rounded to 16 bits may differ in the last one.
        np.testing.assert_allclose(found, probs.transpose(0, *(1 + axis for axis in order)), atol=0.02)


def test_what_fits_is_not_resampled(predictor: Predictor) -> None:
    for spacing_mm in (TRAINED_MM, (1.5, 2.0, 2.9)):
        case = _case(spacing_mm)
        np.testing.assert_array_equal(predictor.probs(case, resample=True), predictor.probs(case))
        assert predictor.describe_resampling(case) is None
    assert predictor.describe_resampling(_case(GRIDS["thick slices"])) == (
        "the case was resampled from voxels of 1.00 x 1.00 x 5.00 mm to the 2.00 x 2.00 x 2.00 mm that the model "
        "learned from, and the result brought back, so its borders are less exact"
    )


def test_a_model_that_resamples_every_case_goes_on_as_it_did(make_spec: Callable[..., ModelSpec]) -> None:
    predictor = Predictor(make_spec(**{"preprocess.spacing_mm": [2.0, 2.0, 2.0]}), _Threshold())
    case = _case(GRIDS["thick slices"])
    np.testing.assert_array_equal(predictor.probs(case, resample=True), predictor.probs(case))
    assert predictor.describe_resampling(case) is None


def test_too_many_voxels_are_refused_before_the_work(predictor: Predictor) -> None:
    case = _case(GRIDS["coarser"])
    with pytest.raises(CaseError, match=r"gives \(60, 72, 56\) voxels; expected at most 200000 in all"):
        predictor.choose_preprocessing(case, resample=True, max_voxels=200_000)
    assert predictor.choose_preprocessing(case, resample=True).spacing_mm == TRAINED_MM
    with pytest.raises(CaseError, match="expected at most"):
        predictor.predict(replace(case, spacing_mm=(80.0, 80.0, 80.0)), resample=True)
