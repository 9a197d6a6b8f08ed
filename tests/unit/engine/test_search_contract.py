"""What every task's search must do; the engine relies on nothing else."""

from __future__ import annotations

import json
import math
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution, FloatDistribution

from glioray.cases.manifest import Manifest
from glioray.engine.search import (
    Search,
    build_space,
    member_config,
    member_space,
    recipe_point,
)
from glioray.engine.space import CustomSpace, probe_values
from glioray.engine.task import Task
from glioray.engine.trials import (
    build_row,
    choose_setting,
    count_rows,
    format_table,
    importances,
    number_rows,
    rank_rows,
    start_order,
)
from glioray.errors import DataError
from glioray.serialization import fingerprint
from glioray.tasks import TASKS, load_task

RECIPES = {"segmentation": "unet_tiny", "superres": "mri_tiny"}
VALIDATIONS: dict[str, dict[str, float]] = {
    "segmentation": {"objective": 0.55, "dice_mean": 0.6, "dice_wt": 0.7, "train_loss": 0.4},
    "superres": {
        "objective": 0.3,
        "quality": 0.3,
        "gain_psnr": 1.0,
        "collapse_score": 0.0,
        "collapse_reason": 1.0,
        "is_collapsed": 0.0,
    },
}
"""Metrics of a validation that went well."""

PROGRESS = {
    "progress": 0.5,
    "step": 100.0,
    "epoch": 5.0,
    "minutes": 1.0,
    "num_slices": 800.0,
    "slices_per_s": 9.0,
}


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    return load_task(request.param)


@pytest.fixture
def search(task: Task) -> Search:
    return task.search


@pytest.fixture
def config(task: Task, search: Search) -> Any:
    return search.prepare(task.recipes[RECIPES[task.name]]())


def report(task: Task, config: Any, **changes: float) -> dict[str, Any]:
    metrics = {**PROGRESS, **task.search.static_metrics(config), **VALIDATIONS[task.name], **changes}
    return task.search.to_report(metrics, config)


def result(metrics: dict[str, Any], settings: dict[str, Any], error: Exception | None = None) -> Any:
    result.count = getattr(result, "count", 0) + 1  # type: ignore[attr-defined]
    number = result.count  # type: ignore[attr-defined]
    return SimpleNamespace(metrics=metrics, error=error, path=f"/runs/trial_{number:03d}", config=settings)


