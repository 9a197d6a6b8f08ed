"""The part of a task that searches use, and the plan of a sweep; all of it without Ray.

A task answers `Search` in `Task.search`; `engine.on_ray.search.run_sweep` does the rest, and names no task.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from glioray.config import with_settings
from glioray.engine.space import (
    CustomSpace,
    Space,
    check_value,
    find_setting,
    freeze_value,
    merge_spaces,
    nearest_value,
    probe_values,
)
from glioray.errors import UsageError
from glioray.storage import join_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from glioray.cases.manifest import Manifest
    from glioray.engine.run import RunPlan
    from glioray.engine.task import Task

MODES = ("search", "pareto", "pbt")
"""One objective, with TPE and ASHA; two objectives, with TPE; or a population, whose members continue from others."""

Point = Mapping[str, Any]
"""A value for each entry of a space."""

_FIXED = ("recipe", "train.num_workers")
"""The name of a run, and the needs that its trials' resources are planned by."""

Row = dict[str, Any]
"""A trial as `engine.trials.build_row` describes it."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One of the two objectives of a Pareto search.

    Attributes:
        metric: its name among a trial's metrics, as figures show it.
        reported: its name in what a trial reports: `metric`, or a penalty where the trial is not healthy.
        label: of its axis.
        worst: what a failed trial reports; finite, and worse than any other trial's.
        maximize: whether larger is better.
        baseline: a value to compare with, drawn as a line.
    """

    metric: str
    reported: str
    label: str
    worst: float
    maximize: bool = True
    baseline: float | None = None


