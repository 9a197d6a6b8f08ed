"""From probabilities to labels, and the rules of size."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from glioray.tasks.segmentation.config import PostprocessConfig
from glioray.tasks.segmentation.postprocess import decode_labels, postprocess

HALF = (0.5, 0.5, 0.5)


def _volume(*columns: tuple[float, ...]) -> NDArray[np.float32]:
    """(C, X, 1, 1) of X voxels' probabilities."""
    return np.array(columns, np.float32).T[:, :, None, None]


def test_classes_take_the_likeliest():
    probs = _volume((0.4, 0.3, 0.2, 0.1), (0.1, 0.2, 0.3, 0.4), (0.1, 0.5, 0.2, 0.2))
    labels = decode_labels(probs, "classes", HALF)
    assert labels.dtype == np.uint8
    assert labels.ravel().tolist() == [0, 3, 1]


def test_the_inner_region_is_believed():
    probs = _volume(
        (0.9, 0.9, 0.9),  # in all three
        (0.9, 0.9, 0.1),  # core without enhancement
        (0.9, 0.1, 0.1),  # oedema
        (0.1, 0.9, 0.1),  # a core makes a tumour
        (0.1, 0.1, 0.9),  # an enhancement makes a core
        (0.5, 0.5, 0.5),  # not above the threshold
    )
    labels = decode_labels(probs, "regions", HALF)
    assert labels.dtype == np.uint8
    assert labels.ravel().tolist() == [3, 1, 2, 1, 3, 0]


def test_every_region_has_its_threshold():
    probs = _volume((0.3, 0.3, 0.3), (0.5, 0.5, 0.5), (0.7, 0.7, 0.7), (0.9, 0.9, 0.9))
    for thresholds, expected in (
        ((0.2, 0.4, 0.8), [2, 1, 1, 3]),
        ((0.4, 0.2, 0.8), [1, 1, 1, 3]),
        ((0.6, 0.8, 0.8), [0, 0, 2, 3]),
    ):
        assert decode_labels(probs, "regions", thresholds).ravel().tolist() == expected


@pytest.fixture
def labels() -> NDArray[np.uint8]:
    """Components of 40, 8, 5 and 2 voxels, ET of 8 + 1 voxels and a cavity of 3."""
    mask = np.zeros((20, 20, 10), np.uint8)
    mask[0:5, 0:4, 0:2] = 2
    mask[0:2, 0:2, 0:2] = 3
    mask[10:12, 10:12, 0:2] = 1
    mask[16, 0:4, 0] = 2
    mask[17, 4, 1] = 3  # by a corner: one component with the four before
    mask[10, 0:2, 8] = 1
    mask[19, 15:18, 9] = 4
    return mask


def _sizes(mask: NDArray[np.uint8]) -> dict[int, int]:
    numbers, counts = np.unique(mask[mask > 0], return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def test_without_rules_nothing_changes(labels: NDArray[np.uint8]):
    result = postprocess(labels, PostprocessConfig(), 1.0)
    assert np.array_equal(result, labels)
    assert result is not labels
    assert not np.shares_memory(result, labels)


@pytest.mark.parametrize(
    ("min_ml", "expected"),
    [
        (2.0, {1: 10, 2: 36, 3: 9, 4: 3}),  # what is as large as the limit stays
        (2.1, {1: 8, 2: 36, 3: 9, 4: 3}),
        (5.1, {1: 8, 2: 32, 3: 8, 4: 3}),
        (8.1, {2: 32, 3: 8, 4: 3}),
        (1000.0, {2: 32, 3: 8, 4: 3}),  # the largest stays, and the cavity is no tumour
    ],
)
@pytest.mark.parametrize("voxel_ml", [1.0, 0.25])
def test_small_components_go(
    labels: NDArray[np.uint8], min_ml: float, expected: dict[int, int], voxel_ml: float
):
    before = labels.copy()
    config = PostprocessConfig(min_component_ml=min_ml * voxel_ml)
    assert _sizes(postprocess(labels, config, voxel_ml)) == expected
    assert np.array_equal(labels, before)


@pytest.mark.parametrize(
    ("min_et_ml", "expected"),
    [(9.0, {1: 10, 2: 36, 3: 9, 4: 3}), (9.1, {1: 19, 2: 36, 4: 3})],
)
def test_little_enhancement_in_all_becomes_core(
    labels: NDArray[np.uint8], min_et_ml: float, expected: dict[int, int]
):
    for voxel_ml in (1.0, 0.5):
        config = PostprocessConfig(min_et_ml=min_et_ml * voxel_ml)
        assert _sizes(postprocess(labels, config, voxel_ml)) == expected


def test_components_go_before_enhancement_is_counted(labels: NDArray[np.uint8]):
    config = PostprocessConfig(min_component_ml=5.5, min_et_ml=8.5)
    assert _sizes(postprocess(labels, config, 1.0)) == {1: 16, 2: 32, 4: 3}


FILL = PostprocessConfig(fill_holes=True)


def _shells(*labels: int) -> NDArray[np.uint8]:
    """A cube of 11 voxels' length of one label in another, the outermost first, a voxel a shell."""
    mask = np.zeros((11, 11, 11), np.uint8)
    for depth, label in enumerate(labels):
        inner = slice(depth, 11 - depth)
        mask[inner, inner, inner] = label
    return mask


@pytest.mark.parametrize(
    ("found", "filled"),
    [
        ((0, 2, 0, 0), (0, 2, 2, 2)),  # a hole in the oedema
        ((2, 0), (2, 2)),  # of a tumour that touches the volume's edge
        ((0, 3, 0), (0, 3, 1)),  # in a ring of enhancement lies core
        ((0, 1, 2, 0), (0, 1, 1, 1)),  # what the core encloses is core, oedema too
        ((0, 2, 0, 3, 0), (0, 2, 2, 3, 1)),  # each by the innermost region around it
        ((0, 2, 4), (0, 2, 4)),  # a cavity is none
        ((0, 2, 0, 4), (0, 2, 2, 4)),
        ((0, 4, 0), (0, 4, 0)),  # nor is it tumour
        ((0, 2, 1, 3), (0, 2, 1, 3)),
    ],
    ids=str,
)
def test_holes_become_part_of_the_region_around_them(found: tuple[int, ...], filled: tuple[int, ...]):
    mask = _shells(*found)
    before = mask.copy()
    assert np.array_equal(postprocess(mask, FILL, 1.0), _shells(*filled))
    assert np.array_equal(mask, before)


def test_what_has_a_way_out_is_no_hole():
    mask = _shells(0, 2, 0)
    mask[5, 5, 9] = 0
    assert np.array_equal(postprocess(mask, FILL, 1.0), mask)
    mask[5, 5, 9], mask[9, 9, 9] = 2, 0  # a gap at a corner is closed by its neighbours' faces
    assert (postprocess(mask, FILL, 1.0)[2:9, 2:9, 2:9] == 2).all()


def test_components_go_before_holes_are_filled():
    mask = _shells(0, 2, 0)
    mask[5, 5, 5] = 3
    config = PostprocessConfig(fill_holes=True, min_component_ml=2.0)
    assert np.array_equal(postprocess(mask, config, 1.0), _shells(0, 2, 2))
    assert postprocess(mask, FILL, 1.0)[5, 5, 5] == 3


def test_an_empty_mask_stays_empty():
    config = PostprocessConfig(min_component_ml=5, min_et_ml=8, fill_holes=True)
    assert not postprocess(np.zeros((4, 4, 4), np.uint8), config, 1.0).any()