class TestSearchContract:
    def test_the_recipe_is_a_point_of_its_own_space(self, search: Search, config: Any):
        space = search.space(config)
        point = recipe_point(search, config, space)
        assert set(point) == set(space) <= set(search.values(config))
        for name, values in space.items():
            assert values._contains(values.to_internal_repr(point[name])), name
            # The recipe's value itself, and not the nearest one.
            assert point[name] == search.values(config)[name]

    def test_the_recipe_s_point_is_the_recipe(self, search: Search, config: Any):
        point = recipe_point(search, config, search.space(config))
        made = search.apply(config, point, {})
        again = recipe_point(search, made, search.space(config))
        for name, value in point.items():
            assert again[name] == (pytest.approx(value) if isinstance(value, float) else value), name

    def test_each_end_and_choice_of_the_own_space_makes_a_config(self, search: Search, config: Any):
        own = recipe_point(search, config, search.space(config))
        made = {
            fingerprint(search.apply(config, {**own, name: value}, {}))
            for name, values in search.space(config).items()
            for value in probe_values(values)
        }
        assert len(made) > len(own)

    def test_a_point_may_be_a_part_of_the_space_with_any_other_setting(self, search: Search, config: Any):
        assert search.apply(config, {}, {}) == config
        made = search.apply(config, {"train.max_epochs": 77}, {})
        assert made.train.max_epochs == 77
        assert made.preprocess == config.preprocess

    def test_a_report_has_what_tune_compares(self, task: Task, search: Search, config: Any):
        reported = report(task, config)
        assert reported["percent"] == 50
        assert search.is_healthy(reported["objective"], config)
        for objective in search.objectives(config):
            assert reported[objective.reported] == reported[objective.metric]
        assert search.rate in search.space(config)
        assert any(name.startswith(search.kept_metrics) for name in VALIDATIONS[task.name])

    def test_an_objective_that_is_no_number_is_the_worst(self, task: Task, search: Search, config: Any):
        reported = report(task, config, objective=math.nan)
        assert reported["objective"] == search.worst
        assert math.isfinite(search.worst)
        assert not search.is_healthy(search.worst, config)
        for objective in search.objectives(config):
            assert math.isfinite(reported[objective.reported])

    def test_a_failed_trial_is_worse_in_both_objectives(self, task: Task, search: Search, config: Any):
        reported = report(task, config)
        vertical, horizontal = search.objectives(config)
        assert vertical.metric != horizontal.metric
        for objective in (vertical, horizontal):
            assert math.isfinite(objective.worst)
            sign = 1 if objective.maximize else -1
            assert sign * reported[objective.reported] > sign * objective.worst

    def test_rows_rank_healthy_trials_first_and_explain_the_others(
        self, task: Task, search: Search, config: Any
    ):
        point = recipe_point(search, config, search.space(config))
        good = report(task, config, progress=1.0)
        lagging = report(task, config)
        failed = {**lagging, "objective": search.worst, "reason": "the loss became nan"}
        crashed = result({}, point, RuntimeError("a stack\nof lines, the last: killed"))
        results = [crashed, result(failed, point), result(lagging, point), result(good, point)]
        rows = rank_rows([build_row(one, search) for one in results])
        assert [row["state"] for row in rows] in (
            ["pruned", "complete", "failed", "failed"],
            ["complete", "pruned", "failed", "failed"],
        )
        assert {row["reason"] for row in rows} == {
            "", "stopped by ASHA at 50 % of its run", "the loss became nan", "of lines, the last: killed",
        }  # fmt: skip
        assert all(math.isfinite(row["objective"]) for row in rows)
        table = format_table(rows, search.columns).splitlines()
        assert len({line.count(" | ") for line in table}) == 1

        summary = search.summarize(rows)
        assert count_rows(rows).items() <= summary.items()
        assert (summary["num_trials"], summary["num_failed"], summary["num_pruned"]) == (4, 2, 1)
        assert json.loads(json.dumps(summary)) == summary
        assert all(math.isfinite(float(value)) for value in summary.values() if not isinstance(value, list))
        assert search.describe(summary, "search") != search.describe(summary, "pbt")
        for path, figure in search.figures(rows, config).items():
            assert path.endswith(".png")
            assert isinstance(figure, Figure)
        tags = search.version_tags(good)
        assert tags
        assert all(isinstance(value, str) for value in tags.values())

    def test_members_of_a_population_differ_in_numbers_alone(self, search: Search, config: Any):
        space = build_space(search, config, CustomSpace(), "pbt")
        varied = member_space(search, space)
        assert search.rate in varied
        assert set(varied) <= set(search.mutable)
        fixed = {name: values.choices for name, values in space.items() if name not in varied}
        assert all(len(choices) == 1 for choices in fixed.values())
        own = recipe_point(search, config, space)
        ends = [{**own, name: value} for name, values in varied.items() for value in probe_values(values)]
        assert len({fingerprint(search.apply(config, point, {})) for point in ends}) > len(varied)
        member = member_config(search, config)
        assert member.train.num_kept == 1

    def test_warm_starts_add_up_to_the_largest_share(self, search: Search, config: Any):
        shares = search.warm_shares(config, search.space(config))
        assert list(shares) == sorted(shares)
        epochs, begin = 0, 0.0
        for share in shares:
            made = search.warm_start(config, begin, share, "/runs/before" if begin else None)
            epochs, begin = epochs + made.train.max_epochs, share
        assert epochs == round(begin * config.train.max_epochs)
        # Settings that change what is trained before leave no start in common.
        assert search.warm_shares(config, {**search.space(config), "preprocess.size": None}) == ()  # type: ignore[dict-item]

    def test_trials_are_drawn_by_their_learning_rate_or_another_number(self, search: Search, config: Any):
        space = search.space(config)
        assert choose_setting(space, search.rate) == (search.rate, True)
        assert choose_setting({"augment.strength": FloatDistribution(0.0, 1.0)}, search.rate) == (
            "augment.strength",
            False,
        )
        words = {"net.name": CategoricalDistribution(("unet", "fcn"))}
        assert choose_setting(words, search.rate) == (search.rate, True)
        settings = {"augment.strength": 0.3}
        rows = [
            {"trial": trial, "objective": 0.1, "state": "complete", "settings": settings, "began_s": began_s}
            for trial, began_s in (("a", 1000), ("b", 10))
        ]
        assert number_rows(rows, "augment.strength")[0]["setting"] == 0.3
        assert [row["trial"] for row in start_order(rows)] == ["b", "a"]
        assert number_rows(rows, search.rate)[0]["setting"] is None

    def test_importances_are_of_the_searched_settings(self, search: Search, config: Any):
        space, own = search.space(config), recipe_point(search, config, search.space(config))
        lr = own[search.rate]
        rows = [
            {"settings": {**own, search.rate: lr * factor}, "objective": 0.9 if factor < 1 else 0.1}
            for factor in (0.3, 0.4, 0.5, 0.6, 0.7, 1.1, 1.2, 1.3, 1.4, 1.5)
        ]
        found = importances(rows, space)
        assert next(iter(found)) == search.rate
        assert sum(found.values()) == pytest.approx(1)
        assert importances(rows[:7], space) == {}

    def test_data_without_validation_cases_are_refused(self, search: Search, config: Any):
        nothing = Manifest(data="file:///none", cases=(), problems=(), splits={"val": ()}, folds=(), seed=0)
        with pytest.raises(DataError, match="the split has none; choose another --fold"):
            search.check_data(nothing, config)

    def test_it_travels_to_workers(self, search: Search, config: Any):
        again = pickle.loads(pickle.dumps(search))
        assert again.space(config) == search.space(config)

    def test_asha_waits_for_a_third_of_a_run(self, search: Search, config: Any):
        assert 30 <= search.grace_percent(config) <= 100
