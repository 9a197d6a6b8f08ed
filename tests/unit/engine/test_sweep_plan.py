"""What a sweep costs, and what it refuses before it trains anything; no Ray."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from glioray.cases.manifest import Manifest
from glioray.config import with_settings
from glioray.engine.on_ray import search
from glioray.engine.on_ray.train import RESULT_FILE
from glioray.engine.run import RunPlan
from glioray.engine.search import MODES, SweepPlan, check_sweep, complete_point, recipe_point
from glioray.engine.space import parse_space
from glioray.errors import UsageError
from glioray.storage import open_storage
from glioray.tasks import load_task
from glioray.tasks.segmentation.recipes import build_recipe
from glioray.tasks.superres.recipes import build_gan_recipe
from glioray.tasks.superres.space import SHARE, SHARES, apply_gan_point, gan_space, pretraining

POINT = {"optim_g.lr": 1e-2}


def sweep(config: Any, num_trials: int, num_concurrent: int, mode: str = "search") -> SweepPlan:
    base = RunPlan(
        task=load_task(config.task),
        config=config,
        manifest=Manifest(data="file:///none", cases=(), problems=(), splits={}, folds=(), seed=0),
        storage="/none",
        run_name="sweep",
        tracking_uri="sqlite:///none",
        experiment="e",
    )
    return SweepPlan(
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


def test_each_warm_start_continues_the_one_before_and_is_trained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trained: list[RunPlan] = []

    def train(run: RunPlan, **options: Any) -> None:
        trained.append(run)
        open_storage(run.storage).write(RESULT_FILE, b"{}")

    monkeypatch.setattr(search, "run_training", train)
    monkeypatch.setattr(search, "worker_resources", lambda num_workers, asked: None)
    plan = sweep(with_settings(build_gan_recipe("mri_tiny"), {"train.max_epochs": 10}), 2, 2)
    plan = dataclasses.replace(plan, base=dataclasses.replace(plan.base, storage=str(tmp_path)))
    for _ in range(2):
        search._train_warm_starts(plan, "parent")
    first, second = trained
    assert [run.run_name for run in trained] == ["sweep/pretrain-20", "sweep/pretrain-50"]
    assert [run.parent_run_id for run in trained] == ["parent", "parent"]
    assert [run.storage for run in trained] == [plan.source(0.2), plan.source(0.5)]
    assert (first.config.pretrain.source, second.config.pretrain.source) == (None, first.storage)
    assert [run.config.train.max_epochs for run in trained] == [2, 3]


@pytest.mark.parametrize("max_epochs", range(3, 30))
def test_every_trial_has_the_same_epochs_in_all(max_epochs: int):
    config = with_settings(build_gan_recipe("mri_tiny"), {"train.max_epochs": max_epochs})
    first, second = (pretraining(config, *part, None).train.max_epochs for part in ((0.0, 0.2), (0.2, 0.5)))
    before = dict(zip(SHARES, (0, first, first + second), strict=True))
    sources = dict.fromkeys(SHARES, "/runs/psnr")
    for share, num_epochs in before.items():
        made = apply_gan_point(
            config,
            recipe_point(load_task("superres").search, config, gan_space(config)) | {SHARE: share},
            sources,
        )
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
        ("pbt", {}, ({"d_steps": 2},), 4, "members of a population share 'd_steps'"),
        ("pbt", {}, (), 1, "a population has 1 member"),
        ("pbt", {"train.minutes": 5}, (), 4, "a population's budget is in epochs"),
        ("pbt", {"train.num_workers": 2}, (), 4, "a member of a population trains in one process"),
    ],
)
def test_an_impossible_search_is_refused_before_it_begins(
    mode: str, settings: dict[str, Any], points: tuple[dict[str, Any], ...], num_trials: int, sentence: str
):
    config = with_settings(build_gan_recipe("mri_tiny"), settings)
    task = load_task("superres")
    with pytest.raises(UsageError, match=sentence):
        check_sweep(task, config, mode=mode, points=points, num_trials=num_trials)


@pytest.mark.parametrize("mode", MODES)
def test_a_possible_search_is_not_refused(mode: str):
    task, config = load_task("superres"), build_gan_recipe("mri_tiny")
    space = check_sweep(task, config, mode=mode, points=(POINT,), num_trials=2)
    assert set(space) == set(gan_space(config))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"optim.lr": 1e-3}, "'optim.lr' is not searched; a point has d_steps"),
        ({"optim_g.lr": 1.0}, "optim_g.lr of a point is 1.0; expected 1e-05 to 0.01"),
        ({"optim_g.lr": "high"}, "optim_g.lr of a point is 'high'"),
        ({"loss.adversarial": "wgan"}, "expected one of vanilla, ragan, lsgan, hinge"),
    ],
)
def test_a_point_outside_the_space_is_refused(given: dict[str, object], sentence: str):
    config, search = build_gan_recipe("mri_tiny"), load_task("superres").search
    space = gan_space(config)
    with pytest.raises(UsageError, match=sentence):
        complete_point(search, config, space, given)
    assert complete_point(search, config, space, {"d_steps": 2}) == recipe_point(
        load_task("superres").search, config, gan_space(config)
    ) | {"d_steps": 2}


@pytest.mark.parametrize(("num_trials", "num_concurrent", "minutes"), [(4, 2, 30), (5, 4, 30), (1, 4, 60)])
def test_a_trial_has_its_round_s_part_of_the_minutes(num_trials: int, num_concurrent: int, minutes: float):
    config = with_settings(build_recipe("unet_tiny"), {"train.minutes": 60})
    plan = sweep(config, num_trials, num_concurrent)
    assert plan.config.train.minutes == minutes
    assert plan.config.train.num_validations == 5
    assert plan.trial("a", {"train.num_validations": 3}, "0").config.train.num_validations == 3


@pytest.mark.parametrize(
    ("recipe", "items", "sentence"),
    [
        ("unet_tiny", ["optim.lrr=0:1"], "cannot search optim.lrr at 0.0: .*lrr'"),
        ("unet_tiny", ["optim.lr=log:1e-3:20"], r"cannot search optim.lr at 20.0: optim.lr is 20"),
        ("unet_tiny", ["train.batch_size=4:16"], r"cannot search train.batch_size at "),
        ("unet_tiny", ["net.options.width=8,wide"], "cannot search net.options.width at 'wide'"),
        ("unet_tiny", ["net.options.widht=8,16"], "cannot search net.options.widht at 8"),
        ("unet_tiny", ["net.name=unet,unot"], "cannot search net.name at 'unot'"),
        ("unet_tiny", ["recipe=a,b"], "cannot search recipe"),
        ("unet_tiny", ["train.num_workers=1,2"], "cannot search train.num_workers"),
        ("mri_tiny", ["d_steps=int:1:40"], "cannot search d_steps at 40"),
        ("mri_tiny", ["none", "rate=0:1"], "cannot search rate at 0.0"),
    ],
)
def test_a_search_that_the_config_refuses_is_refused_before_it_begins(
    recipe: str, items: list[str], sentence: str
):
    name = "superres" if recipe == "mri_tiny" else "segmentation"
    task = load_task(name)
    with pytest.raises(UsageError, match=sentence):
        check_sweep(task, task.recipes[recipe](), num_trials=4, custom=parse_space(items))


@pytest.mark.parametrize("recipe", ["unet_tiny", "mri_tiny"])
@pytest.mark.contracts
def test_entries_are_searched_beside_the_recipe_s_own_or_alone(recipe: str):
    task = load_task("superres" if recipe == "mri_tiny" else "segmentation")
    config = task.recipes[recipe]()
    own = check_sweep(task, config, num_trials=4)
    items = ["train.batch_size=int:4:16", f"{task.search.rate}=log:1e-6:1e-5"]
    both = check_sweep(task, config, num_trials=4, custom=parse_space(items))
    assert set(both) == {*own, "train.batch_size"}
    assert both[task.search.rate].high == 1e-5
    alone = check_sweep(task, config, num_trials=4, custom=parse_space(["none", *items]))
    assert set(alone) == {"train.batch_size", task.search.rate}
    # The recipe's rate is above the range, so that the first trial has the nearest one.
    assert recipe_point(task.search, config, alone) == {"train.batch_size": 8, task.search.rate: 1e-5}


def test_a_point_may_have_settings_that_only_the_user_searches():
    task = load_task("segmentation")
    config, custom = build_recipe("unet_tiny"), parse_space(["preprocess.size=[96,96],[128,128]"])
    space = check_sweep(task, config, num_trials=2, points=[{"preprocess.size": [128, 128]}], custom=custom)
    point = complete_point(task.search, config, space, {"preprocess.size": [128, 128]})
    assert task.search.apply(config, point, {}).preprocess.size == (128, 128)
    with pytest.raises(UsageError, match=r"preprocess.size of a point is \[64, 64\]"):
        check_sweep(task, config, num_trials=2, points=[{"preprocess.size": [64, 64]}], custom=custom)


def test_a_population_may_search_other_ranges_of_what_members_differ_in():
    task, config = load_task("segmentation"), build_recipe("unet_tiny")
    custom = parse_space(["augment.strength=0.5:1"])
    space = check_sweep(task, config, num_trials=4, mode="pbt", custom=custom)
    assert space["augment.strength"].high == 1
    assert space["net.options.width"].choices == (8,)
    with pytest.raises(UsageError, match="members of a population share 'net"):
        check_sweep(task, config, num_trials=4, mode="pbt", custom=parse_space(["net.options.width=8,16"]))
