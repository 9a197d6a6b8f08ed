"""A search for super-resolution GANs from the command line: what collapses is stopped and never wins."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from glioray.inference.superres_package import parse_superres
from glioray.storage import open_storage

RunJob = Callable[..., subprocess.CompletedProcess[str]]

# The source project's pathology: rates a hundredfold, and next to no pixel loss to hold the generator.
BAD = (
    "optim_g.lr=0.01,rate_ratio=4,loss.adversarial=vanilla,loss.adversarial_weight=0.1,loss.pixel_weight=0.01"
)


@pytest.fixture
def shared(tmp_path: Path, phantom_data: Path, mlflow_server: str) -> list[str]:
    settings = (
        "train.num_validations=8",
        "collapse.grace=1",
        "collapse.patience=1",
        "sample.steps_per_epoch=5",
    )
    flags = [flag for setting in settings for flag in ("--set", setting)]
    place = ["--data", str(phantom_data), "--storage", str(tmp_path / "runs")]
    return [*place, "--recipe", "mri_tiny", "--max-epochs", "16", *flags]


def test_a_trial_that_collapses_is_stopped_with_its_reason_and_a_healthy_one_wins(
    run_job: RunJob, shared: list[str], tmp_path: Path, mlflow_server: str
):
    env = {"HOME": str(tmp_path), "GLIORAY_CACHE": str(tmp_path / "cache")}
    done = run_job(
        "jobs/tune_gan.py", *shared, "--trials", "4", "--concurrent", "2", "--run-name", "sweep", "--point", BAD,
        "--name", tmp_path.name, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    assert len(answer["trials"]) == 4
    (bad,) = [row for row in answer["trials"] if row["settings"]["optim_g.lr"] == 0.01]
    assert bad["state"] == "collapsed"
    assert bad["reason"].startswith("collapsed: ")
    assert bad["percent"] < 100
    assert bad["objective"] <= -1.5
    summary = answer["collapse"]
    assert summary["num_collapsed"] >= 1
    assert summary["saved_by_collapse"] > 0
    assert answer["winner"]["trial"] != bad["trial"]
    assert answer["metrics"]["is_collapsed"] == 0
    assert answer["metrics"]["objective"] >= -1

    client = MlflowClient(mlflow_server)
    name, _, number = answer["model"].removeprefix("models:/").rpartition("/")
    tags = client.get_model_version(name, number).tags
    assert {"quality", "gain_psnr", "collapse_score", "recipe", "manifest_hash", "sweep"} <= set(tags)
    files = {item.path for item in client.list_artifacts(answer["run_id"])}
    assert {"trials.json", "trials.md", "trials.png", "rates.png", "summary.json"} <= files
    sweep = client.get_run(answer["run_id"])
    children = client.search_runs(
        [sweep.info.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{answer['run_id']}'"
    )
    stopped = {run.info.run_name: run.data.tags.get("glioray.stopped", "") for run in children}
    assert stopped[f"sweep/{bad['trial']}"] == bad["reason"]
    # All trials began with one of two states of one generator, which was trained once.
    storage = open_storage(tmp_path / "runs" / "sweep")
    assert {"sweep/pretrain-20", "sweep/pretrain-50"} <= set(stopped)
    for row in answer["trials"]:
        folder = json.loads(storage.read(f"trials/{row['trial']}/latest.json"))["checkpoint"]
        spec = parse_superres(storage.read(f"trials/{row['trial']}/{folder}/model.json"))
        share = row["settings"]["pretrain.share"]
        source = f"{storage.uri}/pretrain/{round(100 * share)}-percent" if share else None
        assert (spec.config.pretrain.source, spec.config.pretrain.share) == (source, 0)
        assert spec.config.train.max_epochs == round(16 * (1 - share))


def test_a_point_outside_the_space_is_said_before_anything_is_trained(
    run_job: RunJob, shared: list[str], tmp_path: Path
):
    env = {"HOME": str(tmp_path), "GLIORAY_CACHE": str(tmp_path / "cache")}
    done = run_job("jobs/tune_gan.py", *shared, "--point", "optim.lr=1", "--dry-run", env=env)
    assert done.returncode == 2
    assert "'optim.lr' is not searched" in done.stderr
    assert "Traceback" not in done.stderr
