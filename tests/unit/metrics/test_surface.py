"""The 95th percentile Hausdorff distance against MONAI's, and where it is a definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from numpy.typing import NDArray
from scipy import ndimage

from glioray.metrics.surface import EMPTY_HD95_MM, hd95_mm

SHAPE = (22, 18, 14)


def _blob(seed: int) -> NDArray[np.bool_]:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(SHAPE), 2)
    return noise > np.quantile(noise, 0.9)


def _monai(truth: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing: tuple[float, ...]) -> float:
    pair = (torch.as_tensor(mask, dtype=torch.float32)[None, None] for mask in (prediction, truth))
    distance = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing)
    return float(distance)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.9, 3.0), (4.0, 1.0, 1.5)], ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_equals_monais(seed: int, spacing: tuple[float, ...]):
    truth, prediction = _blob(seed), _blob(seed + 100)
    if seed % 2:
        prediction &= ~truth  # apart, and touching
    expected = _monai(truth, prediction, spacing)
    assert expected > 1
    assert hd95_mm(truth, prediction, spacing) == pytest.approx(expected, rel=1e-5)
    assert hd95_mm(prediction, truth, spacing) == pytest.approx(expected, rel=1e-5)


def test_equals_monais_up_to_the_volumes_edge():
    truth, prediction = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    truth[:9, 4:], prediction[2:, :12, 3:] = True, True
    spacing = (1.0, 2.0, 1.5)
    assert hd95_mm(truth, prediction, spacing) == pytest.approx(_monai(truth, prediction, spacing), rel=1e-5)


def test_by_hand():
    truth, prediction = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    truth[3, 5, 5] = prediction[6, 9, 5] = True
    assert hd95_mm(truth, prediction, (1.0, 1.0, 1.0)) == pytest.approx(5)
    assert hd95_mm(truth, prediction, (2.0, 0.5, 7.0)) == pytest.approx(np.hypot(6, 2))
    assert hd95_mm(truth, truth, (1.0, 1.0, 1.0)) == 0


def test_a_stray_voxel_among_many_is_left_out():
    truth = np.zeros((40, 40, 40), bool)
    truth[5:20, 5:20, 5:20] = True
    stray = truth.copy()
    stray[39, 39, 39] = True
    assert hd95_mm(truth, stray, (1.0, 1.0, 1.0)) == 0


def test_empty_regions():
    empty, there = np.zeros(SHAPE, bool), _blob(0)
    assert EMPTY_HD95_MM == 374
    assert hd95_mm(empty, empty, (1.0, 1.0, 1.0)) == 0
    assert hd95_mm(there, empty, (1.0, 1.0, 1.0)) == 374
    assert hd95_mm(empty, there, (2.0, 2.0, 2.0)) == 374


def test_the_regions_are_left_as_they_are():
    truth, prediction = _blob(1), _blob(2)
    before = truth.copy(), prediction.copy()
    hd95_mm(truth, prediction, (1.0, 1.0, 1.0))
    assert np.array_equal(truth, before[0])
    assert np.array_equal(prediction, before[1])
