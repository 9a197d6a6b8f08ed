"""What trials and champions are ranked by: regions that cases have, and false alarms where they have none."""

from __future__ import annotations

import numpy as np
import pytest

from glioray.cases.load import Case
from glioray.config import REGIONS
from glioray.metrics.overlap import overlap_metrics
from glioray.tasks.segmentation.case_metrics import case_metrics
from glioray.tasks.segmentation.metrics import Counts, confusion, mean_dice
from glioray.tasks.segmentation.objective import Sizes, objective, region_sizes, sizes_of_metrics

ALL_FOUND = Sizes(10.0, 10.0, 10.0)
NOTHING = Sizes(0.0, 0.0, 0.0)


def table(*pairs: tuple[int, int, int]) -> Counts:
    """Counts of (true label, predicted label, voxels)."""
    counts = np.zeros((5, 5), np.int64)
    for truth, predicted, number in pairs:
        counts[truth, predicted] += number
    return counts


def test_never_predicting_a_region_no_longer_wins():
    """Of two cases one has no ET: under BraTS' rule a network that never predicts it gets .5 for that."""
    truth = [[(1, 100), (2, 400), (3, 100)], [(1, 200), (2, 400)]]
    all_necrosis = [table(*((label, 1, n) for label, n in case)) for case in truth]
    # Finds four fifths of each label and takes the rest for oedema, with 10 voxels of false ET in the other case.
    learning = [
        table(*((label, label, n * 4 // 5) for label, n in case), *((label, 2, n // 5) for label, n in case))
        for case in truth
    ]
    learning[1] += table((2, 3, 10))
    by_brats = [mean_dice(tables)["dice_et"] for tables in (all_necrosis, learning)]
    assert by_brats[0] == 0.5 > by_brats[1]
    terms = [
        objective([region_sizes(counts, 0.001) for counts in tables]) for tables in (all_necrosis, learning)
    ]
    assert terms[1]["objective"] > terms[0]["objective"] + 0.2
    assert terms[0]["false_alarms"] == 0


def test_a_false_alarm_costs_what_its_voxels_cost_beside_a_region():
    cases = [dict.fromkeys(REGIONS, ALL_FOUND), {"wt": ALL_FOUND, "tc": ALL_FOUND, "et": NOTHING}]
    assert objective(cases) == {"objective": 1.0, "present_dice": 1.0, "false_alarms": 0.0}
    for false_ml in (0.1, 2.0, 50.0):
        beside = [dict(cases[0]), cases[1]]
        beside[0]["et"] = Sizes(10.0, 10.0 + false_ml, 10.0)
        lost = 1 - objective(beside[:1])["objective"]
        alarmed = [cases[0], {**cases[1], "et": Sizes(0.0, false_ml, 0.0)}]
        terms = objective(alarmed)
        # Over two cases, of which one is false.
        assert terms["false_alarms"] == pytest.approx(lost / 2)
        assert terms["objective"] == pytest.approx(1 - lost / 2)


def test_regions_that_masks_do_not_tell_are_left_out():
    distinguished, whole = dict.fromkeys(REGIONS, ALL_FOUND), {"wt": Sizes(10.0, 5.0, 5.0)}
    assert objective([whole]) == {
        "objective": pytest.approx(2 / 3),
        "present_dice": pytest.approx(2 / 3),
        "false_alarms": 0,
    }
    assert objective([distinguished, whole])["objective"] == pytest.approx(((1 + 2 / 3) / 2 + 1 + 1) / 3)
    counts = table((2, 3, 5), (2, 0, 5))
    assert list(region_sizes(counts, 1.0, ("wt",))) == ["wt"]
    assert objective([]) == objective([{}]) == {}


def test_without_any_case_that_has_a_region_false_alarms_are_measured_by_the_whole_tumour():
    case = {"wt": ALL_FOUND, "tc": ALL_FOUND, "et": Sizes(0.0, 5.0, 0.0)}
    assert objective([case])["false_alarms"] == pytest.approx(5 / 25 / 3)
    empty = dict.fromkeys(REGIONS, NOTHING)
    assert objective([empty]) == {"objective": 0.0, "present_dice": 0.0, "false_alarms": 0.0}
    assert objective([dict.fromkeys(REGIONS, Sizes(0.0, 1.0, 0.0))])["objective"] == pytest.approx(-1)


def test_volumes_of_an_evaluation_equal_those_of_a_validation(case: Case):
    assert case.mask is not None
    answer = np.roll(case.mask, 1, axis=0)
    found = sizes_of_metrics(case_metrics(case, answer))
    counts = confusion(case.mask, answer)
    expected = region_sizes(counts, float(np.prod(case.spacing_mm)) / 1000)
    assert list(found) == list(expected) == list(REGIONS)
    for name in REGIONS:
        assert tuple(found[name]) == pytest.approx(tuple(expected[name]))
    dice = overlap_metrics(counts, (3,))["dice"]
    assert 0 < dice < 1
    assert objective([{"et": found["et"]}])["objective"] == pytest.approx(dice)
