"""What a tournament takes for played, and how much of the cluster a run gets; no Ray."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glioray.cases.manifest import Manifest
from glioray.config import override
from glioray.engine.on_ray import compare as plays
from glioray.engine.on_ray.compare import PLAY_FILE, Run, play_all
from glioray.engine.on_ray.connect import WorkerResources
from glioray.engine.run import RunPlan
from glioray.errors import DivergenceError, StorageError, TrainingError, UsageError
from glioray.storage import open_storage
from glioray.tasks import load_task
from glioray.tasks.segmentation import comparison as tournament
from glioray.tasks.segmentation.comparison import TournamentPlan, _outcome, _play, run_tournament
from glioray.tasks.segmentation.comparison_pictures import PICTURES_FILE, _overlays, mean_dice_of
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.recipes import build_recipe
from glioray.tasks.segmentation.standings import rank_entrants

SHARE = WorkerResources(num_cpus=1.0, num_gpus=0.0, num_threads=1)


def run_plan(storage: Path, config: RunConfig) -> RunPlan:
    manifest = Manifest(data="file:///none", cases=(), problems=(), splits={}, folds=(), seed=0)
    return RunPlan(
        task=load_task(config.task),
        config=config,
        manifest=manifest,
        storage=str(storage),
        run_name="r",
        tracking_uri="sqlite:///none",
        experiment="e",
    )


def runs(folder: Path, count: int, **settings: Any) -> list[Run]:
    config = override(build_recipe("unet_tiny"), **settings)
    return [
        Run(label=f"net {number}", fold=0, seed=0, plan=run_plan(folder / str(number), config))
        for number in range(count)
    ]


def leave_play(run: Run, **more: Any) -> None:
    open_storage(run.plan.storage).write(PLAY_FILE, json.dumps({"state": "complete", **more}).encode())


def test_a_run_that_goes_on_alone_gets_no_more_than_the_others_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class AskedError(Exception):
        pass

    def worker_resources(num_workers: int) -> WorkerResources:
        raise AskedError(num_workers)

    monkeypatch.setattr(plays, "worker_resources", worker_resources)
    mine = runs(tmp_path, 3)
    for run in mine[:2]:
        leave_play(run)
    with pytest.raises(AskedError, match=r"^2$"):
        play_all(mine, _play, _outcome, num_concurrent=2)
    with pytest.raises(AskedError, match=r"^3$"):
        play_all(mine, _play, _outcome, num_concurrent=8)
    # With nothing left to do, nothing is asked of the cluster; what was played is where it lies now.
    leave_play(mine[2], storage="s3://elsewhere", label="called otherwise then")
    last = play_all(mine, _play, _outcome, num_concurrent=2)[2]
    assert (last["storage"], last["label"]) == (mine[2].plan.storage, "net 2")


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (DivergenceError("the loss became nan"), True),
        (TrainingError("training failed on a worker (it died)"), False),
        (StorageError("the bucket is away"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_a_divergence_is_not_played_again(
    error: Exception, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any, **__: Any) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(tournament, "run_training", fail)
    (run,) = runs(tmp_path, 1, **{"train.num_workers": 2, "train.batch_size": 8})
    play = _play(run, SHARE)
    assert (play["state"], play["reason"], play["again"]) == ("failed", str(error), not kept)
    assert open_storage(run.plan.storage).exists(PLAY_FILE) is kept


def test_thresholds_are_not_fitted_on_the_cases_that_are_judged(tmp_path: Path):
    base = build_recipe("unet_tiny")
    fitted = override(base, **{"loss.name": "region_dice_bce", "postprocess.fit_thresholds": True})
    plan = TournamentPlan(
        base=run_plan(tmp_path, base),
        entrants={"a": base, "b": fitted},
        seeds=(0,),
        num_concurrent=1,
        budget="",
    )
    with pytest.raises(
        UsageError, match="fits on a run's validation cases, and a tournament judges on those"
    ):
        run_tournament(plan)
    assert not list(tmp_path.iterdir())


def test_what_is_said_of_a_run_is_the_mean_that_is_ranked():
    regions = {"wt": 0.9, "tc": 0.6, "et": 0.3, "ncr": 0.0, "ed": 0.0}
    cases = {"a": {"regions": {name: {"dice": dice} for name, dice in regions.items()}}}
    assert mean_dice_of({"cases": cases}) == pytest.approx(0.6)


def test_an_overlay_says_the_dice_of_the_prediction_that_it_shows(tmp_path: Path):
    plays = []
    for seed, dice in enumerate((0.2, 0.8)):
        storage = open_storage(str(tmp_path / str(seed)))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, a=np.pad(np.ones((3, 8, 6), np.float32), ((0, 0), (3, 1), (0, 9))))
        storage.write(PICTURES_FILE, buffer.getvalue())
        regions = {name: {"dice": dice, "hd95_mm": 1.0} for name in ("wt", "tc", "et")}
        cases = {"a": {"patient": "p", "regions": regions}}
        plays.append(
            {
                "label": "net", "fold": 0, "seed": seed, "state": "complete", "reason": "", "storage": storage.uri,
                "cases": cases, "num_parameters": 1, "minutes": 1, "num_slices": 1, "slices_per_s": 1,
            }
        )  # fmt: skip
    (row,) = rank_entrants(plays)
    assert row.case_dice["a"] == pytest.approx(0.5)
    figure = _overlays(row, plays)
    assert figure is not None
    assert figure.axes[0].get_title() == "a\nmean Dice 0.20"
    assert figure.axes[0].images[0].get_array().shape[:2] == (8, 6)  # without the empty margins
