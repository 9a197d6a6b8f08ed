"""What is said of a comparison of super-resolution GANs; no Ray."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from glioray.tasks.superres.standings import (
    gan_reading,
    gan_table_csv,
    gan_table_markdown,
    gan_winner,
    rank_gans,
    run_figures,
)


def row(epoch: int, quality: float, **more: float) -> dict[str, float]:
    figures = {"epoch": epoch, "quality": quality, "collapse_score": 0.0, "gain_psnr": 1.0, "hfen": 0.3}
    return {**figures, "hf_db": -3.0, "stage": 0.0, "slices_per_s": 80.0, **more}


def play(label: str, seed: int, quality: float, state: str = "complete", **figures: float) -> dict[str, Any]:
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


def test_a_run_is_told_by_its_last_validation_and_its_worst():
    history = [
        row(1, 0.2),
        row(2, 0.46, collapse_score=0.4),
        row(3, 0.6, stage=1.0, slices_per_s=40.0),
        row(4, 0.5, stage=1.0, slices_per_s=20.0, dice_sr=0.7, dice_bicubic=0.6, lpips=0.1),
    ]
    figures = run_figures(history, batch_size=8)
    assert figures["quality"] == 0.5
    assert figures["epochs_to_90"] == 2
    assert figures["worst_collapse"] == 0.4
    assert figures["steps_per_s"] == 30 / 8  # the pixel stage has no discriminator to train
    assert figures["gain_dice"] == pytest.approx(0.1)
    worse = run_figures([row(1, -0.2), row(2, -0.1)], batch_size=8)
    assert not {"epochs_to_90", "steps_per_s", "gain_dice", "lpips"} & set(worse)


def test_who_collapsed_or_failed_comes_after_all_who_did_not():
    plays = [
        *(play("best but unstable", seed, 0.9, "collapsed" if seed else "complete") for seed in (0, 1)),
        *(play("second", seed, 0.3 + 0.1 * seed) for seed in (0, 1)),
        *(play("first", seed, 0.5 + 0.1 * seed) for seed in (0, 1)),
        *(play("lost", seed, 0.0, "failed") for seed in (0, 1)),
    ]
    standings = rank_gans(plays)
    assert [(r.rank, r.label) for r in standings] == [
        (1, "first"), (2, "second"), (3, "best but unstable"), (4, "lost"),
    ]  # fmt: skip
    first, _, unstable, lost = standings
    assert gan_winner(standings) == first
    quality = first.figures["quality"]
    assert (quality.mean, quality.low, quality.high) == (pytest.approx(0.55), 0.5, 0.6)
    assert (unstable.num_collapsed, unstable.reason) == (1, "collapsed: texture 0.90")
    assert (lost.num_failed, lost.figures, lost.num_parameters) == (2, {}, 0)
    assert gan_winner(rank_gans(plays[:2])) is None
    assert gan_winner([]) is None


def test_both_tables_hold_every_entrant_and_the_figures_that_there_are():
    plays = [play("A|B", 0, 0.5), play("A|B", 1, 0.7), play("lost", 0, 0, "failed")]
    standings = rank_gans(plays)
    lines = gan_table_markdown(standings).splitlines()
    assert "| 1 | A/B | 2 of 2 | 0.600 [0.500, 0.700] | 0.10 |" in lines[2]
    assert "0 of 1" in lines[3]
    assert "the loss became nan" in lines[3]
    assert len({line.count("|") for line in lines}) == 1
    assert "LPIPS" not in lines[0]
    first, lost = csv.DictReader(io.StringIO(gan_table_csv(standings)))
    assert (first["label"], first["quality"], first["quality_low"]) == ("A|B", "0.6", "0.5")
    assert (lost["quality"], lost["reason"]) == ("", "the loss became nan")


def reading(plays: list[dict[str, Any]], num_seeds: int, judge: str = "vgg16 1234") -> str:
    return gan_reading(
        rank_gans(plays),
        budget="2 minutes",
        num_seeds=num_seeds,
        panel="64 images of 3 patients",
        judge=judge,
    )


def test_the_reading_says_what_the_table_cannot():
    apart = [play("A", seed, 0.5 + 0.01 * seed, gain_psnr=0.5) for seed in range(3)]
    apart += [play("B", seed, 0.1 + 0.01 * seed, gain_psnr=1.25) for seed in range(3)]
    text = reading(apart, 3)
    assert "A comes first with quality 0.510 [0.500, 0.520], 0.400 ahead of B" in text
    assert "do not meet" in text
    assert "B (+1.25 dB over bicubic)" in text
    assert "64 images of 3 patients: the range over seeds says" in text
    assert "LPIPS by vgg16 1234" in text
    assert "not which part of it" in text
    assert "too few" not in text

    mixed = [play("A", 0, 0.5), play("A", 1, 0.2), play("B", 0, 0.3), play("B", 1, 0.35)]
    text = reading(mixed, 2, judge="")
    assert "which is within what seeds alone change" in text
    assert "2 seeds are too few" in text
    assert "HFEN, as no extractor" in text

    assert "one seed each, which says nothing of chance" in reading([play("A", 0, 0.5), play("B", 0, 0.2)], 1)
    lone = reading([play("A", 0, 0.5, "collapsed")], 1)
    assert "none is named the better one" in lone
    assert "A: 1 of 1 runs collapsed (collapsed: texture 0.90)." in lone
    assert "several things" not in lone
    assert "64 images of 3 patients: the table says nothing about other patients" in lone
    assert "pixel by pixel" not in lone
    others = reading([play("A", 0, 0.5), play("B", 0, 0.9, "collapsed")], 1)
    assert "no other entrant stayed healthy" in others
