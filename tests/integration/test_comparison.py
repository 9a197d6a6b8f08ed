"""A comparison on Ray: concurrent runs, one that diverges, and a resumed comparison with a further entrant."""

from __future__ import annotations

import dataclasses
import json

import pytest
from mlflow.tracking import MlflowClient

from glioray.config import override
from glioray.engine.comparison import RESULT_FILE, ComparisonPlan
from glioray.engine.on_ray.compare import run_comparison
from glioray.engine.run import RunPlan
from glioray.errors import UsageError
from glioray.storage import open_storage
from glioray.tasks.segmentation.config import RunConfig

pytestmark = pytest.mark.usefixtures("ray_local")


def comparison(plan: RunPlan, entrants: dict[str, RunConfig]) -> ComparisonPlan:
    base = dataclasses.replace(plan, kind="comparison", manifest=plan.manifest.with_folds(2))
    return ComparisonPlan(base=base, entrants=entrants, seeds=(0,), num_concurrent=2, budget="2 epochs")


def test_entrants_are_ranked_on_cases_that_they_were_not_trained_on(plan: RunPlan, mlflow_server: str):
    entrants = {
        "U-Net": plan.config,
        "diverges": override(
            plan.config, **{"optim.lr": 10.0, "optim.grad_clip": 0.0, "net.options.norm": "none"}
        ),
    }
    result = run_comparison(comparison(plan, entrants))

    first, last = result["standings"]
    assert result["winner"] == first["label"] == "U-Net"
    assert set(first["case_dice"]) == {entry.case_id for entry in plan.manifest.select("labelled")}
    assert set(first["dice"]) == {"mean", "wt", "tc", "et"}
    assert first["num_parameters"] > 0
    assert (last["label"], last["num_failed"]) == ("diverges", 2)
    assert "the run diverged" in last["reason"]
    assert (result["failed"], result["missing"]) == (["diverges"], [])

    client = MlflowClient(mlflow_server)
    run = client.get_run(result["run_id"])
    assert run.data.tags["glioray.winner"] == "U-Net"
    assert run.data.metrics["dice_mean"] == pytest.approx(first["dice"]["mean"]["mean"])
    names = {item.path for item in client.list_artifacts(result["run_id"])}
    assert names >= {
        "standings.md", "standings.csv", "plays.json", "dice_by_region.png", "dice_by_time.png", "dice_by_slices.png",
        "dice_by_parameters.png", "cases.png", "confusion.png", "training_curves.png", "overlays",
    }  # fmt: skip
    (overlay,) = client.list_artifacts(result["run_id"], "overlays")
    assert overlay.path == "overlays/01-U-Net.png"
    children = client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result['run_id']}'"
    )
    assert sorted(child.info.status for child in children) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    assert open_storage(plan.storage).read("standings.md").decode().startswith("| rank | entrant |")

    # The same name resumes: results stay as they are, only the further entrant runs.
    storage = open_storage(plan.storage)
    before = {
        item.key: storage.read(item.key) for item in storage.list("runs/") if item.key.endswith(RESULT_FILE)
    }
    assert len(before) == 4
    entrants["wider"] = override(plan.config, **{"net.options.width": 6})
    again = run_comparison(comparison(plan, entrants))
    assert {row["label"] for row in again["standings"]} == {"U-Net", "diverges", "wider"}
    assert again["run_id"] == result["run_id"]
    assert {key: storage.read(key) for key in before} == before
    results = [
        json.loads(storage.read(item.key)) for item in storage.list("runs/") if item.key.endswith(RESULT_FILE)
    ]
    assert len(results) == 6
    assert all(r["history"] for r in results if r["state"] == "complete")


def test_name_of_a_comparison_with_other_settings_is_taken(plan: RunPlan):
    entrants = {"U-Net": override(plan.config, **{"train.max_epochs": 1, "sample.steps_per_epoch": 2})}
    run_comparison(comparison(plan, entrants))
    other = dataclasses.replace(plan, config=override(plan.config, **{"optim.lr": 0.5}))
    with pytest.raises(UsageError, match="exists with other settings"):
        run_comparison(comparison(other, entrants))
