"""Lesion-wise scores of cases small enough to score by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from glioray.metrics.lesionwise import LesionScores, lesionwise_scores
from glioray.metrics.surface import element_hd95_mm

SHAPE = (48, 32, 24)
MM = (1.0, 1.0, 1.0)
EMPTY = np.zeros(SHAPE, bool)


def _cube(start: tuple[int, int, int], edge: int) -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(at, at + edge) for at in start)] = True
    return mask


def _scores(
    dice: float, hd95: float, *, lesions: int = 0, missed: int = 0, false: int = 0
) -> dict[str, float]:
    """The expected scores, for comparison with `vars` of the result."""
    counts = {"num_lesions": lesions, "num_missed": missed, "num_false": false}
    return {"dice": dice, "hd95_mm": hd95, **counts}


A, B = _cube((4, 4, 4), 6), _cube((30, 20, 10), 5)  # 216 and 125 voxels, far apart
FAR = _cube((40, 4, 4), 2)
TINY = _cube((20, 4, 16), 3)  # 27 voxels: too small to count

CASES = {
    "both empty": (EMPTY, EMPTY, _scores(1, 0)),
    "nothing there, something claimed": (EMPTY, A, _scores(0, 374, false=1)),
    "nothing there, two claims": (EMPTY, A | FAR, _scores(0, 374, false=2)),
    "all missed": (A | B, EMPTY, _scores(0, 374, lesions=2, missed=2)),
    "perfect": (A | B, A | B, _scores(1, 0, lesions=2)),
    "one of two found": (A | B, A, _scores(0.5, 187, lesions=2, missed=1)),
    "found, and a false alarm": (A, A | FAR, _scores(0.5, 187, lesions=1, false=1)),
    "two found, one missed, one false": (
        A | B | _cube((38, 2, 2), 5),
        A | B | _cube((20, 4, 16), 2),
        _scores(0.5, 187, lesions=3, missed=1, false=1),
    ),
    "a tiny lesion missed does not count": (A | TINY, A, _scores(1, 0, lesions=1)),
    "a tiny lesion found does not count, nor is it a false alarm": (
        A | TINY,
        A | TINY,
        _scores(1, 0, lesions=1),
    ),
    "only a tiny lesion, missed": (TINY, EMPTY, _scores(1, 0)),
    "only a tiny lesion, found": (TINY, TINY, _scores(1, 0)),
    "only a tiny lesion, and a false alarm": (TINY, FAR, _scores(0, 374, false=1)),
}


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name: str):
    truth, prediction, expected = CASES[name]
    assert vars(lesionwise_scores(truth, prediction, MM)) == pytest.approx(expected)


def test_a_partly_found_lesion_has_its_own_dice():
    half = A.copy()
    half[7:] = False  # 3 of 6 layers: Dice 2 * 108 / (216 + 108)
    scores = lesionwise_scores(A | B, half | B, MM)
    assert scores.dice == pytest.approx((2 / 3 + 1) / 2)
    assert scores.hd95_mm == pytest.approx(element_hd95_mm(A, half, MM) / 2)


def test_components_near_a_lesion_belong_to_its_prediction():
    """At three voxels a component touches the dilated truth, at four it does not."""
    near, apart = _cube((12, 4, 4), 2), _cube((13, 4, 4), 2)  # A ends at 9, so 12 is three steps on
    assert vars(lesionwise_scores(A, A | near, MM)) == pytest.approx(
        _scores(2 * 216 / (216 + 224), element_hd95_mm(A, A | near, MM), lesions=1)
    )
    assert lesionwise_scores(A, A | apart, MM).num_false == 1
    assert lesionwise_scores(A, A | near, MM, num_dilations=2).num_false == 1
    # A claim that only comes near scores 0, and is neither a false alarm nor a miss.
    assert vars(lesionwise_scores(A, near, MM)) == pytest.approx(
        _scores(0, element_hd95_mm(A, near, MM), lesions=1)
    )


def test_lesions_connected_after_dilation_are_one_lesion():
    beside = _cube((15, 4, 4), 5)  # five voxels of gap: three steps from each side meet
    one = lesionwise_scores(A | beside, A, MM)
    assert one.num_lesions == 1
    assert one.dice == pytest.approx(2 * 216 / (216 + 216 + 125))
    two = lesionwise_scores(A | beside, A, MM, num_dilations=1)
    assert (two.num_lesions, two.num_missed, two.dice) == (2, 1, 0.5)


def test_small_parts_count_with_their_lesion():
    satellite = _cube((12, 4, 4), 2)
    assert lesionwise_scores(A | satellite, A | satellite, MM) == LesionScores(
        dice=1, hd95_mm=0, num_lesions=1, num_missed=0, num_false=0
    )


def test_a_component_touching_two_lesions_belongs_to_both():
    truth = A | _cube((24, 4, 4), 6)
    bridge = truth.copy()
    bridge[4:30, 4:10, 4:10] = True
    scores = lesionwise_scores(truth, bridge, MM)
    assert (scores.num_lesions, scores.num_missed, scores.num_false) == (2, 0, 0)
    assert scores.dice == pytest.approx(2 * 216 / (216 + bridge.sum()))


def test_touching_by_a_corner_is_one_component():
    corner = FAR | _cube((42, 6, 6), 2)
    assert lesionwise_scores(A, A | corner, MM).num_false == 1
    assert lesionwise_scores(A, A | FAR | _cube((43, 6, 6), 2), MM).num_false == 2


def test_the_size_limit_is_a_volume():
    fifty = np.zeros(SHAPE, bool)
    fifty[4:9, 4:9, 4:6] = True
    assert lesionwise_scores(fifty, EMPTY, MM).num_lesions == 0
    assert lesionwise_scores(fifty, EMPTY, (1.01, 1.0, 1.0)).num_lesions == 1
    assert lesionwise_scores(fifty, EMPTY, MM, ignored_mm3=49).num_lesions == 1


def test_lesions_at_the_edge_of_the_volume_are_scored_alike():
    edge = _cube((0, 0, 0), 6)

    def inward(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.roll(mask, (8, 8, 8), (0, 1, 2))

    for found in (EMPTY, edge, np.roll(edge, 1, axis=0)):
        assert lesionwise_scores(edge, found, MM) == lesionwise_scores(inward(edge), inward(found), MM)


def test_zero_dilations_are_rejected():
    with pytest.raises(ValueError, match="num_dilations is 0; expected at least 1"):
        lesionwise_scores(A, A, MM, num_dilations=0)
