"""What members of a population differ by, and what one takes over from another; no Ray."""

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
from glioray.engine.on_ray.connect import WorkerResources
from glioray.engine.run import CONFIG_FILE, HISTORY_FILE, RunPlan
from glioray.storage import open_storage
from glioray.tasks import load_task
from glioray.tasks.superres import population as gan_population
from glioray.tasks.superres.population import last_storage, num_kept, population, train_member
from glioray.tasks.superres.recipes import build_gan_recipe
from glioray.tasks.superres.space import RATIO, gan_space, recipe_point

CONFIG = build_gan_recipe("mri_small")


def test_the_first_members_are_the_recipe_and_the_points():
    rule = population(CONFIG, 4, ({"optim_g.lr": 1e-2},))
    first, second = rule.search_alg._points_to_evaluate  # type: ignore[union-attr]
    point = recipe_point(CONFIG)
    names = {"optim_g.lr", RATIO, "loss.adversarial_weight", "loss.perceptual_weight"}
    assert first == {name: point[name] for name in names}
    assert second == first | {"optim_g.lr": 1e-2}


def test_what_takes_over_stays_within_the_space():
    scheduler: Any = population(CONFIG, 4, ()).scheduler
    space = gan_space(CONFIG)
    point = recipe_point(CONFIG) | {"optim_g.lr": 1e-2, RATIO: 0.25}
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


def test_a_member_at_its_end_is_left_to_end_by_itself():
    scheduler: Any = population(CONFIG, 2, ()).scheduler
    said = scheduler.on_trial_result(None, SimpleNamespace(trial_id="a"), {"percent": 100, "objective": -2.0})
    assert said == TrialScheduler.CONTINUE


@pytest.mark.parametrize(("num_validations", "kept"), [(4, 3), (5, 3), (10, 5), (20, 9)])
def test_checkpoints_of_two_exchanges_are_kept(num_validations: int, kept: int):
    assert num_kept(with_settings(CONFIG, {"train.num_validations": num_validations})) == kept


class _Given:
    """A checkpoint as Tune hands it over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def as_directory(self) -> Iterator[str]:
        yield str(self.folder)


def test_a_member_goes_on_from_what_another_one_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a folder of its own, with the other's checkpoint and its course so far."""
    told: list[Any] = []
    given: list[Any] = [None]
    monkeypatch.setattr(gan_population.tune, "get_checkpoint", lambda: given[0])
    monkeypatch.setattr(gan_population.tune, "report", lambda metrics, checkpoint: told.append(metrics))

    def keep(folder: str) -> Path:
        kept = tmp_path / f"kept-{len(told)}"
        Path(folder).rename(kept)
        Path(folder).mkdir()
        return kept

    monkeypatch.setattr(gan_population.tune.Checkpoint, "from_directory", keep)

    def train(plan: RunPlan, ranks: Any, fill: Any, report: Any) -> None:
        storage = open_storage(plan.storage)
        history = json.loads(storage.read(HISTORY_FILE)) if storage.exists(HISTORY_FILE) else []
        epoch = len(history) + 1
        storage.write(CONFIG_FILE, b"{}")
        storage.write(f"checkpoints/step-{epoch}/state.pt", b"state")
        storage.write(LATEST, json.dumps({"checkpoint": f"checkpoints/step-{epoch}"}).encode())
        storage.write(HISTORY_FILE, json.dumps([*history, {"epoch": epoch}]).encode())
        report({"epoch": epoch})

    monkeypatch.setattr(gan_population, "train_run", train)
    plan = RunPlan(
        task=load_task(CONFIG.task),
        config=CONFIG,
        manifest=Manifest(data="file:///none", cases=(), problems=(), splits={}, folds=(), seed=0),
        storage=str(tmp_path / "good"),
        run_name="sweep/good",
        tracking_uri="sqlite:///none",
        experiment="e",
    )
    share = WorkerResources(num_cpus=1.0, num_gpus=0.0, num_threads=1)
    train_member(plan, share, dict)
    given[0] = _Given(tmp_path / "kept-0")
    train_member(dataclasses.replace(plan, storage=str(tmp_path / "bad")), share, dict)
    train_member(dataclasses.replace(plan, storage=str(tmp_path / "bad")), share, dict)
    assert [metrics["epoch"] for metrics in told] == [1, 2, 2]
    assert last_storage(str(tmp_path / "bad")).endswith("bad/generation-001")
    last = open_storage(last_storage(str(tmp_path / "bad")))
    assert json.loads(last.read(HISTORY_FILE)) == [{"epoch": 1}, {"epoch": 2}]
    assert last.read("checkpoints/step-1/state.pt") == b"state"
