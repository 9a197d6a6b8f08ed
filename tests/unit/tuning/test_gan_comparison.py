"""What a comparison of super-resolution GANs takes for played, and where its runs lie; no Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glioray.cases.manifest import Manifest
from glioray.config import with_settings
from glioray.engine.on_ray.compare import PLAY_FILE
from glioray.engine.on_ray.connect import WorkerResources
from glioray.engine.run import HISTORY_FILE, RunPlan
from glioray.errors import DivergenceError, StorageError, TrainingError
from glioray.storage import open_storage
from glioray.tasks import load_task
from glioray.tasks.superres import comparison as gan_comparison
from glioray.tasks.superres.comparison import GanComparisonPlan, _outcome, _play, _runs
from glioray.tasks.superres.recipes import build_gan_recipe

SHARE = WorkerResources(num_cpus=1.0, num_gpus=0.0, num_threads=1)


def comparison(folder: Path, **settings: Any) -> GanComparisonPlan:
    config = build_gan_recipe("mri_tiny")
    base = RunPlan(
        task=load_task(config.task),
        config=config,
        manifest=Manifest(data="file:///none", cases=(), problems=(), splits={}, folds=(), seed=0),
        storage=str(folder),
        run_name="duel",
        tracking_uri="sqlite:///none",
        experiment="e",
    )
    entrants = {"A": with_settings(config, settings), "B": with_settings(config, {"optim_g.lr": 0.5})}
    return GanComparisonPlan(base=base, entrants=entrants, seeds=(3, 4), num_concurrent=1, budget="b")


def test_a_run_lies_where_its_settings_and_its_seed_say(tmp_path: Path):
    runs = list(_runs(comparison(tmp_path), "parent"))
    assert [(run.label, run.seed) for run in runs] == [("A", 3), ("B", 3), ("A", 4), ("B", 4)]
    assert len({run.plan.storage for run in runs}) == 4
    assert all(run.plan.config.train.seed == run.seed for run in runs)
    assert all(run.plan.parent_run_id == "parent" and not run.plan.log_model for run in runs)
    again = list(_runs(comparison(tmp_path, **{"train.max_epochs": 99}), "parent"))
    same = [one.plan.storage == other.plan.storage for one, other in zip(runs, again, strict=True)]
    assert same == [False, True, False, True]


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (DivergenceError("it became nan"), True),
        (TrainingError("it died"), False),
        (StorageError("away"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_a_divergence_is_not_played_again(
    error: Exception, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(gan_comparison, "train_run", fail)
    run = next(_runs(comparison(tmp_path), "parent"))
    play = _play(run, SHARE)
    assert (play["state"], play["reason"], play["again"]) == ("failed", str(error), not kept)
    assert open_storage(run.plan.storage).exists(PLAY_FILE) is kept


@pytest.mark.parametrize("collapsed", [False, True])
def test_a_collapse_is_a_result_with_its_reason(
    collapsed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = next(_runs(comparison(tmp_path), "parent"))
    storage = open_storage(run.plan.storage)
    last = {"epoch": 2, "quality": 0.25, "collapse_score": 0.9 if collapsed else 0.0, "minutes": 1.0}
    last |= {"num_slices": 80, "is_collapsed": float(collapsed), "objective": -1.9 if collapsed else 0.25}
    last |= {"collapse_reason": 3.0}

    def train(*_: Any) -> dict[str, Any]:
        storage.write(HISTORY_FILE, json.dumps([last]).encode())
        return {"stopped": "collapsed: texture 0.90"} if collapsed else {}

    monkeypatch.setattr(gan_comparison, "train_run", train)
    monkeypatch.setattr(gan_comparison, "_keep_pictures", lambda *_: {"panel": "8 images"})
    play = _play(run, SHARE)
    assert play["state"] == ("collapsed" if collapsed else "complete")
    assert _outcome(play) == ("collapsed: texture 0.90" if collapsed else "quality 0.250")
    assert (play["history"], play["panel"], play["seed"]) == ([last], "8 images", 3)
    assert json.loads(storage.read(PLAY_FILE)) == play


@pytest.mark.parametrize(
    ("is_collapsed", "objective", "stopped", "state", "reason"),
    [
        (0.0, -1.0, "", "complete", ""),
        # Bad in its last evaluation, which is one too few for the watch; or not to be stopped, by the config.
        (0.0, -1.7, "", "collapsed", "collapsed at its end: texture 0.70"),
        (1.0, -1.7, "", "collapsed", "collapsed at its end: texture 0.70"),
        (1.0, -1.7, "collapsed: texture 0.70", "collapsed", "collapsed: texture 0.70"),
    ],
)
def test_a_run_that_ends_collapsed_is_never_a_healthy_one(
    is_collapsed: float, objective: float, stopped: str, state: str, reason: str
):
    last = {
        "is_collapsed": is_collapsed,
        "objective": objective,
        "collapse_reason": 3.0,
        "collapse_score": 0.7,
    }
    assert gan_comparison._verdict(last, stopped) == {"state": state, "reason": reason}
