"""Population based training: members that lag, or are not healthy, continue from better ones."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from optuna.distributions import FloatDistribution
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.search.basic_variant import BasicVariantGenerator

from glioray.engine.checkpoint import LATEST, latest_folder
from glioray.engine.collectives import Ranks
from glioray.engine.on_ray.faults import persist
from glioray.engine.on_ray.gauges import train_measured
from glioray.engine.on_ray.resources import WorkerResources
from glioray.engine.on_ray.trials import ToReport
from glioray.engine.run import CONFIG_FILE, HISTORY_FILE, RunPlan
from glioray.engine.search import SweepPlan, member_space, recipe_point
from glioray.storage import join_uri, open_storage

_NUM_EXCHANGES = 4


class _Exchange(PopulationBasedTraining):
    """Exchanges members after each part of their run, within the bounds of what they differ in.

    A member at 100 % is not exchanged: the member in its place would have nothing left to train.
    """

    def __init__(self, bounds: Mapping[str, FloatDistribution]) -> None:
        super().__init__(
            time_attr="percent",
            perturbation_interval=100 // (_NUM_EXCHANGES + 1),
            hyperparam_mutations=_domains(bounds),
            quantile_fraction=0.25,
            custom_explore_fn=partial(_clamp, bounds={name: (d.low, d.high) for name, d in bounds.items()}),
        )

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a member continues, waits for others, or is replaced."""
        if result["percent"] >= 100:
            return str(PopulationBasedTraining.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))


def num_kept(num_validations: int) -> int:
    """Checkpoints of a member that Tune must keep, since another may continue from one two exchanges old.

    The better member may run, and save checkpoints, before the other starts from an older one.
    """
    return 2 * -(-num_validations // (_NUM_EXCHANGES + 1)) + 1


def population(plan: SweepPlan) -> tune.TuneConfig:
    """How a population starts and exchanges members: the recipe, the given points, and draws from the space.

    Members take turns where there is no room for all at once.
    """
    bounds = member_space(plan.search, plan.space)
    points = [{name: point[name] for name in bounds} for point in plan.first_points]
    return tune.TuneConfig(
        metric="objective",
        mode="max",
        search_alg=BasicVariantGenerator(points_to_evaluate=points, random_state=plan.base.config.train.seed),
        scheduler=_Exchange(bounds),
    )


def member_domains(plan: SweepPlan) -> dict[str, Any]:
    """The point of a member as Tune draws it: the recipe's, except for what members differ in."""
    own = recipe_point(plan.search, plan.config, plan.space)
    return own | _domains(member_space(plan.search, plan.space))


def next_storage(member: str) -> str:
    """The URI of a member's next generation, which starts with the checkpoint that Tune hands over, if any.

    A generation has a storage of its own, because a run resumes only with its own settings, and these have changed.
    """
    uri = join_uri(member, f"generation-{_num_generations(member):03d}")
    given = tune.get_checkpoint()
    if given is not None:
        storage = open_storage(uri)
        with given.as_directory() as folder:
            files = [
                file for file in Path(folder).rglob("*") if file.is_file() and not file.name.startswith(".")
            ]
            # The pointer last: it publishes the checkpoint.
            for file in sorted(files, key=lambda file: file.name == LATEST):
                with file.open("rb") as stream:
                    storage.write(file.relative_to(folder).as_posix(), stream)
    return uri


def last_storage(member: str) -> str:
    """The URI of a member's last generation with a checkpoint."""
    for number in reversed(range(_num_generations(member))):
        uri = join_uri(member, f"generation-{number:03d}")
        if latest_folder(open_storage(uri)) is not None:
            return uri
    return join_uri(member, "generation-000")


def train_member(trial: RunPlan, resources: WorkerResources, to_report: ToReport) -> None:
    """Train a generation, and report each validation with its checkpoint, from which others may continue.

    Args:
        trial: its plan, whose storage is the member's; the generation's is below it.
        resources: of the member.
        to_report: makes Tune's report from a validation's metrics.
    """
    uri = persist(lambda: next_storage(trial.storage), max_restarts=0)
    storage = open_storage(uri)

    def report(metrics: dict[str, float]) -> None:
        source = latest_folder(storage)
        assert source is not None, "a validation is reported after its checkpoint"
        with tempfile.TemporaryDirectory() as folder:
            # With the history, or each generation's figures would start empty.
            for key in (LATEST, HISTORY_FILE, *(item.key for item in storage.list(f"{source}/"))):
                storage.download(key, Path(folder) / key)
            tune.report(to_report(metrics), checkpoint=tune.Checkpoint.from_directory(folder))

    run = dataclasses.replace(trial, storage=uri, num_threads=resources.num_threads)
    persist(lambda: train_measured(run, Ranks(), report), max_restarts=0)


def _domains(bounds: Mapping[str, FloatDistribution]) -> dict[str, Any]:
    return {
        name: (tune.loguniform if found.log else tune.uniform)(found.low, found.high)
        for name, found in bounds.items()
    }


def _clamp(point: dict[str, Any], bounds: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """The point with values that Tune moved out of the space brought back to its edge."""
    return point | {name: min(max(point[name], low), high) for name, (low, high) in bounds.items()}


def _num_generations(member: str) -> int:
    storage, number = open_storage(member), 0
    while storage.exists(f"generation-{number:03d}/{CONFIG_FILE}"):
        number += 1
    return number
