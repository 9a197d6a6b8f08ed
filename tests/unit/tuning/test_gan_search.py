"""What a search for super-resolution GANs costs, and what it refuses before it trains anything; no Ray."""

from __future__ import annotations

import math
from typing import Any

import pytest

from glioray.cases.manifest import Manifest
from glioray.config import with_settings
from glioray.engine.run import RunPlan
from glioray.errors import UsageError
from glioray.tasks import load_task
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.recipes import build_gan_recipe
from glioray.tasks.superres.search import GanSweepPlan, check_search
from glioray.tasks.superres.space import SHARE, SHARES, apply_gan_point, pretraining, recipe_point

POINT = {"optim_g.lr": 1e-2}


def sweep(config: GanConfig, num_trials: int, num_concurrent: int, mode: str = "search") -> GanSweepPlan:
    base = RunPlan(
        task=load_task(config.task),
        config=config,
        manifest=Manifest(data="file:///none", cases=(), problems=(), splits={}, folds=(), seed=0),
        storage="/none",
        run_name="sweep",
        tracking_uri="sqlite:///none",
        experiment="e",
    )
    return GanSweepPlan(
        base=base, num_trials=num_trials, num_concurrent=num_concurrent, model_name="m", mode=mode
    )


@pytest.mark.parametrize("source", [None, "/runs/psnr"])
@pytest.mark.parametrize(("num_trials", "num_concurrent"), [(12, 2), (4, 3), (5, 4), (2, 4), (1, 1)])
def test_the_minutes_of_a_search_are_those_of_all_its_trials_and_their_pretraining(
    num_trials: int, num_concurrent: int, source: str | None
):
    config = with_settings(build_gan_recipe("mri_small"), {"train.minutes": 60, "pretrain.source": source})
    plan = sweep(config, num_trials, num_concurrent)
    each = plan.config.train.minutes
    assert each is not None
    # At worst no trial is stopped, and none begins with a generator that was trained before.
    pretrained = sum(
        pretraining(plan.config, begin, end, None).train.minutes or 0.0
        for begin, end in zip((0.0, *plan.shares), plan.shares, strict=False)
    )
    assert pretrained == pytest.approx(0.0 if source else 0.5 * each)
    assert pretrained + math.ceil(num_trials / num_concurrent) * each == pytest.approx(60)


@pytest.mark.parametrize("max_epochs", range(3, 30))
def test_every_trial_has_the_same_epochs_in_all(max_epochs: int):
    config = with_settings(build_gan_recipe("mri_tiny"), {"train.max_epochs": max_epochs})
    first, second = (pretraining(config, *part, None).train.max_epochs for part in ((0.0, 0.2), (0.2, 0.5)))
    before = dict(zip(SHARES, (0, first, first + second), strict=True))
    sources = dict.fromkeys(SHARES, "/runs/psnr")
    for share, num_epochs in before.items():
        made = apply_gan_point(config, recipe_point(config) | {SHARE: share}, sources)
        assert num_epochs + made.train.max_epochs == max_epochs


def test_a_population_pretrains_for_its_own_share_alone():
    config = build_gan_recipe("mri_tiny")
    assert sweep(config, 4, 2).shares == sweep(config, 4, 2, "pareto").shares == (0.2, 0.5)
    assert sweep(config, 4, 2, "pbt").shares == (0.5,)
    assert sweep(with_settings(config, {"pretrain.share": 0.0}), 4, 2, "pbt").shares == ()


@pytest.mark.parametrize(
    ("mode", "settings", "points", "num_trials", "sentence"),
    [
        ("search", {}, ({"optim.lr": 1},), 4, "'optim.lr' is not searched"),
        ("search", {}, (POINT, POINT), 2, "2 points are given.*but there are 2 trials; ask for at least 3"),
        ("pareto", {}, (POINT,), 1, "ask for at least 2"),
        ("pbt", {}, (POINT, POINT), 2, "ask for at least 3"),
        ("pbt", {}, ({"d_steps": 2},), 4, "members of a population have 'd_steps' alike"),
        ("pbt", {}, (), 1, "a population has 1 member"),
        ("pbt", {"train.minutes": 5}, (), 4, "a population's budget is in epochs"),
        ("pbt", {"train.num_workers": 2}, (), 4, "a member of a population trains in one process"),
    ],
)
def test_what_a_search_cannot_do_is_said_before_it_begins(
    mode: str, settings: dict[str, Any], points: tuple[dict[str, Any], ...], num_trials: int, sentence: str
):
    config = with_settings(build_gan_recipe("mri_tiny"), settings)
    with pytest.raises(UsageError, match=sentence):
        check_search(config, mode, points, num_trials)
    check_search(build_gan_recipe("mri_tiny"), mode, (POINT,), 2)
