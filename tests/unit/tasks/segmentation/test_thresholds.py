"""Thresholds from histograms: equal to trying each one out on the voxels."""

from __future__ import annotations

import numpy as np
import pytest

from glioray.tasks.segmentation.thresholds import NUM_BINS, fit_threshold, fit_thresholds, region_histogram

THRESHOLDS = [k / NUM_BINS for k in range(NUM_BINS) if 0.1 <= k / NUM_BINS <= 0.9]


def _histogram(false: dict[float, int], true: dict[float, int]) -> np.ndarray:
    """Of so many voxels of each probability."""
    probs = np.array(
        [p for part in (false, true) for p, count in part.items() for _ in range(count)], np.float32
    )
    truth = np.arange(len(probs)) >= sum(false.values())
    return region_histogram(probs[:, None, None], truth[:, None, None])


def test_a_histogram_by_hand():
    histogram = _histogram({0.0: 7, 0.001: 2, 0.5: 1}, {0.5: 3, 0.501: 4, 1.0: 5})
    assert histogram.shape == (2, NUM_BINS + 1)
    expected = np.zeros((2, NUM_BINS + 1))
    expected[0, [0, 1, 64]] = 7, 2, 1
    expected[1, [64, 65, 128]] = 3, 4, 5
    assert np.array_equal(histogram, expected)


@pytest.mark.parametrize(
    ("false", "true", "expected"),
    [
        # Above .25 and not above .75: half the truth is found without one false voxel, all of it with one.
        ({0.0: 90, 0.75: 1}, {0.25: 5, 0.875: 5}, 0.25 - 1 / NUM_BINS),
        ({0.0: 90, 0.75: 40}, {0.25: 1, 0.875: 9}, 0.75),
        ({0.0: 90}, {1.0: 9}, 0.5),  # whatever it is, it does not matter
        ({0.0: 90, 0.625: 3}, {1.0: 9}, 0.625),  # the nearest to .5 of those that leave the three out
        ({0.0: 90}, {0.375: 9}, 0.375 - 1 / NUM_BINS),
        ({0.0: 90}, {0.05: 1000, 0.7: 1}, 0.5),  # below .1 no threshold is looked for
        ({0.95: 90}, {0.99: 1}, 0.5),  # nor above .9
    ],
)
def test_a_threshold_by_hand(false: dict[float, int], true: dict[float, int], expected: float):
    assert fit_threshold([_histogram(false, true)]) == expected


def test_patients_count_alike_however_large_their_tumours():
    low = _histogram({0.0: 5}, {0.25: 1000})
    high = _histogram({0.0: 5, 0.5: 10}, {0.75: 10})
    assert fit_threshold([low]) == 0.25 - 1 / NUM_BINS
    assert fit_threshold([low, high]) == 0.25 - 1 / NUM_BINS  # 1 and 2/3 are more than 0 and 1
    assert fit_threshold([low, high, high, high]) == 0.5


def test_a_region_that_is_nowhere_keeps_its_threshold():
    nothing, something = _histogram({0.0: 5, 0.75: 2}, {}), _histogram({0.0: 5}, {0.25: 5})
    assert fit_threshold([nothing]) is None
    # Where a case holds it, those that do not ask for silence.
    assert fit_threshold([nothing, something, something]) == 0.25 - 1 / NUM_BINS
    assert fit_threshold([nothing, nothing, _histogram({0.0: 5}, {0.875: 5})]) == 0.75
    cases = [{"wt": something, "tc": nothing, "et": something}] * 2
    fitted = 0.25 - 1 / NUM_BINS
    assert fit_thresholds(cases, (0.5, 0.375, 0.5)) == (fitted, 0.375, fitted)


def test_a_mask_that_does_not_tell_a_region_does_not_count_for_it():
    low, high = _histogram({0.0: 5}, {0.25: 5}), _histogram({0.0: 5}, {0.75: 5})
    silent = _histogram({0.0: 5, 0.875: 2}, {})
    cases = [{"wt": low, "tc": low, "et": low}, {"wt": high}]
    fitted = 0.25 - 1 / NUM_BINS
    assert fit_thresholds(cases, (0.5, 0.5, 0.5)) == (fitted, fitted, fitted)
    assert fit_thresholds([*cases, {"wt": low, "tc": silent}, {"tc": silent}], (0.5, 0.5, 0.5))[1] == 0.875
    assert fit_thresholds([{"wt": low}], (0.5, 0.375, 0.625)) == (fitted, 0.375, 0.625)


def _dice(probs: np.ndarray, truth: np.ndarray, threshold: float, num_unseen: int) -> float:
    found = probs > threshold
    marked = found.sum() + truth.sum() + num_unseen
    return float(2 * (found & truth).sum() / marked) if marked else 1.0


def test_equals_trying_every_threshold():
    rng = np.random.default_rng(0)
    for trial in range(10):
        cases = []
        for number in range(4):
            truth = rng.random((12, 12, 12)) < 0.1 * (number > 0)
            noise = rng.random(truth.shape)
            probs = np.where(truth, noise ** rng.uniform(0.5, 3), noise ** rng.uniform(2, 8)).astype(
                np.float32
            )
            # A tenth of the voxels lie on the thresholds themselves, where > and >= part.
            probs = np.where(rng.random(truth.shape) < 0.1, np.round(probs * NUM_BINS) / NUM_BINS, probs)
            cases.append((probs.astype(np.float32), truth, 20 * (number == 2)))
        scores = [
            np.mean([_dice(*case[:2], threshold, case[2]) for case in cases]) for threshold in THRESHOLDS
        ]
        found = fit_threshold([region_histogram(*case) for case in cases])
        assert scores[THRESHOLDS.index(found)] == pytest.approx(max(scores), abs=1e-12), trial
        assert max(scores) > min(scores)
