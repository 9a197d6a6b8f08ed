"""A comparison on Ray: concurrent runs, one that diverges, and a resumed comparison with further entrants."""

from __future__ import annotations

import dataclasses
import json

import pytest
from mlflow.tracking import MlflowClient

from glioray.config import override
from glioray.engine.comparison import RESULT_FILE, ComparisonPlan, plan_runs
from glioray.engine.on_mlflow.parent import parent_run
from glioray.engine.on_ray.agreement import PRECISION_FILE
from glioray.engine.on_ray.compare import execute_run, run_comparison
from glioray.engine.on_ray.resources import WorkerResources
from glioray.engine.run import RunPlan
from glioray.errors import UsageError
from glioray.storage import Storage, open_storage
from glioray.tasks.segmentation.config import RunConfig

pytestmark = pytest.mark.usefixtures("ray_local")


def comparison(plan: RunPlan, entrants: dict[str, RunConfig]) -> ComparisonPlan:
    base = dataclasses.replace(plan, kind="comparison", manifest=plan.manifest.with_folds(2))
    return ComparisonPlan(base=base, entrants=entrants, seeds=(0,), num_concurrent=2, budget="2 epochs")


def read_results(storage: Storage) -> dict[str, bytes]:
    """The file of each result that there is, by its key."""
    return {
        item.key: storage.read(item.key) for item in storage.list("runs/") if item.key.endswith(RESULT_FILE)
    }


def test_entrants_are_ranked_on_cases_that_they_were_not_trained_on(plan: RunPlan, mlflow_server: str):
    plan = dataclasses.replace(plan, config=override(plan.config, **{"train.num_validations": 1}))
    # A comparison that was interrupted when one entrant had its results: made here, without processes of Ray's.
    wider = {"wider": override(plan.config, **{"net.options.width": 6})}
    interrupted = comparison(plan, wider)
    with parent_run(interrupted.base, "comparison") as logger:
        for run in plan_runs(interrupted, logger.run_id):
            execute_run(run, WorkerResources(num_cpus=1.0, num_gpus=0.0, num_threads=1))
    storage = open_storage(plan.storage)
    before = read_results(storage)
    assert len(before) == 2

    # The same name resumes: results stay as they are, only the further entrants run.
    entrants = {
        **wider,
        "U-Net": override(plan.config, **{"train.precision": "auto"}),
        "diverges": override(
            plan.config, **{"optim.lr": 10.0, "optim.grad_clip": 0.0, "net.options.norm": "none"}
        ),
    }
    result = run_comparison(comparison(plan, entrants))

    assert result["run_id"] == logger.run_id
    after = read_results(storage)
    assert len(after) == 6
    assert {key: after[key] for key in before} == before
    results = [json.loads(text) for text in after.values()]
    assert all(r["history"] for r in results if r["state"] == "complete")

    first, second, last = result["standings"]
    assert result["winner"] == first["label"]
    assert {first["label"], second["label"]} == {"U-Net", "wider"}
    for row in (first, second):
        assert set(row["case_dice"]) == {entry.case_id for entry in plan.manifest.select("labelled")}
        assert set(row["dice"]) == {"mean", "wt", "tc", "et"}
        assert row["num_parameters"] > 0
    assert (last["label"], last["num_failed"]) == ("diverges", 2)
    assert "the run diverged" in last["reason"]
    assert (result["failed"], result["missing"]) == (["diverges"], [])

    client = MlflowClient(mlflow_server)
    run = client.get_run(result["run_id"])
    assert run.data.tags["glioray.winner"] == first["label"]
    assert run.data.metrics["dice_mean"] == pytest.approx(first["dice"]["mean"]["mean"])
    names = {item.path for item in client.list_artifacts(result["run_id"])}
    assert names >= {
        "standings.md", "standings.csv", "plays.json", "dice_by_region.png", "dice_by_time.png", "dice_by_slices.png",
        "dice_by_parameters.png", "cases.png", "confusion.png", "training_curves.png", "overlays",
    }  # fmt: skip
    decided = json.loads(storage.read(PRECISION_FILE))
    assert decided.keys() == {"training", "prediction"}
    overlays = [item.path for item in client.list_artifacts(result["run_id"], "overlays")]
    assert overlays == [f"overlays/01-{first['label']}.png", f"overlays/02-{second['label']}.png"]
    children = client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result['run_id']}'"
    )
    tags = [child.data.tags for child in children if child.data.tags["glioray.entrant"] == "U-Net"]
    for work, name in decided.items():
        assert [one[f"glioray.precision_{work}"] for one in tags] == [name, name]
    assert sorted(child.info.status for child in children) == [*["FAILED"] * 2, *["FINISHED"] * 4]
    assert storage.read("standings.md").decode().startswith("| rank | entrant |")


def test_name_of_a_comparison_with_other_settings_is_taken(plan: RunPlan):
    entrants = {"U-Net": plan.config}
    with parent_run(comparison(plan, entrants).base, "comparison"):
        pass
    other = dataclasses.replace(plan, config=override(plan.config, **{"optim.lr": 0.5}))
    with pytest.raises(UsageError, match="exists with other settings"):
        run_comparison(comparison(other, entrants))
