"""Phantoms are NIfTI files in BraTS layout, reproducible by seed, with tumours of every kind."""

from pathlib import Path

import numpy as np
import pytest

from glioray.cases.layouts import discover_cases
from glioray.cases.load import load_case
from glioray.cases.manifest import build_manifest, check_case
from glioray.cases.nifti import read_volume
from glioray.cases.phantom import make_phantom, write_phantoms
from glioray.errors import UsageError
from glioray.storage import FileStorage


def test_phantoms_are_cases_without_problems(tmp_path: Path) -> None:
    storage = FileStorage(str(tmp_path))
    ids = write_phantoms(storage, num_cases=2, shape=(48, 40, 24))
    assert ids == ["BraTS2021_90000", "BraTS2021_90001"]
    cases, problems = discover_cases(storage)
    manifest = build_manifest(storage.uri, [(None, problems), *(check_case(storage, case) for case in cases)])
    assert not manifest.problems
    assert [entry.case_id for entry in manifest.cases] == ids
    # Loading gives back the same arrays, in RAS order.
    phantom, case = make_phantom(1, shape=(48, 40, 24)), load_case(storage, cases[1])
    np.testing.assert_array_equal(case.images, phantom.images)
    np.testing.assert_array_equal(case.mask, phantom.mask)
    raw = read_volume(storage.read(cases[1].keys()[-1]), name="seg")
    assert raw.array.dtype == np.uint8
    assert set(np.unique(raw.array)) <= {0, 1, 2, 4}
    assert raw.affine[0, 0] < 0 > raw.affine[1, 1]


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, same = make_phantom(2, seed=5, shape=(32, 32, 24)), make_phantom(2, seed=5, shape=(32, 32, 24))
    np.testing.assert_array_equal(one.images, same.images)
    np.testing.assert_array_equal(one.mask, same.mask)
    assert not np.array_equal(one.images, make_phantom(2, seed=6, shape=(32, 32, 24)).images)
    assert not np.array_equal(one.images, make_phantom(8, seed=5, shape=(32, 32, 24)).images)


@pytest.fixture(scope="module")
def six() -> list[tuple[np.ndarray, np.ndarray]]:
    phantoms = [make_phantom(index, shape=(64, 64, 44)) for index in range(6)]
    return [(phantom.images, phantom.mask) for phantom in phantoms]


@pytest.mark.contracts
def test_tumours_vary_in_size_and_some_lack_et(six: list[tuple[np.ndarray, np.ndarray]]) -> None:
    counts = np.array([np.bincount(mask.ravel(), minlength=4)[1:] for _, mask in six])
    whole = counts.sum(axis=1)
    assert whole.min() > 20
    assert whole.max() > 5 * whole.min()
    assert np.count_nonzero(counts[:, 2] == 0) >= 1
    assert np.count_nonzero(counts[:, 2] > 100) >= 2
    assert (counts[:, 1] > 0).all()


def test_tumours_lie_in_the_brain_and_the_background_is_0(six: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for images, mask in six:
        brain = images[0] > 0
        assert images.dtype == np.int16
        assert brain[mask > 0].all()
        assert all(np.array_equal(image > 0, brain) for image in images)
        assert 0.15 < brain.mean() < 0.5
        assert not brain[0].any()
        assert not brain[:, :, 0].any()


def test_contrasts_match_the_modalities(six: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Enhancing tumour is bright in T1c and oedema in FLAIR and T2, but neither is the brightest tissue."""
    images, mask = six[0]
    normal = [float(np.median(image[(mask == 0) & (image > 0)])) for image in images]
    enhancing = [float(np.median(image[mask == 3])) for image in images]
    oedema = [float(np.median(image[mask == 2])) for image in images]
    assert enhancing[1] > normal[1]
    assert oedema[2] > normal[2]
    assert oedema[3] > normal[3]
    assert oedema[0] < normal[0]
    assert np.count_nonzero((images[1] > enhancing[1]) & (mask == 0)) > 20


def test_intensity_scales_differ(six: list[tuple[np.ndarray, np.ndarray]]) -> None:
    maxima = np.array([images.max(axis=(1, 2, 3)) for images, _ in six]).ravel()
    assert maxima.max() > 5 * maxima.min()
    assert maxima.min() > 100


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 40, 23), (96, 20, 64)])
def test_any_shape_works(shape: tuple[int, int, int]) -> None:
    phantom = make_phantom(0, shape=shape)
    assert phantom.images.shape == (4, *shape)
    assert phantom.mask.any()


def test_limits() -> None:
    with pytest.raises(UsageError, match="at least 16 voxels"):
        make_phantom(0, shape=(8, 96, 64))
    with pytest.raises(UsageError, match="num_cases is -1"):
        write_phantoms(FileStorage("unused"), num_cases=-1)
