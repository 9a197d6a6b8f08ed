"""Training and searching on Ray: two ranks, ranks that are lost, sweeps that fail in part and go on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch.distributed as dist
from mlflow.tracking import MlflowClient

from glioray.config import override
from glioray.engine.on_mlflow.registry import fetch_package
from glioray.engine.on_ray import train
from glioray.engine.on_ray.agreement import PRECISION_FILE
from glioray.engine.on_ray.search import run_sweep
from glioray.engine.on_ray.train import run_training
from glioray.engine.run import RunPlan
from glioray.engine.search import SweepPlan
from glioray.engine.space import parse_space
from glioray.engine.trials import start_order
from glioray.errors import DataError, UsageError
from glioray.storage import open_storage
from glioray.tasks.segmentation.evaluation import evaluate_cases
from glioray.tasks.segmentation.prediction import predict_cases

pytestmark = pytest.mark.usefixtures("ray_local")

Train = Callable[..., dict[str, Any]]


def with_settings(plan: RunPlan, **settings: object) -> RunPlan:
    return dataclasses.replace(plan, config=override(plan.config, **settings))


def image_steps(client: MlflowClient, run_id: str, key: str) -> list[int]:
    """Steps of a run's images of a key, as MLflow's UI finds them."""
    names = [item.path for item in client.list_artifacts(run_id, "images") if item.path.endswith(".png")]
    parts = [name.removeprefix("images/").split("+") for name in names]
    return sorted(int(part[part.index("step") + 1]) for part in parts if part[0] == key)


def test_two_ranks_learn_what_one_rank_learns(
    plan: RunPlan, tmp_path: Path, mlflow_server: str, train_here: Train
):
    two = with_settings(plan, **{"train.num_workers": 2})
    result = run_training(two)
    one = train_here(
        dataclasses.replace(plan, storage=str(tmp_path / "one"), run_name=f"{plan.run_name}-one")
    )
    for name in ("train_loss", "train_grad_norm", "dice_wt", "dice_mean"):
        assert result["metrics"][name] == pytest.approx(one["metrics"][name], rel=2e-3, abs=2e-3), name

    client = MlflowClient(mlflow_server)
    run = client.get_run(result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.num_workers"] == "2"
    assert run.data.tags["glioray.manifest_hash"] == plan.manifest.hash
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "dice_mean")] == [1, 2]
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"learning_curves.png", "overlays.png", "validation_cases.json"} <= files
    assert image_steps(client, run.info.run_id, "overlays") == [1, 2]
    inputs = {item.dataset.name: item for item in run.inputs.dataset_inputs}
    contexts = {name.rpartition("/")[2]: item.tags[0].value for name, item in inputs.items()}
    assert contexts == {"train": "training", "val": "validation"}
    assert {item.dataset.digest for item in inputs.values()} == {plan.manifest.hash}

    (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert (model.name, model.status, model.model_type) == ("model", "READY", "segmentation")
    linked = {metric.key: metric for metric in model.metrics}
    assert linked["dice_mean"].value == result["metrics"]["dice_mean"]
    assert (linked["dice_mean"].step, linked["dice_mean"].dataset_digest) == (2, plan.manifest.hash)
    assert "train_loss" in linked
    assert "## Validation" in model.tags["mlflow.note.content"]

    # The same name again is the same run, which is over: nothing is trained twice.
    again = train_here(two)
    assert again["run_id"] == result["run_id"]
    assert again["metrics"] == result["metrics"]
    # Longer, it resumes from there, on one rank too.
    longer = train_here(with_settings(plan, **{"train.max_epochs": 3}))
    assert longer["run_id"] == result["run_id"]
    assert longer["metrics"]["epoch"] == 3
    with pytest.raises(UsageError, match="other settings"):
        train_here(with_settings(two, **{"optim.lr": 0.5}))


def test_lost_ranks_end_the_others_and_the_run_goes_on_with_new_ones(
    plan: RunPlan, mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = {"train.max_epochs": 3, "train.num_validations": 3, "train.num_workers": 2}
    plan = dataclasses.replace(with_settings(plan, **settings), log_model=False)
    monkeypatch.setattr(train, "COLLECTIVE_TIMEOUT_S", 30)
    monkeypatch.setenv("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "30")
    # The epochs after which a rank dies, and hangs.
    losses, latest = {1: signal.SIGKILL, 2: signal.SIGSTOP}, Path(plan.storage) / "latest.json"
    seen = tmp_path / "ranks"
    seen.mkdir()

    def strike(metrics: dict[str, float]) -> dict[str, float]:
        """Runs on each rank after a validation; the other waits in the collective that a lost rank does not join."""
        epoch, reduce = int(metrics["epoch"]), dist.all_reduce
        (seen / f"{os.getpid()}").write_text(f"{epoch} {dist.get_rank()}")

        def lose(*arguments: Any, **options: Any) -> Any:
            while f"step-{int(metrics['step']):010d}" not in latest.read_text():
                time.sleep(0.05)
            os.kill(os.getpid(), losses[epoch])
            return reduce(*arguments, **options)

        if epoch in losses and dist.get_rank() == 1:
            dist.all_reduce = lose
        return metrics

    result = run_training(plan, to_report=strike)
    # Each time both ranks are new ones. The one that hangs is ended too.
    ranks = {int(file.name): file.read_text() for file in seen.iterdir()}
    assert sorted(ranks.values()) == [f"{epoch} {rank}" for epoch in (1, 2, 3) for rank in (0, 1)]
    processes = []
    for number in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(number))
    _, alive = psutil.wait_procs(processes, timeout=60)
    for process in alive:
        process.kill()
    assert alive == []
    assert result["metrics"]["epoch"] == 3
    assert result["metrics"]["num_slices"] == 3 * 4 * plan.config.train.batch_size
    runs = MlflowClient(mlflow_server).search_runs(
        [MlflowClient(mlflow_server).get_experiment_by_name("integration").experiment_id],
        filter_string=f"attributes.run_name = '{plan.run_name}'",
    )
    assert [run.info.run_id for run in runs] == [result["run_id"]]


def test_no_validation_cases_is_no_obstacle_to_training(plan: RunPlan, train_here: Train):
    every = tuple(entry.case_id for entry in plan.manifest.select("labelled"))
    manifest = dataclasses.replace(plan.manifest, splits={"train": every, "val": (), "test": ()})
    unjudged = dataclasses.replace(plan, manifest=manifest)
    result = train_here(unjudged, log_model=True)
    assert result["metrics"]["epoch"] == 2
    assert not any(name.startswith("dice") for name in result["metrics"])
    with pytest.raises(DataError, match="the split has none"):
        run_sweep(SweepPlan(base=unjudged, num_trials=1, num_concurrent=1, model_name="none"))


def test_what_goes_wrong_on_a_worker_reaches_the_user_in_its_own_words(plan: RunPlan):
    manifest = dataclasses.replace(plan.manifest, splits={"train": (), "val": (), "test": ()})
    with pytest.raises(DataError, match="no labelled case is left"):
        run_training(dataclasses.replace(plan, manifest=manifest))
    with pytest.raises(UsageError, match="64 workers of 1 CPU each were asked for"):
        run_training(with_settings(plan, **{"train.batch_size": 64, "train.num_workers": 64}))


def test_a_sweep_survives_a_diverging_trial_registers_its_winner_and_goes_on(
    plan: RunPlan, mlflow_server: str
):
    # The winner's model is logged when it is registered.
    base = with_settings(
        dataclasses.replace(plan, kind="sweep", log_model=False),
        **{"optim.grad_clip": 0.0, "net.options.norm": "none"},
    )
    sweep = SweepPlan(
        base=base,
        num_trials=2,
        num_concurrent=2,
        model_name=f"m-{plan.run_name}",
        points=({"optim.lr": 10.0},),
        custom=parse_space(["optim.lr=log:1e-4:10"]),
    )
    result = run_sweep(sweep)
    best, diverged = result["trials"]
    assert (best["state"], diverged["state"]) == ("complete", "failed")
    assert (diverged["settings"]["optim.lr"], diverged["objective"]) == (10.0, sweep.search.worst)
    assert "the run diverged" in diverged["reason"]
    assert best["objective"] > diverged["objective"]
    assert result["model"] == f"models:/m-{plan.run_name}/1"

    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("integration")
    children = client.search_runs(
        [experiment.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{result['run_id']}'"
    )
    status = {child.info.run_id: child.info.status for child in children}
    assert sorted(status.values()) == ["FAILED", "FINISHED"]
    assert status[result["winner"]["run_id"]] == "FINISHED"
    files = {item.path for item in client.list_artifacts(result["run_id"])}
    assert {"trials.json", "trials.md", "trials.png"} <= files

    again = run_sweep(sweep)
    assert again["run_id"] == result["run_id"]
    assert [row["trial"] for row in again["trials"]] == [row["trial"] for row in result["trials"]]
    assert again["model"] == result["model"]

    # More of them are added; fewer take none away.
    more = run_sweep(dataclasses.replace(sweep, num_trials=3))
    assert more["run_id"] == result["run_id"]
    before, now = ({row["trial"]: row for row in found["trials"]} for found in (result, more))
    assert len(now) == 3
    # What they were and reached is as it was; their ranks may not be.
    for trial, row in before.items():
        assert {**now[trial], "rank": 0} == {**row, "rank": 0}
    (added,) = now.keys() - before.keys()
    assert start_order(more["trials"])[-1]["trial"] == added
    assert more["summary"]["num_trials"] == 3
    children = client.search_runs(
        [experiment.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{result['run_id']}'"
    )
    assert {child.info.run_name for child in children} == {f"{base.run_name}/{trial}" for trial in now}
    fewer = run_sweep(dataclasses.replace(sweep, num_trials=2))
    assert [row["trial"] for row in fewer["trials"]] == [row["trial"] for row in more["trials"]]


def test_a_front_of_dice_and_cost_in_a_space_of_the_user_s_own(plan: RunPlan, mlflow_server: str):
    base = with_settings(
        dataclasses.replace(plan, kind="sweep", log_model=False),
        **{"train.max_epochs": 1, "train.precision": "auto"},
    )
    sweep = SweepPlan(
        base=base,
        num_trials=2,
        num_concurrent=2,
        model_name=f"f-{plan.run_name}",
        mode="pareto",
        points=({"net.options.depth": 2, "optim.lr": 1e-3},),
        custom=parse_space(["none", "net.options.depth=2,3", "optim.lr=log:1e-4:1e-2"]),
    )
    answer = run_sweep(sweep)
    assert [set(row["settings"]) for row in answer["trials"]] == [{"net.options.depth", "optim.lr"}] * 2
    assert (answer["summary"]["num_trials"], answer["summary"]["num_complete"]) == (2, 2)
    cheap, dear = sorted(answer["trials"], key=lambda row: row["settings"]["net.options.depth"])
    assert cheap["gflops"] < dear["gflops"]
    # The cheaper one is on the front, however it segments, and the other one only where it segments better.
    is_better = dear["objective"] > cheap["objective"]
    assert answer["front"] == [cheap["trial"], *([dear["trial"]] if is_better else [])]
    assert answer["winner"]["trial"] == answer["trials"][0]["trial"]

    client = MlflowClient(mlflow_server)
    files = {item.path for item in client.list_artifacts(answer["run_id"])}
    assert {"trials.json", "trials.md", "trials.png", "pareto.png", "summary.json"} <= files
    space = json.loads(client.get_run(answer["run_id"]).data.params["space"])
    assert space == {"net.options.depth": "2,3", "optim.lr": "log:0.0001:0.01"}
    # A trial that is added has the precision that was decided, whichever it would choose.
    storage = open_storage(base.storage)
    decided = json.loads(storage.read(PRECISION_FILE))
    other = {work: "fp32" if name == "bf16" else "bf16" for work, name in decided.items()}
    storage.write(PRECISION_FILE, json.dumps(other).encode())
    more = run_sweep(dataclasses.replace(sweep, num_trials=3))
    (added,) = {row["trial"] for row in more["trials"]} - {row["trial"] for row in answer["trials"]}
    experiment = client.get_run(answer["run_id"]).info.experiment_id
    for trial, expected in ((cheap["trial"], decided), (added, other)):
        (run,) = client.search_runs([experiment], f"run_name = '{base.run_name}/{trial}'")
        tags = run.data.tags
        assert {work: tags[f"glioray.precision_{work}"] for work in decided} == expected
    assert more["summary"]["num_complete"] == len(more["trials"]) == 3
    with pytest.raises(UsageError, match="exists with another search space"):
        run_sweep(dataclasses.replace(sweep, custom=parse_space(["net.options.depth=2,3"])))


def test_evaluation_and_prediction_of_a_run_s_folder(
    plan: RunPlan, tmp_path: Path, phantom_data: Path, train_here: Train
):
    train_here(plan)
    package = fetch_package(plan.storage, tmp_path / "package")
    entries = plan.manifest.select("val")
    cases, slices, failed = evaluate_cases(package, plan.manifest.data, entries)
    assert failed == {}
    assert set(cases) == set(slices) == {entry.case_id for entry in entries}
    # Validation during the training evaluated the same model on the same cases.
    recorded = json.loads((package / "model.json").read_text())["val_cases"]
    for case_id, metrics in cases.items():
        for region, dice in recorded[case_id].items():
            assert metrics[region]["dice"] == pytest.approx(dice, abs=1e-3)

    files = [entry.files for entry in plan.manifest.select("all")[:2]]
    lost = dataclasses.replace(files[1], images={**files[1].images, "t2": "not/there.nii.gz"})
    masks, failed = predict_cases(package, str(phantom_data), [files[0], lost], str(tmp_path / "masks"))
    assert set(masks) == {files[0].case_id}
    assert Path(masks[files[0].case_id]).is_file()
    assert "not/there.nii.gz" in failed[lost.case_id]
