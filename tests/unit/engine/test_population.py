"""What members of a population differ in, and what one takes over from another; no Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.schedulers.pbt import _explore

from glioray.cases.manifest import Manifest
from glioray.config import with_settings
from glioray.engine.checkpoint import LATEST
from glioray.engine.on_ray import population as on_ray
from glioray.engine.on_ray.population import (
    last_storage,
    member_domains,
    num_kept,
    population,
    train_member,
)
from glioray.engine.on_ray.resources import WorkerResources
from glioray.engine.run import CONFIG_FILE, HISTORY_FILE, RunPlan
from glioray.engine.search import SweepPlan, recipe_point
from glioray.storage import open_storage
from glioray.tasks import load_task
from glioray.tasks.segmentation.recipes import build_recipe
from glioray.tasks.superres.recipes import build_gan_recipe
from glioray.tasks.superres.space import RATIO, gan_space

CONFIG = with_settings(build_gan_recipe("mri_small"), {"train.minutes": None})


def _plan(config: Any = CONFIG, storage: str = "/none") -> RunPlan:
    return RunPlan(
        task=load_task(config.task),
        config=config,
        manifest=Manifest(data="file:///none", cases=(), problems=(), splits={}, folds=(), seed=0),
        storage=storage,
        run_name="sweep/good",
        tracking_uri="sqlite:///none",
        experiment="e",
    )


def _sweep(num_trials: int, points: tuple[dict[str, Any], ...] = (), config: Any = CONFIG) -> SweepPlan:
    return SweepPlan(
        base=_plan(config), num_trials=num_trials, num_concurrent=1, model_name="m", mode="pbt", points=points
    )


def test_the_first_members_are_the_recipe_and_the_points():
    rule = population(_sweep(4, ({"optim_g.lr": 1e-2},)))
    first, second = rule.search_alg._points_to_evaluate  # type: ignore[union-attr]
    point = recipe_point(load_task("superres").search, CONFIG, gan_space(CONFIG))
    names = {"optim_g.lr", RATIO, "loss.adversarial_weight", "loss.perceptual_weight"}
    assert first == {name: point[name] for name in names}
    assert second == first | {"optim_g.lr": 1e-2}


def test_what_takes_over_stays_within_the_space():
    scheduler: Any = population(_sweep(4)).scheduler
    space = gan_space(CONFIG)
    point = recipe_point(load_task("superres").search, CONFIG, gan_space(CONFIG)) | {
        "optim_g.lr": 1e-2,
        RATIO: 0.25,
    }
    for _ in range(40):
        made, _ = _explore(
            point,
            scheduler._hyperparam_mutations,
            0.0,
            scheduler._perturbation_factors,
            scheduler._custom_explore_fn,
        )
        assert all(bounds._contains(bounds.to_internal_repr(made[name])) for name, bounds in space.items())
        assert made["loss.adversarial_weight"] != point["loss.adversarial_weight"]


def test_members_of_a_segmentation_differ_in_what_can_change_in_the_middle_of_a_run():
    config = with_settings(build_recipe("unet_tiny"), {"train.minutes": None})
    plan = _sweep(3, config=config)
    (first,) = population(plan).search_alg._points_to_evaluate  # type: ignore[union-attr]
    assert set(first) == {"optim.lr", "augment.strength", "loss.options.ce_weight"}
    domains = member_domains(plan)
    assert domains["net.options.width"] == config.net.options["width"]
    draws = [domains["augment.strength"].sample() for _ in range(20)]
    assert all(0 <= draw <= 1.5 for draw in draws)
    assert min(draws) < 0.5 < max(draws)


def test_a_member_at_100_percent_is_not_exchanged():
    scheduler: Any = population(_sweep(2)).scheduler
    decision = scheduler.on_trial_result(
        None, SimpleNamespace(trial_id="a"), {"percent": 100, "objective": -2.0}
    )
    assert decision == TrialScheduler.CONTINUE


@pytest.mark.parametrize(("num_validations", "kept"), [(4, 3), (5, 3), (10, 5), (20, 9)])
def test_checkpoints_of_two_exchanges_are_kept(num_validations: int, kept: int):
    assert num_kept(num_validations) == kept


class _Given:
    """A checkpoint as Tune hands it over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def as_directory(self) -> Iterator[str]:
        yield str(self.folder)


def test_a_member_continues_from_what_another_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a folder of its own, with the other's checkpoint and its history so far."""
    reports: list[Any] = []
    given: list[Any] = [None]
    monkeypatch.setattr(on_ray.tune, "get_checkpoint", lambda: given[0])
    monkeypatch.setattr(on_ray.tune, "report", lambda metrics, checkpoint: reports.append(metrics))

    def keep(folder: str) -> Path:
        kept = tmp_path / f"kept-{len(reports)}"
        Path(folder).rename(kept)
        Path(folder).mkdir()
        return kept

    monkeypatch.setattr(on_ray.tune.Checkpoint, "from_directory", keep)

    def train(plan: RunPlan, ranks: Any, report: Any) -> None:
        storage = open_storage(plan.storage)
        history = json.loads(storage.read(HISTORY_FILE)) if storage.exists(HISTORY_FILE) else []
        epoch = len(history) + 1
        storage.write(CONFIG_FILE, b"{}")
        storage.write(f"checkpoints/step-{epoch}/state.pt", b"state")
        storage.write(LATEST, json.dumps({"checkpoint": f"checkpoints/step-{epoch}"}).encode())
        storage.write(HISTORY_FILE, json.dumps([*history, {"epoch": epoch}]).encode())
        report({"epoch": epoch})

    monkeypatch.setattr(on_ray, "train_measured", train)
    plan = _plan(storage=str(tmp_path / "good"))
    resources = WorkerResources(num_cpus=1.0, num_gpus=0.0, num_threads=1)
    train_member(plan, resources, dict)
    given[0] = _Given(tmp_path / "kept-0")
    train_member(dataclasses.replace(plan, storage=str(tmp_path / "bad")), resources, dict)
    train_member(dataclasses.replace(plan, storage=str(tmp_path / "bad")), resources, dict)
    assert [metrics["epoch"] for metrics in reports] == [1, 2, 2]
    assert last_storage(str(tmp_path / "bad")).endswith("bad/generation-001")
    last = open_storage(last_storage(str(tmp_path / "bad")))
    assert json.loads(last.read(HISTORY_FILE)) == [{"epoch": 1}, {"epoch": 2}]
    assert last.read("checkpoints/step-1/state.pt") == b"state"
