"""A search for a front of super-resolution GANs from the command line: what collapses is stopped and never wins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from glioray.engine.collectives import Ranks
from glioray.engine.on_ray import search
from glioray.engine.on_ray.agreement import PRECISION_FILE
from glioray.engine.on_ray.placement import fill_cache
from glioray.engine.run import train_run
from glioray.errors import UsageError
from glioray.storage import open_storage
from glioray.tasks.superres.package import parse_superres

RunHere = Callable[..., dict[str, Any]]

# Adam at 0.1 moves every weight by about its own size in each step, so that after ten steps the outputs are far outside
# [0, 1]: a score of 1 in fp32 and bf16, with any instruction set, number of threads and seed that we tried.
RUINOUS = ("optim_g.lr=0.1", "optim_d.lr=0.1")
SOUND = "optim_g.lr=0.0002"


@pytest.fixture
def shared(tmp_path: Path, phantom_manifest: str, mlflow_server: str) -> list[str]:
    settings = (
        "train.num_validations=4",
        "collapse.grace=1",
        "collapse.patience=1",
        "sample.steps_per_epoch=5",
        "generator.options.width=4",
        "discriminator.options.width=4",
        *RUINOUS,
    )
    flags = [flag for setting in settings for flag in ("--set", setting)]
    place = ["--data", phantom_manifest, "--storage", str(tmp_path / "runs")]
    return [*place, "--recipe", "mri_tiny", "--max-epochs", "8", *flags]


def test_a_trial_that_collapses_is_stopped_with_its_reason_and_a_healthy_one_wins(
    run_here: RunHere,
    shared: list[str],
    tmp_path: Path,
    mlflow_server: str,
    monkeypatch: pytest.MonkeyPatch,
):
    # The pretraining in this process, without ranks of Ray's: `test_gan_training` has those.
    monkeypatch.setattr(search, "run_training", lambda plan, **_: train_run(plan, Ranks(), fill_cache))
    answer = run_here(
        "tune_gan", *shared, "--trials", "2", "--concurrent", "2", "--run-name", "sweep", "--point", SOUND,
        "--search", "pretrain.share=0,0.5", "--name", tmp_path.name, "--mode", "pareto",
    )  # fmt: skip
    assert len(answer["trials"]) == 2
    (bad,) = [row for row in answer["trials"] if row["settings"]["optim_g.lr"] == 0.1]
    assert bad["state"] == "collapsed"
    assert bad["reason"].startswith("collapsed: ")
    # The first evaluation is grace, and the second of four ends it.
    assert bad["percent"] == 50
    assert bad["objective"] <= -1.5
    summary = answer["collapse"]
    assert summary["num_collapsed"] >= 1
    assert summary["saved_by_collapse"] > 0
    (sound,) = [row for row in answer["trials"] if row["settings"]["optim_g.lr"] == 0.0002]
    assert sound["objective"] >= -1
    assert answer["winner"]["trial"] == sound["trial"]
    assert answer["front"] == [sound["trial"]]
    assert answer["metrics"]["is_collapsed"] == 0
    assert answer["metrics"]["objective"] >= -1

    client = MlflowClient(mlflow_server)
    name, _, number = answer["model"].removeprefix("models:/").rpartition("/")
    tags = client.get_model_version(name, number).tags
    assert {"quality", "gain_psnr", "collapse_score", "recipe", "manifest_hash"} <= set(tags)
    assert tags["sweep"] == "sweep"
    files = {item.path for item in client.list_artifacts(answer["run_id"])}
    assert {"trials.json", "trials.md", "trials.png", "rates.png", "summary.json", "pareto.png"} <= files
    sweep = client.get_run(answer["run_id"])
    children = client.search_runs(
        [sweep.info.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{answer['run_id']}'"
    )
    stopped = {run.info.run_name: run.data.tags.get("glioray.stopped", "") for run in children}
    assert stopped[f"sweep/{bad['trial']}"] == bad["reason"]
    assert "RUNNING" not in {run.info.status for run in children}
    storage = open_storage(tmp_path / "runs" / "sweep")
    # A precision that is not the user's is decided once, for the pretraining and both trials.
    decided = json.loads(storage.read(PRECISION_FILE))
    assert decided.keys() == {"training", "super-resolution"}
    for work, name in decided.items():
        assert [run.data.tags[f"glioray.precision_{work}"] for run in children] == [name] * 3
    # All trials began with one generator, which was trained once.
    assert "sweep/pretrain-50" in stopped
    for row in answer["trials"]:
        folder = json.loads(storage.read(f"trials/{row['trial']}/latest.json"))["checkpoint"]
        spec = parse_superres(storage.read(f"trials/{row['trial']}/{folder}/model.json"))
        share = row["settings"]["pretrain.share"]
        source = f"{storage.uri}/pretrain/{round(100 * share)}-percent" if share else None
        assert (spec.config.pretrain.source, spec.config.pretrain.share) == (source, 0)
        assert spec.config.train.max_epochs == round(8 * (1 - share))


def test_a_point_outside_the_space_is_said_before_anything_is_trained(run_here: RunHere, shared: list[str]):
    with pytest.raises(UsageError, match=r"'optim\.lr' is not searched"):
        run_here("tune_gan", *shared, "--point", "optim.lr=1", "--dry-run")
