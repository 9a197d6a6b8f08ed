"""Pictures before and after preprocessing show the same place."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from glioray.cases.load import Case
from glioray.config import PreprocessConfig
from glioray.slices.example import before_and_after

MakeCase = Callable[..., Case]


def test_shows_the_slice_with_the_most_tumour_in_radiological_orientation(make_case: MakeCase) -> None:
    case = make_case()
    assert case.mask is not None
    case.mask[:] = 0
    case.mask[18:21, 20:23, 17] = 2
    case.images[:, 22, 30, 17] = 32000
    config = PreprocessConfig(modalities=("flair", "t1"), planes=("coronal", "axial"), size=(32, 32))
    before, after, titles = before_and_after(case, config)
    assert titles == ["flair, A, axial 17", "t1, A, axial 17"]
    inside = case.images[0, :, :, 17] != 0
    columns, rows = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    for images in (before, after):
        for image in images:
            assert image.shape == (len(rows), len(columns))
            # The front is at the top and the patient's right is on the left.
            place = np.unravel_index(image.argmax(), image.shape)
            assert place == (rows[-1] - 30, columns[-1] - 22)
    np.testing.assert_array_equal(
        before[0], case.images[3, columns[0] : columns[-1] + 1, rows[0] : rows[-1] + 1, 17].T[::-1, ::-1]
    )


@pytest.mark.parametrize("spacing_z", [1.0, 2.0, 4.5])
def test_a_resampled_slice_is_shown_beside_the_same_place_in_the_file(
    make_case: MakeCase, spacing_z: float
) -> None:
    case = replace(make_case(radii=(13, 17, 12)), mask=None)
    # Brightness increases from slice to slice and is constant within each.
    brain = case.images[0] != 0
    case.images[:] = np.where(brain, 100 + 10 * np.arange(30), 0)
    config = PreprocessConfig(spacing_mm=(1.0, 1.5, spacing_z), normalize="none", size=(32, 32))
    before, after, _ = before_and_after(case, config)
    assert np.median(after[0][after[0] > 0]) == pytest.approx(before[0].max(), abs=10)
