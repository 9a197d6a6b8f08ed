"""Bootstrap intervals: where they must lie, and that patients and not cases are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from glioray.reports.intervals import bootstrap_interval


def test_equals_scipys_percentile_bootstrap():
    values = np.random.default_rng(1).beta(8, 2, 40)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2)
    ).confidence_interval
    found = bootstrap_interval(values, num_resamples=20_000)
    # Both are drawn: they agree to a small part of the interval's width.
    assert found == pytest.approx(tuple(expected), abs=0.03 * (expected.high - expected.low))


def test_two_patients_by_hand():
    # The means of a resample are 0 (1/4), 0.5 (1/2) and 1 (1/4).
    assert bootstrap_interval([0.0, 1.0]) == (0, 1)
    assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5)


def test_constant_values_leave_no_doubt():
    assert bootstrap_interval([0.75] * 7) == (0.75, 0.75)


def test_patients_are_drawn_with_all_their_cases():
    values = [0.2, 0.2, 0.2, 0.8]
    low, high = bootstrap_interval(values, ["a", "a", "a", "b"])
    assert (low, high) == pytest.approx((0.2, 0.8))
    # A resample of both has the mean of all four cases, not of two patients.
    assert bootstrap_interval(values, ["a", "a", "a", "b"], level=0.4) == pytest.approx((0.35, 0.35))


def test_copies_of_a_patient_s_case_are_no_more_evidence():
    values = np.random.default_rng(0).random(12)
    once = bootstrap_interval(values)
    thrice = bootstrap_interval(np.repeat(values, 3), np.repeat(np.arange(12), 3).tolist())
    assert thrice == pytest.approx(once)
    naive = bootstrap_interval(np.repeat(values, 3))
    assert naive[1] - naive[0] < 0.7 * (once[1] - once[0])


def test_the_seed_decides_and_the_order_of_patients_does_not_bias():
    values = np.random.default_rng(3).random(30)
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(values, seed=4)
    assert bootstrap_interval(values, seed=4) != bootstrap_interval(values, seed=5)
    assert bootstrap_interval(values[::-1]) == pytest.approx(bootstrap_interval(values), abs=0.01)


def test_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_interval(rng.normal(0.8, 0.1, 40), num_resamples=400)
        hits += low <= 0.8 <= high
    assert 0.88 <= hits / 200 <= 0.99


@pytest.mark.parametrize(
    ("values", "patients", "options", "message"),
    [
        ([0.5], None, {}, "an interval needs at least 2 patients, found 1"),
        ([0.5, 0.6], ["a", "a"], {}, "an interval needs at least 2 patients, found 1"),
        ([0.5, 0.6], ["a"], {}, "2 values but 1 patients; expected one patient for each value"),
        ([0.5, float("nan")], None, {}, "a value is not finite"),
        ([0.5, 0.6], None, {"level": 95}, "level is 95; expected a value between 0 and 1"),
    ],
)
def test_invalid_input_is_refused(
    values: list[float], patients: list[str] | None, options: dict[str, float], message: str
):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, patients, **options)
