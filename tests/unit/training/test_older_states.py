"""Runs whose training state an older version of glioray wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from glioray.engine.checkpoint import STATE_FILE
from glioray.engine.run import RunPlan
from glioray.tasks.superres.collapse import CollapseWatch
from glioray.tasks.superres.config import CollapseConfig

Plans = Callable[..., RunPlan]


def make_older(plan: RunPlan, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the learner's part of a run's state to what it was."""
    (file,) = Path(plan.storage).rglob(STATE_FILE)
    state = torch.load(file, weights_only=True)
    change(state["task"])
    torch.save(state, file)


def strip_segmentation(state: dict[str, Any]) -> None:
    del state["precisions"], state["scores"]


def strip_gan(state: dict[str, Any]) -> None:
    del state["precisions"], state["judge"]["pixel"], state["judge"]["dead"]
    state["judge"]["is_collapsed"] = state["judge"].pop("verdict") != "healthy"


def test_a_segmentation_goes_on(runs: ModuleType, make_plan: Plans):
    uninterrupted, plan = make_plan(), make_plan()
    whole, _ = runs.train(uninterrupted)
    with pytest.raises(runs.Killed):
        runs.train(plan, task=runs.killed_at(10, runs.Recorded))
    make_older(plan, strip_segmentation)
    resumed, _ = runs.train(plan)
    # From the middle on, where the run was validated.
    assert resumed.rows == whole.rows[6:]
    runs.assert_same(resumed.weights, whole.weights[6:])


def test_a_gan_goes_on(gan_runs: ModuleType, make_gan_plan: Plans):
    uninterrupted, plan = make_gan_plan(), make_gan_plan()
    whole, metrics, _ = gan_runs.train(uninterrupted)
    with pytest.raises(gan_runs.Killed):
        gan_runs.train(plan, task=gan_runs.killed_at(10, gan_runs.Recorded))
    make_older(plan, strip_gan)
    resumed, found, _ = gan_runs.train(plan)
    assert resumed.rows == whole.rows[9:]
    gan_runs.assert_same(resumed.weights, whole.weights[9:])
    for name in ("objective", "quality", "collapse_score", "pixel_quality"):
        assert found[name] == metrics[name], name


@pytest.mark.parametrize("is_collapsed", [False, True])
def test_a_verdict_stays(is_collapsed: bool):
    watch = CollapseWatch(CollapseConfig())
    watch.load_state({"num_seen": 3, "recent": [0.1, 0.9, 0.9], "is_collapsed": is_collapsed})
    assert watch.is_collapsed is is_collapsed
    assert watch.state()["dead"] == [0.0] * 3
