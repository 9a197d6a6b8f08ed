"""The statistics of a case that is small enough to count by hand."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest

from glioray.cases.conventions import CONVENTIONS
from glioray.cases.layouts import discover_cases
from glioray.cases.load import Case, load_case
from glioray.cases.nifti import encode_volume, read_volume
from glioray.cases.statistics import PERCENTILES, ZSCORE_EDGES, CaseStatistics, describe_case
from glioray.storage import open_storage


@pytest.fixture
def case() -> Case:
    """5 x 4 x 3 voxels with a brain of 3 x 2 in the upper two slices and four voxels of tumour."""
    images = np.zeros((2, 5, 4, 3), np.int16)
    images[0, 1:4, 1:3, 1:] = np.arange(1, 13).reshape(3, 2, 2)
    images[1, 1:4, 1:3, 1:] = 7
    mask = np.zeros((5, 4, 3), np.uint8)
    mask[1, 1, 1] = 1
    mask[1:4, 1, 2] = 2, 2, 3
    header = read_volume(encode_volume(mask, np.eye(4)), name="mask").header
    return Case(
        case_id="tiny",
        images=images,
        mask=mask,
        affine=np.eye(4),
        spacing_mm=(1.0, 1.0, 1.0),
        reference=header,
        convention=CONVENTIONS["brats-et4"],
        modalities=("t1", "flair"),
    )


def test_counts_by_slice(case: Case):
    found = describe_case(case)
    assert (found.case_id, found.modalities, found.convention) == ("tiny", ("t1", "flair"), "brats-et4")
    assert found.brain_voxels.tolist() == [0, 6, 6]
    assert found.label_voxels.tolist() == [[20, 0, 0, 0, 0], [19, 1, 0, 0, 0], [17, 0, 2, 1, 0]]


def test_intensities_are_those_of_the_brain(case: Case):
    found = describe_case(case)
    values = np.arange(1, 13)
    assert found.percentiles[0] == pytest.approx(np.percentile(values, PERCENTILES))
    assert found.percentiles[1].tolist() == [7] * len(PERCENTILES)
    expected, _ = np.histogram((values - 6.5) / np.sqrt(143 / 12), ZSCORE_EDGES)
    assert found.histograms[0].tolist() == expected.tolist()
    assert found.histograms.sum(1).tolist() == [12, 12]
    # A modality without contrast has z-scores of 0 alone.
    assert found.histograms[1][50] == 12


def test_stray_maxima_count_in_the_last_bin(case: Case):
    images = np.zeros((1, 30, 30, 3), np.int16)
    images[0, 1:-1, 1:-1, 1] = 100 + np.arange(28 * 28).reshape(28, 28) % 3
    images[0, 5, 5, 1] = 30000
    found = describe_case(dataclasses.replace(case, images=images, mask=None, modalities=("t1",)))
    assert found.histograms.sum() == 28 * 28
    assert found.histograms[0][-1] == 1


def test_the_picture_shows_the_slice_with_most_tumour_with_the_front_at_the_top(case: Case):
    picture = describe_case(case).picture
    assert picture is not None
    assert picture.index == 2
    assert picture.images.shape == (2, 2, 3)
    # Rows run from the front (high y) backwards, columns from the patient's right (high x) to the left.
    assert picture.labels.tolist() == [[0, 0, 0], [3, 2, 2]]
    assert picture.images[0].argmin() == 5
    assert picture.images[0].argmax() == 0
    assert picture.images.min() >= 1


def test_without_a_mask_the_picture_shows_the_slice_with_most_brain(case: Case):
    images = case.images.copy()
    images[:, 2, 1, 2] = 0
    found = describe_case(dataclasses.replace(case, images=images, mask=None, convention=None))
    assert found.picture is not None
    assert found.picture.index == 1
    assert not found.picture.labels.any()
    assert found.convention is None
    assert not found.label_voxels.any()
    assert describe_case(case, with_picture=False).picture is None


def test_another_convention_changes_the_counts_by_label(case: Case):
    """4 in the file was taken for ET; in a collection of BraTS 2024 it is the resection cavity."""
    found = describe_case(case)
    again = found.with_convention("brats2024")
    assert again.convention == "brats2024"
    assert again.label_voxels[:, 4].tolist() == [0, 0, 1]
    assert not again.label_voxels[:, 3].any()
    assert again.label_voxels[:, :3].tolist() == found.label_voxels[:, :3].tolist()
    assert again.picture is not None
    assert again.picture.labels.tolist() == [[0, 0, 0], [4, 2, 2]]
    assert found.with_convention("brats-et4") is found
    assert found.with_convention(None) is found
    # MSD's 1 and 2 are the other way round.
    assert describe_case(dataclasses.replace(case, convention=CONVENTIONS["brats-et3"])).with_convention(
        "msd"
    ).label_voxels.tolist() == [[20, 0, 0, 0, 0], [19, 0, 1, 0, 0], [17, 2, 0, 1, 0]]


def test_statistics_can_be_pickled(case: Case):
    found = describe_case(case)
    again = pickle.loads(pickle.dumps(found))
    for field in dataclasses.fields(CaseStatistics):
        if field.name != "picture":
            assert np.array_equal(getattr(again, field.name), getattr(found, field.name))
    assert np.array_equal(again.picture.images, found.picture.images)


@pytest.mark.real
def test_counts_of_a_real_case_equal_those_of_its_mask(real_data: Path):
    storage = open_storage(real_data / "brats2021")
    files = next(f for f in discover_cases(storage)[0] if f.case_id == "BraTS2021_00008")
    case = load_case(storage, files)
    found = describe_case(case)
    assert case.mask is not None
    assert found.label_voxels.sum(0)[1:].tolist() == [16, 18135, 311, 0]
    assert found.label_voxels.sum() == case.mask.size
    assert found.histograms.sum(1).tolist() == [found.brain_voxels.sum()] * 4
    assert found.picture is not None
    assert (case.mask > 0).sum((0, 1)).argmax() == found.picture.index
    assert len(pickle.dumps(found)) < 400_000
