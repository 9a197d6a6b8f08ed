"""Population based training of super-resolution GANs: what lags or has collapsed goes on from a better member."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from optuna.distributions import FloatDistribution
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.search.basic_variant import BasicVariantGenerator

from glioray.config import with_settings
from glioray.engine.checkpoint import LATEST, latest_folder
from glioray.engine.collectives import Ranks
from glioray.engine.on_ray.connect import WorkerResources
from glioray.engine.on_ray.data import fill_cache
from glioray.engine.run import CONFIG_FILE, HISTORY_FILE, RunPlan, train_run
from glioray.errors import UsageError
from glioray.storage import join_uri, open_storage
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.space import RATIO, first_points, gan_space, recipe_point

_MUTATED = ("optim_g.lr", RATIO, "loss.adversarial_weight", "loss.perceptual_weight")
"""What members differ by and change: rates and weights. All else is the recipe's, as optimisers and networks go over
from one member to another."""

_NUM_EXCHANGES = 4


class _Exchange(PopulationBasedTraining):
    """Exchanges members after each part of their run, within the bounds of what they differ by.

    A member at its end is left to end by itself: what took over there would have nothing left to train.
    """

    def __init__(self, bounds: Mapping[str, FloatDistribution]) -> None:
        super().__init__(
            time_attr="percent",
            perturbation_interval=100 // (_NUM_EXCHANGES + 1),
            hyperparam_mutations=_domains(bounds),
            quantile_fraction=0.25,
            custom_explore_fn=partial(_within, bounds={name: (d.low, d.high) for name, d in bounds.items()}),
        )

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """What is to become of a member: it goes on, waits for others, or takes over."""
        if result["percent"] >= 100:
            return str(PopulationBasedTraining.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))


def num_kept(config: GanConfig) -> int:
    """Checkpoints of a member that Tune keeps, as another goes on from one that is up to two exchanges old.

    The better one may have its turn, and make checkpoints, before the other one that begins with an older one does.
    """
    return 2 * -(-config.train.num_validations // (_NUM_EXCHANGES + 1)) + 1


def member_config(config: GanConfig) -> GanConfig:
    """The config of a member: one that collapses is not stopped but replaced.

    Raises:
        UsageError: its budget is in minutes, which do not go over from one member to another, or it has several
            workers.
    """
    if config.train.minutes is not None:
        raise UsageError(
            f"a population's budget is in epochs but train.minutes is {config.train.minutes:g}; give --max-epochs"
        )
    if config.train.num_workers > 1:
        raise UsageError(
            f"a member of a population trains in one process but train.num_workers is {config.train.num_workers}; "
            "set it to 1"
        )
    return with_settings(config, {"collapse.stop": False, "train.num_kept": 1})


def population(config: GanConfig, num_members: int, points: tuple[dict[str, Any], ...]) -> tune.TuneConfig:
    """How a population is begun and exchanged: the recipe, `points`, and members drawn from the space.

    Members take turns where not all of them find room at once.
    """
    return tune.TuneConfig(
        metric="objective",
        mode="max",
        num_samples=num_members,
        search_alg=BasicVariantGenerator(
            points_to_evaluate=member_points(config, points, num_members), random_state=config.train.seed
        ),
        scheduler=_Exchange(_bounds(config)),
    )


def member_space(config: GanConfig) -> dict[str, Any]:
    """The point of a member as Tune draws it: the recipe's, but for what members differ by."""
    return recipe_point(config) | _domains(_bounds(config))


def member_points(
    config: GanConfig, points: Sequence[dict[str, Any]], num_members: int
) -> list[dict[str, Any]]:
    """What the first members differ by: the recipe's own values, then those of `points`.

    Raises:
        UsageError: as `first_points`; a point with what members have alike, or a population of one.
    """
    names = _bounds(config)
    if num_members < 2:
        raise UsageError(f"a population has {num_members} member; ask for at least 2 --trials")
    for name in (name for point in points for name in point):
        if name not in names:
            raise UsageError(
                f"members of a population have '{name}' alike; a point has {', '.join(names)}, and --set is for all"
            )
    return [{name: point[name] for name in names} for point in first_points(config, points, num_members)]


def next_storage(member: str) -> str:
    """The URI of a member's next generation, begun with the checkpoint that Tune hands over, where there is one.

    A generation has a storage of its own: a run goes on with its own settings alone, and those have changed.
    """
    uri = join_uri(member, f"generation-{_num_generations(member):03d}")
    given = tune.get_checkpoint()
    if given is not None:
        storage = open_storage(uri)
        with given.as_directory() as folder:
            files = [
                file for file in Path(folder).rglob("*") if file.is_file() and not file.name.startswith(".")
            ]
            # The pointer last: with it the checkpoint is there.
            for file in sorted(files, key=lambda file: file.name == LATEST):
                with file.open("rb") as stream:
                    storage.write(file.relative_to(folder).as_posix(), stream)
    return uri


def last_storage(member: str) -> str:
    """The URI of a member's last generation that left a checkpoint."""
    for number in reversed(range(_num_generations(member))):
        uri = join_uri(member, f"generation-{number:03d}")
        if latest_folder(open_storage(uri)) is not None:
            return uri
    return join_uri(member, "generation-000")


def train_member(
    trial: RunPlan, share: WorkerResources, told: Callable[[dict[str, float]], dict[str, Any]]
) -> None:
    """Train a generation, and report each validation with its checkpoint, for others to go on from.

    Args:
        trial: its plan, whose storage is the member's; the generation's lies below.
        share: what it may take.
        told: makes what Tune is told out of a validation's figures.
    """
    uri = next_storage(trial.storage)
    storage = open_storage(uri)

    def report(metrics: dict[str, float]) -> None:
        source = latest_folder(storage)
        assert source is not None, "a validation is reported after its checkpoint"
        with tempfile.TemporaryDirectory() as folder:
            # With the course so far: its pictures would begin anew with each generation.
            for key in (LATEST, HISTORY_FILE, *(item.key for item in storage.list(f"{source}/"))):
                storage.download(key, Path(folder) / key)
            tune.report(told(metrics), checkpoint=tune.Checkpoint.from_directory(folder))

    run = dataclasses.replace(trial, storage=uri, num_threads=share.num_threads)
    train_run(run, Ranks(), fill_cache, report)


def _bounds(config: GanConfig) -> dict[str, FloatDistribution]:
    space = gan_space(config)
    return {name: bounds for name in _MUTATED if isinstance(bounds := space.get(name), FloatDistribution)}


def _domains(bounds: Mapping[str, FloatDistribution]) -> dict[str, Any]:
    return {name: tune.loguniform(found.low, found.high) for name, found in bounds.items()}


def _within(point: dict[str, Any], bounds: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """The point with what Tune has driven over the edge of the space brought back to it."""
    return point | {name: min(max(point[name], low), high) for name, (low, high) in bounds.items()}


def _num_generations(member: str) -> int:
    storage, number = open_storage(member), 0
    while storage.exists(f"generation-{number:03d}/{CONFIG_FILE}"):
        number += 1
    return number
