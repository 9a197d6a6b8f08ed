"""HD95 and surface Dice compared with MONAI's, and the cases settled by definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray
from scipy import ndimage

from glioray.metrics.surface import EMPTY_HD95_MM, hd95_mm, surface_metrics

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


def test_equals_monais_at_the_edge_of_the_volume():
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


def test_one_stray_voxel_among_many_does_not_matter():
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


def test_the_regions_are_not_modified():
    truth, prediction = _blob(1), _blob(2)
    before = truth.copy(), prediction.copy()
    hd95_mm(truth, prediction, (1.0, 1.0, 1.0))
    assert np.array_equal(truth, before[0])
    assert np.array_equal(prediction, before[1])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.9, 3.0)], ids=str)
@pytest.mark.parametrize("tolerance", [0.4, 1.0, 2.5])
def test_surface_dice_equals_monais(spacing: tuple[float, ...], tolerance: float):
    for seed in range(3):
        truth, prediction = _blob(seed), np.roll(_blob(seed), seed, axis=2) ^ (_blob(seed + 50) & _blob(seed))
        pair = (torch.as_tensor(mask)[None, None] for mask in (prediction, truth))
        expected = float(
            compute_surface_dice(
                *pair, class_thresholds=[tolerance], include_background=True, spacing=spacing
            )
        )
        figures = surface_metrics(truth, prediction, spacing, tolerance_mm=tolerance)
        assert figures["surface_dice"] == pytest.approx(expected, rel=1e-5)
        assert figures["hd95_mm"] == hd95_mm(truth, prediction, spacing)


def test_surface_dice_by_hand():
    truth, prediction = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    truth[2:5, 3, 3] = True
    prediction[2:6, 3, 3] = True  # the last voxel is 1 voxel from the truth
    assert surface_metrics(truth, prediction, (1.0, 1.0, 1.0))["surface_dice"] == 1
    assert surface_metrics(truth, prediction, (2.0, 1.0, 1.0))["surface_dice"] == pytest.approx(6 / 7)
    assert surface_metrics(truth, prediction, (2.0, 1.0, 1.0), tolerance_mm=2)["surface_dice"] == 1
    assert surface_metrics(truth, np.roll(truth, 9, axis=1), (1.0, 1.0, 1.0))["surface_dice"] == 0


def test_surface_metrics_of_empty_regions():
    empty, there = np.zeros(SHAPE, bool), _blob(0)
    assert surface_metrics(empty, empty, (1.0, 1.0, 1.0)) == {"hd95_mm": 0, "surface_dice": 1}
    for pair in ((there, empty), (empty, there)):
        assert surface_metrics(*pair, (1.0, 1.0, 1.0)) == {"hd95_mm": 374, "surface_dice": 0}
