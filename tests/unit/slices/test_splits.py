"""Every slice is in one part, and parts have the configured sizes."""

import numpy as np
import pytest

from glioray.config import SampleConfig
from glioray.slices.splits import deal_slices, split_slices

SHARES = [(0.7, 0.15, 0.15), (0.6, 0.2, 0.2), (0.5, 0.5, 0.0), (1 / 3, 1 / 3, 1 / 3)]


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("num_slices", [0, 1, 2, 7, 100, 6510])
def test_every_slice_is_in_one_part_of_the_right_size(
    num_slices: int, shares: tuple[float, float, float]
) -> None:
    parts = np.array(split_slices(num_slices, shares, 3))
    assert parts.shape == (3, num_slices)
    assert (parts.sum(axis=0) == 1).all()
    assert (abs(parts.sum(axis=1) - np.multiply(shares, num_slices)) <= 1).all()


def test_a_published_split_has_its_published_sizes() -> None:
    assert [part.sum() for part in split_slices(6510, (0.6, 0.2, 0.2), 0)] == [3906, 1302, 1302]


def test_the_split_depends_on_the_seed_and_mixes_neighbours() -> None:
    first, again, other = (np.array(split_slices(1000, (0.6, 0.2, 0.2), seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    # Of 999 pairs of neighbours, a fraction of 1 - (.36 + .04 + .04) is separated by chance.
    parts = first.argmax(axis=0)
    assert abs(np.mean(parts[1:] != parts[:-1]) - 0.56) < 0.08


def test_slices_with_and_without_tumour_are_split_separately() -> None:
    tumour_px = np.array([0] * 50 + [5] * 30 + [20] * 40)[np.random.default_rng(0).permutation(120)]
    config = SampleConfig(min_tumour_px=20, slice_split=(0.5, 0.3, 0.2))
    parts = np.array(deal_slices(tumour_px, config, 1))
    assert [[int((part & (tumour_px == px)).sum()) for px in (0, 5, 20)] for part in parts] == [
        [25, 0, 20],
        [15, 0, 12],
        [10, 0, 8],
    ]
    few = SampleConfig(min_tumour_px=20, slice_split=(0.5, 0.3, 0.2), empty_share=0.4)
    assert (np.array(deal_slices(tumour_px, few, 1))[:, tumour_px == 0].sum(axis=1) == [10, 6, 4]).all()
    whole = np.array(deal_slices(tumour_px, SampleConfig(slice_split=(0.5, 0.3, 0.2)), 1))
    assert (whole.sum(axis=0) == 1).all()
    assert whole[:, tumour_px > 0].sum(axis=1).tolist() == [35, 21, 14]
