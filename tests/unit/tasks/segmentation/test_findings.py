"""The numbers of a report: lesions and their diameters, certainty, and flags."""

from __future__ import annotations

import numpy as np
import pytest

from glioray.cases.load import Case
from glioray.cases.nifti import make_header
from glioray.tasks.segmentation.findings import (
    find_lesions,
    flag_case,
    measure_certainty,
    measure_regions,
)

SPACING_MM = (2.0, 1.0, 0.5)
# Turned about Z, mirrored and moved: the numbers are in the scanner's coordinates.
AFFINE = np.array([[0, -1.0, 0, 10], [2.0, 0, 0, -20], [0, 0, 0.5, 5], [0, 0, 0, 1]])


def test_lesions_are_found_one_by_one_and_measured_in_mm() -> None:
    mask = np.zeros((20, 30, 40), np.uint8)
    mask[2:7, 3:14, 10] = 2  # 8 mm by 10 mm, in one slice
    mask[2:7, 3:4, 11] = 3
    mask[15, 20, 20:31] = 3  # a line of 5 mm along Z
    mask[16, 21, 31] = 3  # touches its end at a corner
    whole, number = find_lesions(mask, "wt", AFFINE)
    assert (number, [lesion.volume_ml for lesion in whole]) == (2, [0.06, 0.012])
    first, second = whole
    assert first.axial_diameters_mm == pytest.approx(
        (np.hypot(8, 10), 2 * 8 * 10 / np.hypot(8, 10)), abs=0.01
    )
    assert first.axial_slice == 10
    assert first.centroid_mm == pytest.approx((10 - (55 * 8 + 5 * 3) / 60, -12, 10 + 5 * 0.5 / 60), abs=0.01)
    assert second.diameter_mm == pytest.approx(np.sqrt(2**2 + 1 + 5.5**2), abs=0.01)
    assert second.axial_diameters_mm == (0, 0)
    enhancing, number = find_lesions(mask, "et", AFFINE)
    assert (number, [lesion.volume_ml for lesion in enhancing]) == (2, [0.012, 0.005])
    assert enhancing[1].diameter_mm == 8
    assert find_lesions(np.zeros_like(mask), "wt", AFFINE) == ([], 0)


def test_the_diameter_of_a_ball_and_of_a_flat_disc() -> None:
    x, y, z = np.ogrid[-32:33, -32:33, -32:33]
    ball = (x**2 + y**2 + z**2 <= 30**2).astype(np.uint8)
    (lesion,), _ = find_lesions(ball, "wt", np.eye(4))
    assert lesion.diameter_mm == 60
    assert lesion.axial_diameters_mm == (60, 60)
    assert lesion.centroid_mm == (32, 32, 32)
    disc = np.zeros_like(ball)
    disc[:, 32] = ball[:, 32]
    (lesion,), _ = find_lesions(disc, "wt", np.eye(4))
    assert lesion.diameter_mm == pytest.approx(60, abs=0.1)


def test_regions_that_a_model_does_not_label_are_left_out() -> None:
    mask = np.array([[[0, 1, 2, 2, 3, 4]]], np.uint8)
    volumes, voxels = measure_regions(mask, ("wt", "tc", "et"), 3, 0.5)
    assert voxels == {"wt": 4, "tc": 2, "et": 1, "ncr": 1, "ed": 2}
    assert volumes["wt"] == 2.0
    assert measure_regions(mask, ("wt", "tc", "et"), 5, 0.5)[1]["rc"] == 1
    assert list(measure_regions(mask, ("wt",), 3, 0.5)[0]) == ["wt"]


def test_certainty_is_the_range_of_the_volume() -> None:
    probs = {"wt": np.array([[[0.1, 0.3, 0.6, 0.8]]], np.float32), "et": np.zeros((1, 1, 4), np.float32)}
    found = measure_certainty(probs, np.array([[[0, 0, 2, 2]]], np.uint8), 2.0)
    assert found["wt"].volume_range_ml == (2.0, 6.0)
    assert found["wt"].mean_probability == pytest.approx(0.7)
    assert found["et"].mean_probability is None


def test_flags_say_how_a_case_differs() -> None:
    def flags(side: int, tumour: int, spacing: float = 1.0) -> list[str]:
        images = np.zeros((1, 160, 160, 160), np.int16, order="F")
        images[0, :side, :side, :side] = 100
        affine = np.diag([spacing, spacing, spacing, 1.0])
        case = Case(
            case_id="a",
            images=images,
            modalities=("t1",),
            mask=None,
            affine=affine,
            spacing_mm=(spacing, spacing, spacing),
            reference=make_header((160, 160, 160), images.dtype, affine, name="t1"),
            convention=None,
        )
        mask = np.zeros((160, 160, 160), np.uint8)
        mask[:tumour, :tumour, :tumour] = 2
        return flag_case(case, mask, (1.0, 1.0, 1.0))

    assert flags(110, 30) == []
    assert flags(110, 0) == ["no tumour was found"]
    assert flags(70, 20) == ["343 ml are not background; a brain without its skull has 500 to 2300 ml"]
    assert "3375 ml are not background" in flags(150, 20)[0]
    assert flags(110, 100) == ["75 % of the brain was labelled as tumour"]
    (flag,) = flags(50, 20, spacing=2.0)
    assert flag == "voxels of 2.00 x 2.00 x 2.00 mm, where the model learned from 1.00 x 1.00 x 1.00 mm"
