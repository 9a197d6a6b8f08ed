"""What a further command of a search's name keeps: its space, its objective, its trials and their length."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.distributions import FloatDistribution

from glioray.cases.manifest import Manifest
from glioray.config import with_settings
from glioray.engine.on_ray import trials
from glioray.engine.on_ray.search import SPACE_FILE, _identity, _keep_facts, _proposals, _resume
from glioray.engine.run import CONFIG_FILE, RunPlan
from glioray.engine.search import SweepPlan
from glioray.engine.space import parse_space
from glioray.errors import UsageError
from glioray.storage import open_storage
from glioray.tasks import load_task
from glioray.tasks.segmentation.recipes import build_recipe

SPACE = ["none", "optim.lr=log:1e-6:1"]


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    """A search of one setting, four trials two at a time, as it is before its first trial."""
    open_storage(tmp_path).write(CONFIG_FILE, b"{}")
    config = with_settings(build_recipe("unet_tiny"), {"train.minutes": 60})
    base = RunPlan(
        task=load_task("segmentation"),
        config=config,
        manifest=Manifest(data="file:///none", cases=(), problems=(), splits={}, folds=(), seed=0),
        storage=str(tmp_path),
        run_name="mine",
        tracking_uri="sqlite:///none",
        experiment="e",
    )
    return SweepPlan(base=base, num_trials=4, num_concurrent=2, model_name="m", custom=parse_space(SPACE))


def begin(plan: SweepPlan) -> None:
    _keep_facts(plan)
    open_storage(plan.base.storage).write("ray/search/trial/result.json", b"{}")


def with_train(plan: SweepPlan, **settings: Any) -> SweepPlan:
    config = with_settings(plan.base.config, {f"train.{name}": value for name, value in settings.items()})
    return dataclasses.replace(plan, base=dataclasses.replace(plan.base, config=config))


def test_trials_of_another_objective_do_not_mix(plan: SweepPlan):
    storage = open_storage(plan.base.storage)
    now = _identity(plan)
    assert now["objective"] == "objective"
    older = {name: value for name, value in now.items() if name != "objective"}
    # Without trials there is nothing to mix.
    assert _resume(plan) == plan
    storage.write("ray/search/trial/result.json", b"{}")
    for kept in (None, older, {**now, "objective": "dice_mean"}):
        if kept is not None:
            storage.write(SPACE_FILE, json.dumps(kept).encode())
        with pytest.raises(
            UsageError, match=r"'mine' was begun .* another objective.* choose another --run-name"
        ):
            _resume(plan)
    storage.write(SPACE_FILE, json.dumps(now).encode())
    assert _resume(plan) == plan
    with pytest.raises(UsageError, match="exists with another search space"):
        _resume(dataclasses.replace(plan, custom=parse_space([])))


def test_trials_that_are_added_are_as_long_as_the_earlier_ones(plan: SweepPlan):
    assert plan.config.train.minutes == 30
    begin(plan)
    for num_trials, num_concurrent in ((8, 2), (8, 4), (4, 1)):
        more = _resume(dataclasses.replace(plan, num_trials=num_trials, num_concurrent=num_concurrent))
        assert more.num_trials == num_trials
        assert more.config.train.minutes == 30
    # A third command finds what the second one left.
    _keep_facts(_resume(dataclasses.replace(plan, num_trials=8)))
    last = _resume(with_train(plan, minutes=600))
    assert (last.num_trials, last.config.train.minutes) == (8, 30)
    for settings in ({"max_epochs": 7}, {"minutes": None}):
        with pytest.raises(
            UsageError, match=r"'mine' have up to .* and 30 minutes each, and trials of another length"
        ):
            _resume(with_train(plan, **settings))


def test_fewer_trials_than_there_are_take_none_away(plan: SweepPlan, caplog: pytest.LogCaptureFixture):
    begin(plan)
    with caplog.at_level(logging.WARNING, logger="glioray"):
        assert _resume(dataclasses.replace(plan, num_trials=2)).num_trials == 4
    assert caplog.messages == ["the search 'mine' has 4 trials and keeps them; --trials 2 takes none away"]


def test_a_population_does_not_grow(plan: SweepPlan):
    members = dataclasses.replace(with_train(plan, minutes=None), mode="pbt", custom=parse_space([]))
    begin(members)
    assert _resume(members).num_trials == 4
    with pytest.raises(UsageError, match=r"a population of 4 members, which cannot grow.*repeat --trials 4"):
        _resume(dataclasses.replace(members, num_trials=5))
    # Another mode of the name has trials of its own.
    assert _resume(dataclasses.replace(members, mode="pareto", num_trials=5)).num_trials == 5


def result(rate: float, **metrics: float) -> Any:
    return SimpleNamespace(config={"optim.lr": rate}, error=None, metrics=metrics)


BEST = 1e-4


def earlier(signs: dict[str, int], count: int = 24) -> list[Any]:
    """Results of rates all over the range, whose objectives grow towards `BEST`, or shrink where the sign is -1."""
    rates = [10 ** (-6 * number / (count - 1)) for number in range(count)]
    nearness = {rate: -abs(math.log10(rate / BEST)) for rate in rates}
    return [result(rate, **{name: sign * nearness[rate] for name, sign in signs.items()}) for rate in rates]


@pytest.mark.parametrize("mode", ["search", "pareto"])
def test_further_proposals_know_the_earlier_results(plan: SweepPlan, mode: str):
    plan = dataclasses.replace(plan, mode=mode)
    signs = {"objective": 1}
    if mode == "pareto":
        signs = {one.reported: 1 if one.maximize else -1 for one in plan.search.objectives(plan.config)}
        assert set(signs.values()) == {1, -1}

    def distance(results: list[Any]) -> float:
        """The median over proposals, in powers of ten."""
        proposals = _proposals(plan, results, 15)
        rates = [proposals.suggest(str(number))["optim.lr"] for number in range(15)]
        return statistics.median(abs(math.log10(rate / BEST)) for rate in rates)

    assert distance(earlier(signs)) < 0.7 < 1.2 < distance([])
    assert distance(earlier({name: -sign for name, sign in signs.items()})) > 2


def test_further_proposals_do_not_repeat_the_earlier_ones(plan: SweepPlan):
    first = _proposals(plan, [], 4)
    rates = [first.suggest(str(number))["optim.lr"] for number in range(4)]
    assert rates[0] == plan.base.config.optim.lr
    results = [result(rate, objective=0.5) for rate in rates]
    further = _proposals(plan, results, 4)
    again = [further.suggest(str(number))["optim.lr"] for number in range(4)]
    assert len({*rates, *again}) == 8


def test_a_point_of_a_further_command_is_tried_before_the_proposals(
    plan: SweepPlan, caplog: pytest.LogCaptureFixture
):
    points = ({"optim.lr": 1e-3}, {"optim.lr": 1e-5})
    plan = dataclasses.replace(plan, num_trials=6, points=points)
    results = [result(plan.base.config.optim.lr, objective=0.5), result(1e-3, objective=0.4)]
    with caplog.at_level(logging.WARNING, logger="glioray"):
        assert _proposals(plan, results, 4).suggest("a") == {"optim.lr": 1e-5}
        assert caplog.messages == []
        _proposals(plan, [], 2)
    assert caplog.messages == ["1 of the points are not tried; ask for more --trials"]


def test_results_that_say_nothing_are_left_out_and_foreign_ones_refused(plan: SweepPlan):
    crashed = SimpleNamespace(config={"optim.lr": 1e-3}, error=RuntimeError("x"), metrics={"objective": 0.9})
    silent = SimpleNamespace(config={"optim.lr": 1e-3}, error=None, metrics=None)
    assert isinstance(plan.space["optim.lr"], FloatDistribution)
    _proposals(plan, [crashed, silent], 4)
    with pytest.raises(UsageError, match="'mine' has a trial outside its space"):
        _proposals(plan, [result(10.0, objective=0.5)], 4)


def test_each_command_with_more_trials_is_an_experiment_that_resumes(monkeypatch: pytest.MonkeyPatch):
    kept: dict[str, int] = {}
    fits: list[str] = []

    class Tuner:
        """As Tune's: what it restores has the number of trials that it began with."""

        def __init__(self, trainable: Any, param_space: Any, tune_config: Any, run_config: Any) -> None:
            self.folder = f"{run_config.storage_path}/{run_config.name}"
            kept[self.folder] = tune_config.num_samples
            (self.progress,) = run_config.callbacks

        @staticmethod
        def can_restore(folder: str) -> bool:
            return folder in kept

        @classmethod
        def restore(cls, folder: str, trainable: Any, **options: bool) -> Any:
            assert options == {"resume_unfinished": True, "resume_errored": True}
            return SimpleNamespace(folder=folder, fit=lambda: cls.fit(SimpleNamespace(folder=folder)))

        def fit(self: Any) -> list[str]:
            fits.append(self.folder)
            return [f"{self.folder} {number}" for number in range(kept[self.folder])]

    known: list[tuple[int, int]] = []

    def configure(earlier: Any, num_further: int) -> Any:
        known.append((len(earlier), num_further))
        return trials.tune.TuneConfig()

    monkeypatch.setattr(trials.tune, "Tuner", Tuner)
    monkeypatch.setattr(trials.tune, "with_resources", lambda trainable, resources: trainable)

    def run(num_trials: int, configure: Any = configure) -> int:
        fits.clear()
        found = trials.run_trials(
            print, configure, folder="/runs/ray/search", resources={"CPU": 1}, num_trials=num_trials
        )
        assert len({*found}) == len(found)
        return len(found)

    first, second, third = "/runs/ray/search", "/runs/ray/search-2", "/runs/ray/search-3"
    assert (run(4), fits) == (4, [first])
    assert (run(4), fits) == (4, [first])
    assert (run(6), fits) == (6, [first, second])
    assert (run(3), fits) == (6, [first, second])
    assert (run(9), fits) == (9, [first, second, third])
    assert known == [(0, 4), (4, 2), (6, 3)]
    # What cannot grow does not.
    assert (run(12, lambda earlier, num_further: None), fits) == (9, [first, second, third])
