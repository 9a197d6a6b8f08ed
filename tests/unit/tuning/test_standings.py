"""What is said of a tournament's runs, from runs made up by hand."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest

from glioray.tasks.segmentation.standings import (
    rank_entrants,
    reading,
    standings_csv,
    standings_markdown,
    winner,
)


def play(label: str, dice: dict[str, float], *, fold: int = 0, seed: int = 0, **more: Any) -> dict[str, Any]:
    """A complete run that gave each case that Dice in all regions."""
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


PATIENTS = [f"p{number}" for number in range(10)]


def test_folds_are_put_together_and_the_best_comes_first():
    half = dict.fromkeys(PATIENTS[:5], 0.4), dict.fromkeys(PATIENTS[5:], 0.6)
    plays = [play("weak", half[0], fold=0), play("weak", half[1], fold=1)]
    plays += [
        play("strong", dict.fromkeys(PATIENTS[:5], 0.8)),
        play("strong", dict.fromkeys(PATIENTS[5:], 0.9), fold=1),
    ]
    first, second = rank_entrants(plays)
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
    plays = [play("one", dict.fromkeys(PATIENTS, value), seed=seed) for seed, value in enumerate((0.2, 0.8))]
    (only,) = rank_entrants(plays)
    # Were runs resampled, the interval would be wide.
    assert (only.dice["mean"].low, only.dice["mean"].high) == pytest.approx((0.5, 0.5))
    assert only.num_runs == 2


def test_cases_of_one_patient_are_no_independent_evidence():
    pairs = {f"p{n}-{study}": float(n % 2) for n in range(6) for study in "ab"}
    (paired,) = rank_entrants([play("paired", pairs)])
    (alone,) = rank_entrants([play("alone", {f"p{n}x{s}": v for n, (s, v) in enumerate(pairs.items())})])
    assert (
        paired.dice["mean"].high - paired.dice["mean"].low > alone.dice["mean"].high - alone.dice["mean"].low
    )


def test_an_entrant_with_a_failed_run_comes_last_and_says_why():
    plays = [play("lucky", dict.fromkeys(PATIENTS[:5], 0.9)), failed("lucky", 1)]
    plays += [
        play("steady", dict.fromkeys(PATIENTS[:5], 0.5)),
        play("steady", dict.fromkeys(PATIENTS[5:], 0.5), fold=1),
    ]
    first, last = rank_entrants(plays)
    assert [first.label, last.label] == ["steady", "lucky"]
    assert (last.num_failed, last.num_runs, last.reason, last.behind) == (1, 2, "diverged", None)
    text = reading([first, last], num_folds=2, num_seeds=1, budget="3 minutes")
    assert "Not judged on every case: lucky (diverged)" in text
    assert "1 of 2 runs failed: diverged" in standings_markdown([first, last])


def test_an_entrant_that_never_finished_has_no_figures():
    first, last = rank_entrants([play("good", dict.fromkeys(PATIENTS, 0.5)), failed("bad", 0)])
    assert (last.label, last.dice, last.case_dice, last.num_parameters) == ("bad", {}, {}, 0)
    rows = list(csv.DictReader(io.StringIO(standings_csv([first, last]))))
    assert rows[1]["dice_mean"] == ""
    assert "no ranking" in reading([last], num_folds=2, num_seeds=1, budget="x")


def test_the_reading_tells_what_can_be_told_apart():
    rng = np.random.default_rng(0)
    base = dict(zip(PATIENTS, rng.uniform(0.5, 0.7, 10), strict=True))
    noise = dict(zip(PATIENTS, rng.normal(0, 0.05, 10), strict=True))
    plays = [
        play("first", {p: v + 0.01 for p, v in base.items()}),
        play("twin", {p: v + noise[p] - np.mean(list(noise.values())) for p, v in base.items()}),
        play("poor", {p: v - 0.3 for p, v in base.items()}),
    ]
    standings = rank_entrants(plays)
    assert [row.label for row in standings] == ["first", "twin", "poor"]
    text = reading(standings, num_folds=5, num_seeds=1, budget="100 slices")
    assert "ahead of poor beyond" in text
    assert "cannot be told apart from twin" in text
    assert "with one seed the luck" in text
    assert "10 cases" in text


def test_one_patient_says_nothing_of_the_spread():
    (only,) = rank_entrants([play("one", {"p0": 0.5})])
    assert (only.dice["mean"].low, only.dice["mean"].high) == (0.0, 1.0)


def test_the_tables_hold_every_figure():
    standings = rank_entrants(
        [play("a|b", dict.fromkeys(PATIENTS, 0.5)), play("c", dict.fromkeys(PATIENTS, 0.25))]
    )
    table = standings_markdown(standings).splitlines()
    assert len({line.count("|") for line in table}) == 1  # a bar in a name does not break the table
    assert "0.500 [0.500, 0.500]" in table[2]
    rows = list(csv.DictReader(io.StringIO(standings_csv(standings))))
    assert [float(row["dice_mean"]) for row in rows] == [0.5, 0.25]
    assert float(rows[1]["behind"]) == pytest.approx(0.25)
    assert rows[0]["behind"] == ""
    assert {"rank", "entrant", "dice_wt_low", "hd95_mm_et", "num_parameters", "slices_per_s"} <= set(rows[0])


def test_of_few_patients_the_reading_says_that_intervals_are_too_narrow():
    def told(num_patients: int) -> str:
        patients = [f"p{number}" for number in range(num_patients)]
        plays = [play("first", dict.fromkeys(patients, 0.51)), play("second", dict.fromkeys(patients, 0.5))]
        return reading(rank_entrants(plays), num_folds=2, num_seeds=1, budget="3 minutes")

    # Two patients that agree by a hair: no resample holds 0, and the difference counts for nothing.
    assert "ahead of second beyond" in told(2)
    assert "2 cases of 2 patients; intervals by resampling so few patients are too narrow" in told(2)
    assert "so few patients are too narrow" in told(9)
    assert "so few patients" not in told(10)
    assert "1 case of 1 patient; one patient says nothing of the spread" in told(1)


def test_the_reading_says_how_many_comparisons_there_were_and_what_minutes_are():
    plays = [
        play(name, dict.fromkeys(PATIENTS, dice)) for name, dice in (("a", 0.8), ("b, wide", 0.5), ("c", 0.4))
    ]
    text = reading(rank_entrants(plays), num_folds=2, num_seeds=1, budget="3 minutes")
    assert "ahead of b, wide; c beyond" in text  # labels may hold commas
    assert "corrected neither for the 2 comparisons nor for the first having been picked" in text
    assert "validation and saving among them" in text
    assert "validation" not in reading(rank_entrants(plays), num_folds=2, num_seeds=1, budget="9 slices")


def test_who_was_not_judged_on_every_case_has_not_won():
    half = [play("half", dict.fromkeys(PATIENTS[:5], 0.9)), failed("half", 1)]
    assert winner(rank_entrants(half)) is None
    won = winner(rank_entrants([*half, play("whole", dict.fromkeys(PATIENTS, 0.1))]))
    assert won is not None
    assert won.label == "whole"


def test_a_reason_of_several_lines_does_not_break_the_table():
    broken = {**failed("bad", 0), "reason": "first line\nsecond | line"}
    table = standings_markdown(rank_entrants([play("good", dict.fromkeys(PATIENTS, 0.5)), broken]))
    assert len(table.splitlines()) == 4
    assert "first line second / line" in table
