"""What trials of super-resolution GANs are worth, their rows, and what stopping some of them saved."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from glioray.engine.search import recipe_point
from glioray.engine.trials import build_row, format_table, importances, pareto_rows, rank_rows
from glioray.reports.pareto import pareto_figure
from glioray.tasks.superres.config import COLLAPSE_COMPONENTS
from glioray.tasks.superres.recipes import build_gan_recipe
from glioray.tasks.superres.search import SuperResSearch
from glioray.tasks.superres.search_figures import rates_figure
from glioray.tasks.superres.space import RATIO, gan_space
from glioray.tasks.superres.trials import WORST, is_healthy, rates_rows

SEARCH = SuperResSearch()
CONFIG = build_gan_recipe("mri_tiny")
RULES = CONFIG.collapse
OWN_POINT = recipe_point(SEARCH, CONFIG, gan_space(CONFIG))


def _reported(metrics: dict[str, float]) -> dict[str, Any]:
    return SEARCH.to_report(metrics, CONFIG)


def _failed(last: dict[str, Any], reason: str) -> dict[str, Any]:
    """What `run_sweep` reports for a trial that fails."""
    worst = {one.reported: one.worst for one in SEARCH.objectives(CONFIG)}
    return {"percent": 0, **last, **worst, "objective": SEARCH.worst, "reason": reason}


def _metrics(
    *, progress: float = 1.0, score: float = 0.0, objective: float = 0.3, gain: float = 1.0, **more: float
) -> dict[str, float]:
    return {
        "objective": objective, "quality": 0.3, "gain_psnr": gain, "collapse_score": score, "collapse_reason": 1.0,
        "is_collapsed": float(score >= 0.5), "progress": progress, "step": 200 * progress, "epoch": 10 * progress,
        **more,
    }  # fmt: skip


def _result(metrics: dict[str, Any], *, error: Exception | None = None, **settings: Any) -> SimpleNamespace:
    _result.count = getattr(_result, "count", 0) + 1  # type: ignore[attr-defined]
    number = _result.count  # type: ignore[attr-defined]
    point = OWN_POINT | settings
    return SimpleNamespace(metrics=metrics, error=error, path=f"/runs/trial_{number:03d}", config=point)


def _rows(*results: SimpleNamespace) -> list[dict[str, Any]]:
    return rank_rows([build_row(result, SEARCH) for result in results])


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """A healthy trial, a collapsed one, a pruned one, one that diverged after a validation and one that crashed."""
    reports = [
        _reported(metrics)
        for metrics in (
            _metrics(),
            _metrics(progress=0.4, score=0.9, objective=-1.9),
            _metrics(progress=0.45, objective=0.1),
            _metrics(progress=0.2),
        )
    ]
    return _rows(
        _result(reports[0]),
        _result(reports[1], **{"optim_g.lr": 1e-2}),
        _result(reports[2], **{"optim_g.lr": 1e-5}),
        _result(_failed(reports[3], "the generator diverged")),
        _result({}, error=RuntimeError("a stack\nof lines, the last: killed")),
    )


def test_every_healthy_trial_outranks_every_other(rows: list[dict[str, Any]]):
    assert [row["state"] for row in rows] == ["complete", "pruned", "collapsed", "failed", "failed"]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[2]["reason"] == "collapsed: conditioning 0.90 at epoch 4"
    assert rows[1]["reason"] == "stopped by ASHA at 45 % of its run"
    assert {row["reason"] for row in rows[3:]} == {"the generator diverged", "of lines, the last: killed"}
    assert all(math.isfinite(row["objective"]) for row in rows)
    assert [is_healthy(row["objective"], RULES) for row in rows] == [True, True, False, False, False]


def test_a_collapsed_trial_of_the_largest_score_ranks_before_one_that_failed():
    worst = _reported(_metrics(progress=0.4, score=1.0, objective=-2.0))
    crashed, collapsed = _result({}, error=RuntimeError("killed")), _result(worst)
    assert [row["state"] for row in _rows(crashed, collapsed)] == ["collapsed", "failed"]


def test_a_dead_trial_is_a_failure_of_its_own():
    lost = {"collapse_reason": float(COLLAPSE_COMPONENTS.index("dead")), "pixel_gain_psnr": 1.5}
    dead = _metrics(progress=0.4, score=0.9, objective=-1.9, gain=0.05, **lost)
    # Better than dead, though worse than bicubic.
    poor = _metrics(objective=-0.9)
    late = _metrics(score=0.9, objective=-1.9, gain=0.05, is_collapsed=0.0, **lost)
    rows = _rows(*(_result(_reported(metrics)) for metrics in (dead, poor, late)))
    assert [row["state"] for row in rows] == ["complete", "dead", "complete"]
    sentence = "a gain over bicubic of 0.05 dB is left of the 1.50 dB of the pixel stage"
    assert rows[1]["reason"] == f"dead: {sentence} at epoch 4"
    assert rows[2]["reason"] == f"bad in its last evaluations, too late to be stopped: {sentence}"
    summary = SEARCH.summarize(rows)
    assert (summary["num_dead"], summary["num_collapsed"], summary["stopped_at_percent"]) == (1, 0, [40])
    assert summary["saved_by_collapse"] == pytest.approx(120 / 600)
    assert "0 of 3 trials collapsed and 1 died, stopped at 40 %" in SEARCH.describe(summary, "search")
    figure = rates_figure(rates_rows(rows, CONFIG))
    assert any("1.50 dB" in text.get_text() for text in figure.axes[0].texts)
    legend = figure.legends[0]
    assert "stopped: dead" in [text.get_text() for text in legend.get_texts()]


def test_asha_waits_for_the_watch_even_after_the_longest_pretraining():
    """Ten epochs are left of twenty: the fifth evaluation, at half of the run, is the first that can be dead."""
    config = build_gan_recipe("mri_phantom")
    assert (config.train.max_epochs, config.train.num_validations) == (20, 20)
    assert SEARCH.grace_percent(config) == 51
    # Where minutes end a run, the number of epochs limits nothing.
    assert SEARCH.grace_percent(build_gan_recipe("mri_small")) == 42
    assert SEARCH.grace_percent(CONFIG) == 100


def test_a_trial_that_asha_stopped_before_patience_was_over_says_what_was_bad():
    report = _reported(_metrics(progress=0.5, score=0.7, objective=-1.7, is_collapsed=0.0))
    (row,) = _rows(_result(report))
    assert row["state"] == "pruned"
    assert (
        row["reason"] == "stopped by ASHA at 50 % of its run, at its first bad evaluation: conditioning 0.70"
    )


def test_a_trial_whose_end_came_before_patience_was_over_says_what_was_bad():
    late = _reported(_metrics(score=0.7, objective=-1.7, is_collapsed=0.0))
    (row,) = _rows(_result(late))
    assert row["state"] == "complete"
    assert row["reason"] == "bad in its last evaluations, too late to be stopped: conditioning 0.70"


def test_figures_show_as_collapsed_what_no_search_would_take():
    # Healthy in its last evaluation and not in the one before: the objective knows of both.
    report = _reported(_metrics(score=0.1, objective=-1.8, is_collapsed=0.0))
    (drawn,) = rates_rows(_rows(_result(report)), CONFIG)
    assert drawn["score"] == pytest.approx(0.8)
    (healthy,) = rates_rows(_rows(_result(_reported(_metrics(score=0.1)))), CONFIG)
    assert healthy["score"] == 0.1


def test_a_trial_without_a_report_saved_nothing():
    summary = SEARCH.summarize(_rows(_result({}), _result(_reported(_metrics()))))
    assert (summary["saved_by_asha"], summary["planned_steps"]) == (0.0, 200)


def test_nothing_is_stopped_in_a_population(rows: list[dict[str, Any]]):
    text = SEARCH.describe(SEARCH.summarize(rows), "pbt")
    assert text.startswith("1 of 5 members ended healthy, 1 collapsed, 0 died and 2 failed.")
    assert "ASHA" not in text


@pytest.mark.parametrize("score", [0.5, 0.8, 1.0])
def test_on_a_front_too_what_collapsed_is_behind_all_that_is_healthy(score: float):
    # A healthy trial may lose less than 4 dB against bicubic; at that, fidelity alone scores .5.
    healthy = _reported(_metrics(objective=-1.0, quality=-1.0, gain=-3.9))
    collapsed = _reported(_metrics(score=score, objective=-1 - score, quality=0.9, gain=2.0))
    failed = _failed({}, "diverged")
    for name in ("quality_or_penalty", "gain_or_penalty"):
        assert healthy[name] > collapsed[name] >= failed[name]


def test_an_objective_that_is_no_number_is_reported_as_the_worst():
    assert _reported(_metrics(objective=math.nan))["objective"] == WORST


def test_what_stopping_saved(rows: list[dict[str, Any]]):
    summary = SEARCH.summarize(rows)
    # Planned: 200 steps each of the three that would have run to the end, and the 40 until one diverged.
    assert summary["planned_steps"] == 640
    assert summary["num_steps"] == 200 + 80 + 90 + 40
    assert summary["saved_by_collapse"] == pytest.approx(120 / 640)
    assert summary["saved_by_asha"] == pytest.approx(110 / 640)
    assert summary["stopped_at_percent"] == [40]
    assert (summary["num_collapsed"], summary["num_pruned"], summary["num_failed"]) == (1, 1, 2)
    assert (
        "1 of 5 trials collapsed and 0 died, stopped at 40 % of its run; 2 failed, 1 were pruned"
        in SEARCH.describe(summary, "search")
    )
    assert "19% were saved" in SEARCH.describe(summary, "search")
    nothing = SEARCH.summarize(_rows(_result({}, error=RuntimeError("killed"))))
    assert (nothing["saved_by_collapse"], nothing["planned_steps"]) == (0.0, 0)


def test_the_table_has_a_row_a_trial_with_its_reason(rows: list[dict[str, Any]]):
    lines = format_table(rows, SEARCH.columns).splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({line.count(" | ") for line in lines}) == 1
    heads = [cell.strip() for cell in lines[0].strip("| ").split("|")]
    assert len(set(heads)) == len(heads)
    assert {"percent", "quality", "collapse_score", RATIO, "lr"} <= set(heads)
    assert "collapsed: conditioning 0.90 at epoch 4" in lines[4]


def test_rows_are_what_the_figures_take(rows: list[dict[str, Any]]):
    drawn = rates_rows(rows, CONFIG)
    collapsed = next(row for row in drawn if row["state"] == "collapsed")
    assert (collapsed["lr_g"], collapsed["lr_d"], collapsed["score"]) == (1e-2, pytest.approx(1e-2), 0.9)
    assert rates_figure(drawn).axes
    is_healthy_by_trial = {row["trial"]: is_healthy(row["objective"], RULES) for row in rows}
    points = pareto_rows(rows, SEARCH.objectives(CONFIG), is_healthy=is_healthy_by_trial)
    # Failed trials have no place, even if they were validated before.
    assert [row["x"] is None for row in points] == [row["state"] == "failed" for row in drawn]
    assert [row["is_healthy"] for row in points] == [row["state"] in ("complete", "pruned") for row in drawn]
    assert pareto_figure(points).axes


def test_the_setting_that_decides_the_objective_is_found():
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(16):
        rate, d_steps = float(10 ** rng.uniform(-5, -2)), int(rng.integers(1, 3))
        objective = 0.5 if rate < 3e-4 else -1.8
        rows.append({"settings": OWN_POINT | {"optim_g.lr": rate, "d_steps": d_steps}, "objective": objective})  # fmt: skip
    found = importances(rows, gan_space(CONFIG))
    assert next(iter(found)) == "optim_g.lr"
    assert sum(found.values()) == pytest.approx(1)
    assert importances(rows[:5], gan_space(CONFIG)) == {}


def test_components_are_named_by_their_number():
    for number, name in enumerate(COLLAPSE_COMPONENTS):
        metrics = _metrics(
            progress=0.5, score=0.7, objective=-1.7, collapse_reason=number, pixel_gain_psnr=2.0
        )
        (row,) = _rows(_result(_reported(metrics)))
        sentence = "dead: a gain over bicubic" if name == "dead" else f"collapsed: {name} 0.70"
        assert row["reason"].startswith(sentence)
