"""A population of super-resolution GANs through Ray, which begins with one generator that is there already."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from glioray.config import with_settings
from glioray.engine.checkpoint import Checkpoint, save_checkpoint
from glioray.engine.on_mlflow.registry import fetch_package
from glioray.engine.on_ray.population import last_storage
from glioray.engine.on_ray.search import run_sweep
from glioray.engine.run import RunPlan
from glioray.engine.search import SweepPlan
from glioray.engine.space import parse_space
from glioray.storage import open_storage
from glioray.tasks import load_task
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.package import SuperResSpec, read_superres, stage_weights
from glioray.tasks.superres.recipes import build_gan_recipe

pytestmark = pytest.mark.usefixtures("ray_local")

# Adam at 0.1 moves every weight by about its own size in each step: after four of them the outputs are far outside
# [0, 1] whatever the precision, the instruction set, the number of threads and the seed.
RUINOUS, SOUND = 0.1, 2e-4


def untrained(config: GanConfig, place: str) -> str:
    spec = SuperResSpec(
        config=config, spacing_mm=(1.0, 1.0, 1.0), manifest_hash="0", train_patients=(), stages=("psnr",)
    )
    weights = stage_weights({"psnr": spec.build().state_dict()})
    save_checkpoint(open_storage(place), Checkpoint(step=0, spec=spec, weights=weights, state={}))
    return place


@pytest.fixture
def gan_plan(plan: RunPlan, tmp_path: Path) -> RunPlan:
    """Three epochs of four adversarial steps, each with a validation.

    Only the winner's model is logged, when it is registered.
    """
    settings = {
        "train.max_epochs": 3,
        "train.num_validations": 3,
        "sample.steps_per_epoch": 4,
        "generator.options.width": 4,
        "discriminator.options.width": 4,
        "pretrain.share": 0.0,
        "loss.adversarial": "vanilla",
        "loss.pixel_weight": 0.01,
        "collapse.grace": 0,
        "collapse.patience": 1,
        "optim_g.lr": SOUND,
        "optim_d.lr": SOUND,
    }
    config = with_settings(build_gan_recipe("mri_tiny"), settings)
    source = {"pretrain.source": untrained(config, str(tmp_path / "psnr"))}
    task, config = load_task("superres"), with_settings(config, source)
    return dataclasses.replace(plan, task=task, config=config, log_model=False)


def trial_runs(client: MlflowClient, run_id: str) -> list[Run]:
    """Those of a sweep's trials."""
    experiment = client.get_run(run_id).info.experiment_id
    return list(client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'"))


def test_a_bad_member_goes_on_from_a_better_one_and_the_best_is_registered(
    gan_plan: RunPlan, tmp_path: Path, mlflow_server: str
):
    # One at a time: members take turns, and the bad one, which is the second, meets what the other reaches in its turn.
    sweep = SweepPlan(
        base=gan_plan,
        num_trials=2,
        num_concurrent=1,
        model_name=tmp_path.name,
        mode="pbt",
        points=({"optim_g.lr": RUINOUS},),
        custom=parse_space([f"optim_g.lr=log:1e-5:{RUINOUS}"]),
    )
    answer = run_sweep(sweep)
    assert [row["percent"] for row in answer["trials"]] == [100, 100]
    rates = {row["settings"]["optim_g.lr"]: row["trial"] for row in answer["trials"]}
    (bad,) = [trial for rate, trial in rates.items() if rate != SOUND]
    assert SOUND in rates
    assert RUINOUS not in rates

    # It began with its own rate, then went on with what the better one had learned by then.
    trials = Path(gan_plan.storage) / "trials"
    courses = [json.loads(file.read_text()) for file in sorted((trials / bad).glob("*/history.json"))]
    assert (courses[0][0]["train_rate_g"], courses[0][0]["is_collapsed"]) == (RUINOUS, 1)
    course = courses[-1]
    assert [row["epoch"] for row in course] == [1, 2, 3]
    taken_over = [row for row in course if row["train_rate_g"] == pytest.approx(SOUND)]
    assert len(taken_over) == 2
    good = json.loads((Path(last_storage(str(trials / rates[SOUND]))) / "history.json").read_text())
    assert taken_over == course[:2] == good[:2]

    client = MlflowClient(mlflow_server)
    spec, _ = read_superres(fetch_package(answer["model"], tmp_path / "model", tracking_uri=mlflow_server))
    assert spec.metrics["objective"] == max(row["objective"] for row in answer["trials"])
    assert spec.metrics["objective"] == answer["metrics"]["objective"]
    assert spec.collapse == "healthy"
    assert "RUNNING" not in [run.info.status for run in trial_runs(client, answer["run_id"])]