class Search(Protocol):
    """The search space and objective of one task. Inherit from it: methods with a body here are defaults.

    Instances have no state, and travel to workers with their task.

    Attributes:
        worst: the objective of a trial that crashed or diverged: finite, since Optuna never ends a trial of NaN, and
            not above any other trial's.
        objective: the objective's name in MLflow.
        rate: the setting that is the learning rate.
        kept_metrics: prefixes of the metrics that rows keep.
        columns: metrics that the table of trials shows.
        mutable: settings that a member of a population may change in the middle of its run: neither network nor
            optimiser state depends on them.
        member_settings: settings of all members of a population.
        summary_key: name of the summary in a sweep's answer.
        unhealthy: one word for a trial whose objective is not healthy.
    """

    worst: float
    objective: str
    rate: str
    kept_metrics: tuple[str, ...]
    columns: tuple[str, ...] = ("percent",)
    mutable: tuple[str, ...] = ()
    member_settings: Mapping[str, Any] = {}
    summary_key: str = "summary"
    unhealthy: str = "failed"

    def check_data(self, manifest: Manifest, config: Any) -> None:
        """Refuse data on which trials cannot be compared.

        Raises:
            DataError: there is nothing to validate on.
        """

    def prepare(self, config: Any) -> Any:
        """The config that trials vary: the recipe's, with the settings that every trial has."""
        return config

    def space(self, config: Any, given: Sequence[str] = ()) -> Space:
        """The recipe's own space; each entry can draw the recipe's value.

        Args:
            config: of `prepare`.
            given: settings that the user searches; entries that have no meaning beside them are left out.
        """

    def values(self, config: Any) -> dict[str, Any]:
        """The recipe's value of each entry that its own space may have."""

    def apply(self, config: Any, point: Point, sources: Mapping[float, str]) -> Any:
        """The config with a point's settings.

        Args:
            config: of `prepare`.
            point: of any part of the space, with any other settings of the config.
            sources: URIs of the warm starts, by their share; empty where trials have none in common.

        Raises:
            UsageError: an unknown setting, or a value that the config refuses.
        """
        return with_settings(config, point)

    def grace_percent(self, config: Any) -> int:
        """Percentage of its run before which ASHA stops no trial."""
        return 30

    def static_metrics(self, config: Any) -> dict[str, float]:
        """Metrics of a config that need no training, such as the cost of inference."""
        return {}

    def to_report(self, metrics: Mapping[str, float], config: Any) -> dict[str, Any]:
        """The report of a validation: `metrics`, "objective" (finite), "percent" and each `Objective.reported`.

        Args:
            metrics: of the validation and of `static_metrics`.
            config: of the trial.
        """

    def is_healthy(self, objective: float, config: Any) -> bool:
        """Whether a trial with this objective may win."""
        return objective > self.worst

    def objectives(self, config: Any) -> tuple[Objective, Objective]:
        """The objectives of a Pareto search: on the vertical axis, and on the horizontal one."""

    def refine_row(self, row: Row) -> Row:
        """The row with the task's own states and reasons."""
        return row

    def warm_shares(self, config: Any, space: Mapping[str, BaseDistribution]) -> tuple[float, ...]:
        """Shares of a trial's budget, rising, for which one run is trained before, for all trials to start from."""
        return ()

    def warm_start(self, config: Any, begin: float, end: float, source: str | None) -> Any:
        """The config of the warm start from one share of a trial's budget to another.

        Args:
            config: of a trial by the recipe.
            begin: share that `source` was trained for; 0 without one.
            end: share that it is trained to.
            source: URI of the warm start to continue.
        """
        return config

    def summarize(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The sweep in numbers and lists, as JSON."""

    def describe(self, summary: Mapping[str, Any], mode: str) -> str:
        """`summarize`'s answer in sentences, as Markdown."""

    def figures(self, rows: Sequence[Row], config: Any) -> Mapping[str, Figure]:
        """Further figures of the rows, by file name."""
        return {}

    def version_tags(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Tags of the registered version: the winner's metrics."""


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A search around `base`, whose storage, run name and MLflow kind are the sweep's.

    Attributes:
        base: the plan whose config the trials vary.
        num_trials: in all.
        num_concurrent: at once.
        model_name: under which the winner is registered.
        mode: of `MODES`.
        trial_minutes: of each trial, where earlier ones of the search have theirs already; by default its part of
            the minutes in `base`.
        points: tried first, after the recipe's own: the values in which each differs from it.
        custom: what is searched beside, or instead of, the recipe's own space.
    """

    base: RunPlan
    num_trials: int
    num_concurrent: int
    model_name: str
    mode: str = "search"
    trial_minutes: float | None = None
    points: tuple[Point, ...] = ()
    custom: CustomSpace = field(default_factory=CustomSpace)

    @property
    def search(self) -> Search:
        """The task's answers."""
        return self.base.task.search

    @property
    def config(self) -> Any:
        """The config of a trial by the recipe; with `minutes`, its part of the sweep's."""
        config = self.search.prepare(self.base.config)
        if self.mode == "pbt":
            return member_config(self.search, config)
        minutes = config.train.minutes
        if minutes is None:
            return config
        if self.trial_minutes is not None:
            return with_settings(config, {"train.minutes": self.trial_minutes})
        # Warm starts come first, alone, and take as long as the largest share of one trial. The last round of trials
        # takes as long as any other, however few are left for it.
        rounds = math.ceil(self.num_trials / self.num_concurrent) + max(self.shares, default=0)
        return with_settings(config, {"train.minutes": minutes / rounds})

    @property
    def space(self) -> Space:
        """The kind of model that is searched."""
        return build_space(self.search, self.search.prepare(self.base.config), self.custom, self.mode)

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of a trial's budget for which there are warm starts."""
        return self.search.warm_shares(self.search.prepare(self.base.config), self.space)

    @property
    def first_points(self) -> list[dict[str, Any]]:
        """The points that the sweep begins with: the recipe's, then the given ones."""
        config = self.search.prepare(self.base.config)
        return first_points(self.search, config, self.space, self.points, self.num_trials)

    def source(self, share: float) -> str:
        """The URI of the warm start of a share of a trial's budget."""
        return join_uri(self.base.storage, "pretrain", f"{round(100 * share)}-percent")

    def trial(self, trial_id: str, point: Point, parent_run_id: str) -> RunPlan:
        """The plan of a trial.

        Raises:
            UsageError: the config refuses the point, as some settings cannot be combined.
        """
        sources = {share: self.source(share) for share in self.shares}
        config = self.search.apply(self.config, point, sources)
        return dataclasses.replace(self.trial_run(trial_id, parent_run_id), config=config)

    def trial_run(self, trial_id: str, parent_run_id: str) -> RunPlan:
        """The place and MLflow run of a trial, with the recipe's config."""
        return dataclasses.replace(
            self.base,
            storage=join_uri(self.base.storage, "trials", trial_id),
            run_name=f"{self.base.run_name}/{trial_id}",
            kind="trial",
            parent_run_id=parent_run_id,
        )


def check_sweep(
    task: Task,
    config: Any,
    *,
    num_trials: int,
    mode: str = "search",
    points: Sequence[Point] = (),
    custom: CustomSpace | None = None,
) -> Space:
    """Check a sweep before Ray starts, and return what it searches.

    The config of each given point, and of both ends or each choice of each of the user's entries, is built and passed
    to `task.check`.

    Args:
        task: of the config.
        config: of the recipe, with the user's settings.
        num_trials: in all.
        mode: of `MODES`.
        points: as `SweepPlan.points`.
        custom: the user's entries, by `parse_space`.

    Raises:
        UsageError: an unknown mode, an unknown setting, a value that the config or the task refuses, a point outside
            the space or without a trial, or a population's budget or points that its members cannot have.
    """
    if mode not in MODES:
        raise UsageError(f"--mode is '{mode}'; expected one of {', '.join(MODES)}")
    search, custom = task.search, custom or CustomSpace()
    base = search.prepare(config)
    space = build_space(search, base, custom)
    own = recipe_point(search, base, space)
    # Never opened here.
    sources = dict.fromkeys(search.warm_shares(base, space), "warm-start")
    for name, values in custom.entries.items():
        if name in _FIXED:
            raise UsageError(f"cannot search {name}, which all trials share; use its flag")
        for value in probe_values(values):
            try:
                task.check(search.apply(base, {**own, name: value}, sources))
            except UsageError as error:
                raise UsageError(f"cannot search {name} at {value!r}: {error}") from error
    begin = first_points(search, base, space, points, num_trials)
    if custom.entries or not custom.keep_own or points:
        for point in begin:
            task.check(search.apply(base, point, sources))
    if mode == "pbt":
        member_config(search, base)
        _check_members(search, space, custom, points, num_trials)
        space = build_space(search, base, custom, mode)
    return space


def build_space(search: Search, config: Any, custom: CustomSpace, mode: str = "search") -> Space:
    """The space of a sweep; settings that the members of a population share have one choice: the recipe's.

    Args:
        search: of the task.
        config: of `search.prepare`.
        custom: the user's entries.
        mode: of `MODES`.
    """
    space = merge_spaces(search.space(config, tuple(custom.entries)), custom)
    if mode != "pbt":
        return space
    varied, own = member_space(search, space), recipe_point(search, config, space)
    return {name: varied.get(name) or CategoricalDistribution((own[name],)) for name in space}


def recipe_point(search: Search, config: Any, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """The recipe as a point of the space: where the space excludes its value, the nearest one.

    It is the first trial, so that a search of the recipe's own space never ends below the recipe.
    """
    own = search.values(config)
    return {
        name: nearest_value(values, own[name] if name in own else find_setting(config, name))
        for name, values in space.items()
    }


def complete_point(
    search: Search, config: Any, space: Mapping[str, BaseDistribution], given: Point
) -> dict[str, Any]:
    """The recipe's point with some of its values replaced.

    Raises:
        UsageError: a name that is not searched, or a value outside its range.
    """
    for name, value in given.items():
        if name not in space:
            raise UsageError(f"'{name}' is not searched; a point has {', '.join(sorted(space))}")
        check_value(name, value, space[name])
    return recipe_point(search, config, space) | {name: freeze_value(value) for name, value in given.items()}


def first_points(
    search: Search,
    config: Any,
    space: Mapping[str, BaseDistribution],
    given: Sequence[Point],
    num_trials: int,
) -> list[dict[str, Any]]:
    """The points that a search begins with: the recipe's, then the given ones.

    Raises:
        UsageError: as `complete_point`, or more points than trials.
    """
    points = [complete_point(search, config, space, point) for point in ({}, *given)]
    if len(points) > num_trials:
        raise UsageError(
            f"{len(given)} points are given, and the recipe's own is tried too, but there are {num_trials} trials; "
            f"ask for at least {len(points)}"
        )
    return points


def member_config(search: Search, config: Any) -> Any:
    """The config of a member of a population.

    Raises:
        UsageError: a budget in minutes, which one member cannot take over from another, or several workers.
    """
    if config.train.minutes is not None:
        raise UsageError(
            f"train.minutes is {config.train.minutes:g} but a population's budget is in epochs; give --max-epochs"
        )
    if config.train.num_workers > 1:
        raise UsageError(
            f"train.num_workers is {config.train.num_workers} but a member of a population trains in one process; "
            "set it to 1"
        )
    return with_settings(config, {**search.member_settings, "train.num_kept": 1})


def member_space(search: Search, space: Mapping[str, BaseDistribution]) -> dict[str, FloatDistribution]:
    """The part of a space in which the members of a population differ, and which they change."""
    found = {name: space.get(name) for name in search.mutable}
    return {name: values for name, values in found.items() if isinstance(values, FloatDistribution)}


def _check_members(
    search: Search,
    space: Mapping[str, BaseDistribution],
    custom: CustomSpace,
    points: Sequence[Point],
    num_members: int,
) -> None:
    varied = member_space(search, space)
    if num_members < 2:
        raise UsageError(f"a population has {num_members} member; ask for at least 2 --trials")
    if not varied:
        raise UsageError(
            f"members of a population would all be alike; search one of {', '.join(search.mutable)} in a range"
        )
    for name in (*custom.entries, *(name for point in points for name in point)):
        if name not in varied:
            raise UsageError(
                f"members of a population share '{name}'; they differ in {', '.join(varied)}, and --set is for all"
            )
