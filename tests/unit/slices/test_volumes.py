"""What happens to a whole case before it is sliced."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from glioray.slices.volumes import probs_on_grid, resample, resample_labels


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 8).astype(np.float32)
    return noise / noise.std()


def ball(shape: tuple[int, int, int]) -> np.ndarray:
    grid = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n - 0.5 for n in shape), indexing="ij"))
    return (grid**2).sum(axis=0) < 0.35**2


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("shape", [(60, 41, 97), (60, 33, 20), (21, 80, 40)])
def test_both_grids_fill_the_same_box(shape: tuple[int, int, int]) -> None:
    """A ramp is the same ramp at the centres of the new voxels; edges apart, where it is held.

    To a small part of a voxel where a tent is sampled off its centre.
    """
    old, total = (40, 41, 39), np.zeros((40, 41, 39), np.float32)
    for axis, length in enumerate(old):
        ramp = (np.arange(length) + 0.5) / length
        total += ramp.reshape([-1 if a == axis else 1 for a in range(3)]).astype(np.float32)
    found = resample(total, shape)
    assert (found.shape, found.dtype) == (shape, np.float32)
    centres = [(np.arange(n) + 0.5) / n for n in shape]
    expected = np.add.outer(np.add.outer(*centres[:2]), centres[2])
    inner = tuple(slice(3, -3) for _ in shape)
    np.testing.assert_allclose(
        found[inner], expected[inner], atol=1e-5 if shape[1:] == (41, 97) else 0.15 / 39
    )
    np.testing.assert_array_equal(found, resample(np.asfortranarray(total), shape))


def test_larger_voxels_are_means_and_constants_stay() -> None:
    volume = np.zeros((64, 8, 8), np.float32)
    volume[::2] = 1
    halves = resample(volume, (16, 8, 8))
    np.testing.assert_allclose(halves[1:-1], 0.5, atol=1e-6)
    assert np.ptp(resample(np.full((9, 7, 5), 3.7), (4, 11, 6))) < 1e-5


def test_probabilities_come_back_to_the_case_s_own_grid() -> None:
    own, prepared = (48, 60, 31), (40, 75, 62)
    sizes = {"own": ball(own).sum() / np.prod(own), "prepared": ball(prepared).sum() / np.prod(prepared)}
    assert sizes["own"] == pytest.approx(sizes["prepared"], rel=0.02)
    probs = np.stack([ball(prepared), ~ball(prepared)]).astype(np.float32)
    back = probs_on_grid(probs, own)
    assert (back.shape, back.dtype) == ((2, *own), np.float32)
    np.testing.assert_allclose(back.sum(axis=0), 1, atol=1e-5)
    assert dice(back[0] > 0.5, ball(own)) > 0.97
    assert probs_on_grid(probs, prepared) is probs


@pytest.mark.parametrize("factor", [0.6, 0.8, 1.3, 1.7])
def test_there_and_back_again(factor: float) -> None:
    volume, labels = smooth((48, 44, 40)), (smooth((48, 44, 40)) > 0.3).astype(np.uint8)
    shape = tuple(round(n * factor) for n in volume.shape)
    there = resample(volume, shape)
    assert np.corrcoef(resample(there, volume.shape).ravel(), volume.ravel())[0, 1] > 0.97
    back = resample_labels(resample_labels(labels, shape), volume.shape)
    assert (back.dtype, set(np.unique(back))) == (np.uint8, {0, 1})
    assert dice(back > 0, labels > 0) > 0.97
    # Images and masks move alike: what a mask covers of the image keeps its sign.
    assert dice(there > 0.3, resample_labels(labels, shape) > 0) > 0.95
