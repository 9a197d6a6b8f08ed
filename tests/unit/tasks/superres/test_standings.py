"""The ranking of super-resolution GANs and its interpretation, from results written by hand."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from glioray.tasks.superres.standings import (
    interpret,
    rank_entrants,
    run_metrics,
    text_table,
    value_table,
    winner,
)


def row(epoch: int, quality: float, **more: float) -> dict[str, float]:
    metrics = {"epoch": epoch, "quality": quality, "collapse_score": 0.0, "gain_psnr": 1.0, "hfen": 0.3}
    return {**metrics, "hf_db": -3.0, "stage": 0.0, "slices_per_s": 80.0, **more}


def result(
    label: str, seed: int, quality: float, state: str = "complete", **figures: float
) -> dict[str, Any]:
    if state == "failed":
        return {"label": label, "seed": seed, "state": state, "reason": "the loss became nan", "history": []}
    return {
        "label": label,
        "seed": seed,
        "state": state,
        "reason": "collapsed: texture 0.90" if state == "collapsed" else "",
        "minutes": 2.0,
        "num_slices": 320,
        "num_parameters": 1000,
        "num_critic_parameters": 2000,
        "figures": {"quality": quality, "worst_collapse": 0.1, **figures},
    }


def test_metrics_are_of_the_last_validation_and_the_worst_collapse():
    history = [
        row(1, 0.2),
        row(2, 0.46, collapse_score=0.4),
        row(3, 0.6, stage=1.0, slices_per_s=40.0),
        row(4, 0.5, stage=1.0, slices_per_s=20.0, dice_sr=0.7, dice_bicubic=0.6, lpips=0.1),
    ]
    metrics = run_metrics(history, batch_size=8)
    assert metrics["quality"] == 0.5
    assert metrics["epochs_to_90"] == 2
    assert metrics["worst_collapse"] == 0.4
    assert metrics["steps_per_s"] == 30 / 8  # the pixel stage has no discriminator to train
    assert metrics["gain_dice"] == pytest.approx(0.1)
    worse = run_metrics([row(1, -0.2), row(2, -0.1)], batch_size=8)
    assert not {"epochs_to_90", "steps_per_s", "gain_dice", "lpips"} & set(worse)


def test_a_dead_run_counts_against_its_entrant():
    standings = rank_entrants([result("A", 0, 0.9, "dead"), result("B", 0, 0.1)])
    assert [(row.label, row.num_dead, row.num_collapsed) for row in standings] == [("B", 0, 0), ("A", 1, 0)]
    assert [row[2] for row in text_table(standings).rows] == ["1 of 1", "0 of 1"]
    text = interpret(standings, budget="10 minutes", num_seeds=1, panel="64 images", judge="")
    assert "A: 1 of 1 runs died" in text


def test_collapsed_and_failed_entrants_are_last():
    results = [
        *(result("best but unstable", seed, 0.9, "collapsed" if seed else "complete") for seed in (0, 1)),
        *(result("second", seed, 0.3 + 0.1 * seed) for seed in (0, 1)),
        *(result("first", seed, 0.5 + 0.1 * seed) for seed in (0, 1)),
        *(result("lost", seed, 0.0, "failed") for seed in (0, 1)),
    ]
    standings = rank_entrants(results)
    assert [(r.rank, r.label) for r in standings] == [
        (1, "first"), (2, "second"), (3, "best but unstable"), (4, "lost"),
    ]  # fmt: skip
    first, _, unstable, lost = standings
    assert winner(standings) == first
    quality = first.metrics["quality"]
    assert (quality.mean, quality.low, quality.high) == (pytest.approx(0.55), 0.5, 0.6)
    assert (unstable.num_collapsed, unstable.reason) == (1, "collapsed: texture 0.90")
    assert (lost.num_failed, lost.metrics, lost.num_parameters) == (2, {}, 0)
    assert winner(rank_entrants(results[:2])) is None
    assert winner([]) is None


def test_tables_hold_every_entrant_and_the_metrics_at_hand():
    results = [result("A|B", 0, 0.5), result("A|B", 1, 0.7), result("lost", 0, 0, "failed")]
    standings = rank_entrants(results)
    lines = text_table(standings).to_markdown().splitlines()
    assert "| 1 | A/B | 2 of 2 | 0.600 [0.500, 0.700] | 0.10 |" in lines[2]
    assert "0 of 1" in lines[3]
    assert "the loss became nan" in lines[3]
    assert len({line.count("|") for line in lines}) == 1
    assert "LPIPS" not in lines[0]
    first, lost = csv.DictReader(io.StringIO(value_table(standings).to_csv()))
    assert (first["label"], first["quality"], first["quality_low"]) == ("A|B", "0.6", "0.5")
    assert (lost["quality"], lost["reason"]) == ("", "the loss became nan")


def text_of(results: list[dict[str, Any]], num_seeds: int, judge: str = "vgg16 1234") -> str:
    return interpret(
        rank_entrants(results),
        budget="2 minutes",
        num_seeds=num_seeds,
        panel="64 images of 3 patients",
        judge=judge,
    )


def test_interpretation_states_what_the_table_cannot():
    apart = [result("A", seed, 0.5 + 0.01 * seed, gain_psnr=0.5) for seed in range(3)]
    apart += [result("B", seed, 0.1 + 0.01 * seed, gain_psnr=1.25) for seed in range(3)]
    text = text_of(apart, 3)
    assert "A comes first with quality 0.510 [0.500, 0.520], 0.400 ahead of B" in text
    assert "do not overlap" in text
    assert "B (+1.25 dB over bicubic)" in text
    assert "64 images of 3 patients: the range over seeds shows" in text
    assert "LPIPS by vgg16 1234" in text
    assert "not which part of it" in text
    assert "too few" not in text

    mixed = [result("A", 0, 0.5), result("A", 1, 0.2), result("B", 0, 0.3), result("B", 1, 0.35)]
    text = text_of(mixed, 2, judge="")
    assert "the ranges over seeds overlap" in text
    assert "2 seeds are too few" in text
    assert "HFEN, since no extractor" in text

    assert "with one seed each, this may be chance" in text_of([result("A", 0, 0.5), result("B", 0, 0.2)], 1)
    lone = text_of([result("A", 0, 0.5, "collapsed")], 1)
    assert "there is no winner" in lone
    assert "A: 1 of 1 runs collapsed (collapsed: texture 0.90)." in lone
    assert "several things" not in lone
    assert "64 images of 3 patients: the table shows nothing about other patients" in lone
    assert "pixel by pixel" not in lone
    others = text_of([result("A", 0, 0.5), result("B", 0, 0.9, "collapsed")], 1)
    assert "no other entrant stayed healthy" in others
