"""The ranking of segmentation models and its interpretation, from results written by hand."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest

from glioray.tasks.segmentation.slicewise import slice_sums
from glioray.tasks.segmentation.standings import (
    Standing,
    interpret,
    rank_entrants,
    text_table,
    value_table,
    winner,
)


def complete(
    label: str, dice: dict[str, float], *, fold: int = 0, seed: int = 0, **more: Any
) -> dict[str, Any]:
    """A complete run with that Dice of each case in all regions."""
    cases = {
        case_id: {
            "patient": case_id.split("-")[0],
            "regions": {name: {"dice": value, "hd95_mm": 10.0} for name in ("wt", "tc", "et")},
            "confusion": np.eye(5, dtype=int).tolist(),
        }
        for case_id, value in dice.items()
    }
    return {
        "label": label, "fold": fold, "seed": seed, "state": "complete", "reason": "", "cases": cases,
        "num_parameters": 1000, "minutes": 2.0, "num_slices": 100, "slices_per_s": 5.0, "history": [], **more,
    }  # fmt: skip


def failed(label: str, fold: int) -> dict[str, Any]:
    return {
        "label": label,
        "fold": fold,
        "seed": 0,
        "state": "failed",
        "reason": "diverged",
        "cases": {},
        "history": [],
    }


def markdown(standings: list[Standing]) -> str:
    return text_table(standings).to_markdown()


def csv_text(standings: list[Standing]) -> str:
    return value_table(standings).to_csv()


PATIENTS = [f"p{number}" for number in range(10)]


def test_folds_are_joined_and_the_best_comes_first():
    half = dict.fromkeys(PATIENTS[:5], 0.4), dict.fromkeys(PATIENTS[5:], 0.6)
    results = [complete("weak", half[0], fold=0), complete("weak", half[1], fold=1)]
    results += [
        complete("strong", dict.fromkeys(PATIENTS[:5], 0.8)),
        complete("strong", dict.fromkeys(PATIENTS[5:], 0.9), fold=1),
    ]
    first, second = rank_entrants(results)
    assert [first.label, second.label] == ["strong", "weak"]
    assert second.dice["mean"].mean == pytest.approx(0.5)
    assert second.dice["wt"].low < 0.5 < second.dice["wt"].high
    assert len(second.case_dice) == 10
    assert first.behind is None
    # .4 behind in one half and .3 in the other.
    assert second.behind is not None
    assert second.behind.mean == pytest.approx(0.35)
    assert 0.3 <= second.behind.low < 0.35 < second.behind.high <= 0.4
    assert second.hd95_mm == {"wt": 10.0, "tc": 10.0, "et": 10.0}


def test_seeds_are_averaged_case_by_case_before_patients_are_resampled():
    results = [
        complete("one", dict.fromkeys(PATIENTS, value), seed=seed) for seed, value in enumerate((0.2, 0.8))
    ]
    (only,) = rank_entrants(results)
    # Were runs resampled, the interval would be wide.
    assert (only.dice["mean"].low, only.dice["mean"].high) == pytest.approx((0.5, 0.5))
    assert only.num_runs == 2


def test_cases_of_one_patient_are_not_independent():
    pairs = {f"p{n}-{study}": float(n % 2) for n in range(6) for study in "ab"}
    (paired,) = rank_entrants([complete("paired", pairs)])
    (alone,) = rank_entrants([complete("alone", {f"p{n}x{s}": v for n, (s, v) in enumerate(pairs.items())})])
    assert (
        paired.dice["mean"].high - paired.dice["mean"].low > alone.dice["mean"].high - alone.dice["mean"].low
    )


def test_entrant_with_a_failed_run_is_last_with_the_reason():
    results = [complete("lucky", dict.fromkeys(PATIENTS[:5], 0.9)), failed("lucky", 1)]
    results += [
        complete("steady", dict.fromkeys(PATIENTS[:5], 0.5)),
        complete("steady", dict.fromkeys(PATIENTS[5:], 0.5), fold=1),
    ]
    first, last = rank_entrants(results)
    assert [first.label, last.label] == ["steady", "lucky"]
    assert (last.num_failed, last.num_runs, last.reason, last.behind) == (1, 2, "diverged", None)
    text = interpret([first, last], num_folds=2, num_seeds=1, budget="3 minutes")
    assert "Not evaluated on every case: lucky (diverged)" in text
    assert "1 of 2 runs failed: diverged" in markdown([first, last])


def test_entrant_without_complete_runs_has_no_metrics():
    first, last = rank_entrants([complete("good", dict.fromkeys(PATIENTS, 0.5)), failed("bad", 0)])
    assert (last.label, last.dice, last.case_dice, last.num_parameters) == ("bad", {}, {}, 0)
    rows = list(csv.DictReader(io.StringIO(csv_text([first, last]))))
    assert rows[1]["dice_mean"] == ""
    assert "no ranking" in interpret([last], num_folds=2, num_seeds=1, budget="x")


def test_interpretation_distinguishes_clear_from_unclear_differences():
    rng = np.random.default_rng(0)
    base = dict(zip(PATIENTS, rng.uniform(0.5, 0.7, 10), strict=True))
    noise = dict(zip(PATIENTS, rng.normal(0, 0.05, 10), strict=True))
    results = [
        complete("first", {p: v + 0.01 for p, v in base.items()}),
        complete("twin", {p: v + noise[p] - np.mean(list(noise.values())) for p, v in base.items()}),
        complete("poor", {p: v - 0.3 for p, v in base.items()}),
    ]
    standings = rank_entrants(results)
    assert [row.label for row in standings] == ["first", "twin", "poor"]
    text = interpret(standings, num_folds=5, num_seeds=1, budget="100 slices")
    assert "ahead of poor by more than resampling patients explains" in text
    assert "cannot be distinguished from twin" in text
    assert "with one seed, the effect of initial weights" in text
    assert "10 cases" in text


def test_one_patient_does_not_show_the_spread():
    (only,) = rank_entrants([complete("one", {"p0": 0.5})])
    assert (only.dice["mean"].low, only.dice["mean"].high) == (0.0, 1.0)


def test_tables_hold_every_number():
    standings = rank_entrants(
        [complete("a|b", dict.fromkeys(PATIENTS, 0.5)), complete("c", dict.fromkeys(PATIENTS, 0.25))]
    )
    table = markdown(standings).splitlines()
    assert len({line.count("|") for line in table}) == 1  # a bar in a name does not break the table
    assert "0.500 [0.500, 0.500]" in table[2]
    rows = list(csv.DictReader(io.StringIO(csv_text(standings))))
    assert [float(row["dice_mean"]) for row in rows] == [0.5, 0.25]
    assert float(rows[1]["behind"]) == pytest.approx(0.25)
    assert rows[0]["behind"] == ""
    assert {"rank", "entrant", "dice_wt_low", "hd95_mm_et", "num_parameters", "slices_per_s"} <= set(rows[0])


def test_interpretation_warns_of_intervals_over_few_patients():
    def text_of(num_patients: int) -> str:
        patients = [f"p{number}" for number in range(num_patients)]
        results = [
            complete("first", dict.fromkeys(patients, 0.51)),
            complete("second", dict.fromkeys(patients, 0.5)),
        ]
        return interpret(rank_entrants(results), num_folds=2, num_seeds=1, budget="3 minutes")

    # Two patients that agree by a hair: no resample holds 0, and the difference counts for nothing.
    assert "ahead of second by more than" in text_of(2)
    assert "2 cases of 2 patients; intervals by resampling so few patients are too narrow" in text_of(2)
    assert "so few patients are too narrow" in text_of(9)
    assert "so few patients" not in text_of(10)
    assert "1 case of 1 patient; one patient does not show the spread" in text_of(1)


def test_interpretation_states_number_of_comparisons_and_what_minutes_include():
    results = [
        complete(name, dict.fromkeys(PATIENTS, dice))
        for name, dice in (("a", 0.8), ("b, wide", 0.5), ("c", 0.4))
    ]
    text = interpret(rank_entrants(results), num_folds=2, num_seeds=1, budget="3 minutes")
    assert "ahead of b, wide; c by more than" in text  # labels may hold commas
    assert "corrected neither for 2 comparisons nor for selecting the top entrant by its result" in text
    assert "including validation and saving" in text
    assert "validation" not in interpret(rank_entrants(results), num_folds=2, num_seeds=1, budget="9 slices")


def test_winner_was_evaluated_on_every_case():
    half = [complete("half", dict.fromkeys(PATIENTS[:5], 0.9)), failed("half", 1)]
    assert winner(rank_entrants(half)) is None
    won = winner(rank_entrants([*half, complete("whole", dict.fromkeys(PATIENTS, 0.1))]))
    assert won is not None
    assert won.label == "whole"


def test_reason_of_several_lines_does_not_break_the_table():
    broken = {**failed("bad", 0), "reason": "first line\nsecond | line"}
    table = markdown(rank_entrants([complete("good", dict.fromkeys(PATIENTS, 0.5)), broken]))
    assert len(table.splitlines()) == 4
    assert "first line second / line" in table


def test_a_study_states_its_own_figures_beside_ours_of_the_same_kind():
    label = "1 3++_unet_nobridge"
    truth = np.zeros((2, 4, 4), np.uint8)
    truth[0, 0] = 2
    results = [complete(name, dict.fromkeys(PATIENTS, 0.5)) for name in (label, "mine")]
    for case in results[0]["cases"].values():
        case["slices"] = slice_sums(truth, np.zeros_like(truth))
    standings = rank_entrants(results)
    # By hand: two slices; background 1 and 12/12 of its voxels, oedema 0 and 1, the other two classes 1 and 1.
    assert next(row for row in standings if row.label == label).slicewise["sensitivity"] == pytest.approx(
        (1 + 0.5 + 1 + 1) / 4
    )
    table = {row["entrant"]: row for row in csv.DictReader(io.StringIO(csv_text(standings)))}
    assert (table[label]["study_recall"], table[label]["study_f1"]) == ("0.92805", "0.92965")
    assert table[label]["study_num_parameters"] == "8907396"
    assert float(table[label]["slice_recall"]) == pytest.approx(0.875)
    # Results of earlier versions have no sums over slices.
    assert (table["mine"]["study_recall"], table["mine"]["slice_recall"]) == ("", "")
    assert "| study's recall | our recall by slice | study's F1 | our F1 by slice |" in markdown(standings)
    assert "| 0.928 | 0.875 | 0.930 |" in markdown(standings)
    text = interpret(standings, num_folds=2, num_seeds=1, budget="3 minutes")
    assert "means over slices and over four classes: the background" in text
    others = rank_entrants([complete("mine", dict.fromkeys(PATIENTS, 0.5))])
    assert "study" not in markdown(others) + csv_text(others)
    assert "study" not in interpret(others, num_folds=2, num_seeds=1, budget="3 minutes")
