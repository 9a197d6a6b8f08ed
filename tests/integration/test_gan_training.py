"""Super-resolution: two ranks on Ray, what MLflow holds of them, and runs that end before their time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from glioray.config import override
from glioray.engine.on_mlflow.registry import fetch_package
from glioray.engine.on_ray.train import run_training
from glioray.engine.run import RunPlan
from glioray.errors import DivergenceError
from glioray.tasks import load_task
from glioray.tasks.superres.config import COLLAPSE_COMPONENTS
from glioray.tasks.superres.package import read_superres
from glioray.tasks.superres.recipes import build_gan_recipe

pytestmark = pytest.mark.usefixtures("ray_local")

Train = Callable[..., dict[str, Any]]


def with_settings(plan: RunPlan, **settings: object) -> RunPlan:
    return dataclasses.replace(plan, config=override(plan.config, **settings))


@pytest.fixture
def gan_plan(plan: RunPlan) -> RunPlan:
    """Two epochs of four steps, one of each stage, on two ranks."""
    config = override(
        build_gan_recipe("mri_tiny"),
        **{
            "train.max_epochs": 2,
            "train.num_validations": 2,
            "train.precision": "fp32",
            "train.num_workers": 2,
            "sample.steps_per_epoch": 4,
            "generator.options.width": 4,
            "discriminator.options.width": 4,
        },
    )
    return dataclasses.replace(plan, task=load_task("superres"), config=config)


def test_two_ranks_learn_what_one_rank_learns(
    gan_plan: RunPlan, tmp_path: Path, mlflow_server: str, train_here: Train
):
    result = run_training(gan_plan)
    assert "stopped" not in result
    alone = dataclasses.replace(gan_plan, storage=str(tmp_path / "one"), run_name=f"{gan_plan.run_name}-one")
    one = train_here(with_settings(alone, **{"train.num_workers": 1}))
    for name in ("train_loss", "train_d_loss", "train_grad_g", "psnr", "hfen", "quality", "objective"):
        assert result["metrics"][name] == pytest.approx(one["metrics"][name], rel=5e-3, abs=2e-3), name

    client = MlflowClient(mlflow_server)
    run = client.get_run(result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["discriminator.options.norm"] == "spectral"
    assert run.data.params["train.num_workers"] == "2"
    assert run.data.tags["glioray.recipe"] == "mri_tiny"
    assert run.data.tags["glioray.manifest_hash"] == gan_plan.manifest.hash
    assert "glioray.stopped" not in run.data.tags
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "collapse_score")]
    assert steps == [1, 2]
    wanted = {
        "psnr",
        "bicubic_psnr",
        "ssim",
        "objective",
        "is_collapsed",
        "train_d_loss",
        "train_adversarial",
    }
    wanted |= {f"collapse_{name}" for name in COLLAPSE_COMPONENTS}
    assert wanted <= run.data.metrics.keys()
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"gan_curves.png", "panels.png", "images"} <= files
    images = [item.path for item in client.list_artifacts(run.info.run_id, "images")]
    assert sorted(path.split("+")[2] for path in images if path.endswith(".png")) == ["1", "2"]

    for uri in (result["model"], gan_plan.storage):
        package = fetch_package(uri, tmp_path / uri.replace("/", "_"), tracking_uri=mlflow_server)
        spec, nets = read_superres(package)
        assert tuple(nets) == spec.stages == ("psnr", "gan")
        assert spec.metrics == result["metrics"]
        assert spec.collapse in ("healthy", "collapsed", "dead")

    # The same name again is the same run, which is over: nothing is trained twice.
    again = train_here(gan_plan)
    assert again["run_id"] == result["run_id"]
    assert again["metrics"] == result["metrics"]


def test_a_collapsed_run_ends_itself_and_says_why(gan_plan: RunPlan, mlflow_server: str, train_here: Train):
    ruinous = with_settings(
        gan_plan,
        **{"optim_g.lr": 0.3, "pretrain.share": 0.0, "train.max_epochs": 12, "train.num_validations": 12},
        **{"collapse.grace": 0, "train.num_workers": 1},
    )
    result = train_here(ruinous)
    assert result["stopped"].startswith("collapsed: ")
    assert result["metrics"]["is_collapsed"] == 1
    assert result["metrics"]["objective"] <= -1.5
    assert result["metrics"]["epoch"] < 12
    run = MlflowClient(mlflow_server).get_run(result["run_id"])
    assert run.info.status == "KILLED"
    epoch = int(result["metrics"]["epoch"])
    assert run.data.tags["glioray.stopped"] == f"{result['stopped']} at epoch {epoch}"
    history = json.loads((Path(ruinous.storage) / "history.json").read_text())
    assert [row["is_collapsed"] for row in history][-2:] == [0, 1]


def test_a_diverged_run_says_who_diverged(gan_plan: RunPlan, mlflow_server: str, train_here: Train):
    # The square of what this makes of the images is beyond float32.
    plan = with_settings(
        gan_plan,
        **{"pretrain.rate": 1.0, "pretrain.share": 1.0, "pretrain.pixel": "mse", "optim_g.name": "sgd"},
        **{"train.max_epochs": 30, "optim_g.momentum": 0.99, "collapse.stop": False},
        **{
            "train.num_workers": 1,
            "train.num_validations": 1,
            "pretrain.schedule": "constant",
            "optim_g.ema": 0.0,
        },
    )
    with pytest.raises(
        DivergenceError, match=r"the generator's \w+ became non-finite \(first in '.*lower pretrain\.rate"
    ):
        train_here(plan)
    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("integration")
    (run,) = client.search_runs(
        [experiment.experiment_id], filter_string=f"attributes.run_name = '{plan.run_name}'"
    )
    assert run.info.status == "FAILED"
