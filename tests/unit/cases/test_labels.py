"""Converting to internal labels and back changes nothing."""

import itertools

import numpy as np
import pytest

from glioray.cases.conventions import CONVENTIONS, find_convention
from glioray.cases.labels import LABELS, REGION_LABELS, from_internal, labels_in, to_internal
from glioray.errors import CaseError


@pytest.mark.parametrize("name", CONVENTIONS)
def test_round_trip(name: str) -> None:
    convention = CONVENTIONS[name]
    numbers = np.array(sorted(convention.to_internal))
    for dtype, order in itertools.product(("uint8", "int16", "float32", "float64"), "CF"):
        case = f"{dtype}, order {order}"
        whole = np.asarray(np.random.default_rng(0).choice(numbers, (6, 7, 8)), dtype=dtype, order=order)
        stored = whole[::-1, :, ::2]
        internal = to_internal(stored, convention)
        assert internal.dtype == np.uint8, case
        expected = np.vectorize(convention.to_internal.__getitem__)(stored.astype(int))
        np.testing.assert_array_equal(internal, expected, case)
        if len(set(convention.to_internal.values())) == len(numbers):
            np.testing.assert_array_equal(from_internal(internal, convention), stored, case)
        # Numbers that mark the same part become the lowest of them.
        np.testing.assert_array_equal(
            to_internal(from_internal(internal, convention), convention), internal, case
        )


def test_regions_are_nested_and_exclude_the_cavity() -> None:
    assert set(REGION_LABELS["et"]) < set(REGION_LABELS["tc"]) < set(REGION_LABELS["wt"])
    assert LABELS.index("rc") not in REGION_LABELS["wt"]
    # Each tissue has the same internal label in every convention.
    assert [CONVENTIONS["msd"].to_internal[n] for n in (1, 2, 3)] == [
        LABELS.index(x) for x in ("ed", "ncr", "et")
    ]
    assert [CONVENTIONS["brats-et4"].to_internal[n] for n in (1, 2, 4)] == [
        LABELS.index(x) for x in ("ncr", "ed", "et")
    ]
    assert CONVENTIONS["brats2024"].to_internal[4] == LABELS.index("rc")


def test_nearly_whole_numbers_are_rounded() -> None:
    mask = np.array([0.0, 0.99999997, 2.0000002, 4.0], dtype=np.float32)
    assert labels_in(mask) == {0, 1, 2, 4}
    assert to_internal(mask, CONVENTIONS["brats-et4"]).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("value", [0.5, 1.3, np.nan, np.inf])
def test_fractions_are_rejected(value: float) -> None:
    mask = np.array([0, 1, value, 2], dtype=np.float32)
    with pytest.raises(
        CaseError, match=r"case A: seg\.nii: holds .* \(1 such voxels\); expected whole numbers"
    ):
        to_internal(mask, CONVENTIONS["brats-et3"], case_id="A", file="seg.nii")


@pytest.mark.parametrize("value", [3, 5, 255, -1])
def test_unknown_labels_are_rejected(value: int) -> None:
    with pytest.raises(CaseError, match=rf"holds the label {value}; the convention brats-et4 has 0, 1, 2, 4"):
        to_internal(np.array([0, value, 1], dtype=np.int16), CONVENTIONS["brats-et4"])


def test_a_label_missing_in_the_convention_is_rejected() -> None:
    with pytest.raises(
        CaseError, match=r"holds RC, for which the convention brats-et4 has no number; .*such as brats2024"
    ):
        from_internal(np.array([0, 4], dtype=np.uint8), CONVENTIONS["brats-et4"])


def test_an_image_is_not_accepted_as_a_mask() -> None:
    with pytest.raises(CaseError, match="holds 99 different values"):
        labels_in(np.arange(100, dtype=np.int16))


def test_whole_tumour_conventions_have_one_number_for_all_tumour_labels() -> None:
    predicted = np.array([0, 1, 2, 3, 4], dtype=np.uint8)
    assert from_internal(predicted, CONVENTIONS["wt"]).tolist() == [0, 1, 1, 1, 0]
    assert from_internal(predicted, CONVENTIONS["wt-255"]).tolist() == [0, 255, 255, 255, 0]
    assert {name for name, c in CONVENTIONS.items() if c.regions == ("wt",)} == {"wt", "wt-255"}
    # A core that is not divided has one number too, and what is around it none.
    assert from_internal(predicted, CONVENTIONS["brats-gtv"]).tolist() == [0, 1, 0, 1, 0]
    assert from_internal(predicted, find_convention("1=tc,2=ed")).tolist() == [0, 1, 2, 1, 0]
    assert from_internal(predicted, find_convention("1=wt,2=et")).tolist() == [0, 1, 1, 2, 0]


def test_cysts_and_non_enhancing_tumour_of_children_are_core() -> None:
    ped = CONVENTIONS["brats-ped"]
    internal = to_internal(np.arange(5, dtype=np.uint8), ped)
    inside = {name: np.isin(internal, labels).tolist() for name, labels in REGION_LABELS.items()}
    assert inside == {
        "et": [False, True, False, False, False],
        "tc": [False, True, True, True, False],
        "wt": [False, True, True, True, True],
    }
    assert from_internal(internal, ped).tolist() == [0, 1, 2, 2, 4]
