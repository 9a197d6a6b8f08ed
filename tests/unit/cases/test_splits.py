"""Splits never divide a patient and are reproducible."""

import itertools

import pytest

from glioray.cases.splits import fold_patients, split_patients
from glioray.errors import UsageError

TEN = [f"P{n:02}" for n in range(10)]


def test_ten_patients_in_order() -> None:
    splits = split_patients(reversed(TEN), (0.8, 0.2, 0.0))
    assert splits == {"train": tuple(TEN[:8]), "val": tuple(TEN[8:]), "test": ()}


@pytest.mark.parametrize("ratios", [(0.8, 0.2, 0.0), (0.7, 0.15, 0.15), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)])
def test_every_patient_is_in_one_split(ratios: tuple[float, float, float]) -> None:
    for count, shuffle in itertools.product(range(23), (False, True)):
        case = f"{count} patients, shuffle={shuffle}"
        patients = [f"P{n}" for n in range(count)]
        splits = split_patients(patients, ratios, shuffle=shuffle)
        assert sorted(p for ids in splits.values() for p in ids) == sorted(patients), case
        for fraction, ids in zip(ratios, splits.values(), strict=True):
            assert abs(len(ids) - fraction * count) <= 1.5, case
            assert (len(ids) > 0) == (fraction > 0) or count < sum(r > 0 for r in ratios), case


def test_shuffling_depends_on_the_seed_and_each_id_alone() -> None:
    one = split_patients(TEN, (0.5, 0.5, 0), shuffle=True, seed=1)
    assert one == split_patients(TEN[::-1], (0.5, 0.5, 0), shuffle=True, seed=1)
    assert one != split_patients(TEN, (0.5, 0.5, 0), shuffle=True, seed=2)
    # A fixed result: other machines and versions must give the same.
    assert one["train"] == ("P00", "P01", "P03", "P07", "P08")


def test_folds_hold_every_patient_once() -> None:
    folds = fold_patients(TEN, 3, seed=4)
    assert sorted(len(fold) for fold in folds) == [3, 3, 4]
    assert sorted(p for fold in folds for p in fold) == TEN
    assert folds == fold_patients(TEN[::-1] + TEN, 3, seed=4)
    assert folds != fold_patients(TEN, 3, seed=5)


def test_no_more_folds_than_patients() -> None:
    assert len(fold_patients(["a", "b"], 5)) == 2
    assert fold_patients([], 5) == ()


@pytest.mark.parametrize("ratios", [(0.8, 0.1, 0.0), (1.2, -0.2, 0.0)])
def test_ratios_must_add_up_to_one(ratios: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError, match="add up to 1"):
        split_patients(TEN, ratios)


def test_a_single_fold_is_rejected() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        fold_patients(TEN, 1)
