"""Trials on Ray Tune: how they are run, stopped and resumed."""

from __future__ import annotations

import dataclasses
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler

from glioray.engine.collectives import Ranks
from glioray.engine.on_ray.connect import WorkerResources
from glioray.engine.on_ray.gauges import train_measured
from glioray.engine.on_ray.train import run_training
from glioray.engine.run import RunPlan
from glioray.progress import log_progress

_log = logging.getLogger(__name__)

ToReport = Callable[[dict[str, float]], dict[str, Any]]
"""Makes the report of a trial from the metrics of a validation."""


class PercentASHA(ASHAScheduler):
    """ASHA by `percent` of a trial's own run, which every trial reports, whether epochs or minutes end it.

    A trial at 100 % is not stopped: it has nothing left to save, but a model to log and a run to close.

    Args:
        grace_percent: percentage of its run before which no trial is stopped.
    """

    def __init__(self, grace_percent: int) -> None:
        super().__init__(time_attr="percent", max_t=101, grace_period=grace_percent, reduction_factor=3)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial continues or stops."""
        if result["percent"] >= 100:
            return str(ASHAScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))


class _Progress(tune.Callback):
    """Logs how far a search is, and how each trial ended."""

    def __init__(self, num_trials: int) -> None:
        self.num_trials, self.began_s = num_trials, 0.0

    def setup(self, *args: Any, **info: Any) -> None:
        self.began_s = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        ended = [one for one in trials if one.is_finished()]
        running = [one for one in trials if not one.is_finished()]
        percent = 100 * len(ended) + sum((one.last_result or {}).get("percent", 0) for one in running)
        # The last trial's own end says that the search is done.
        done = min(percent / (100 * self.num_trials), 0.99)
        log_progress(_log, f"search of {self.num_trials} trials", done, self.began_s, f"{len(ended)} ended")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        reason = result.get("reason") or f"objective {result.get('objective', float('nan')):.4g}"
        self._log_end(trials, trial, f"at {result.get('percent', 0)} %: {reason}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        lines = str(trial.get_error() or "its process died").strip().splitlines()
        self._log_end(trials, trial, f"with an error: {lines[-1]}")

    def _log_end(self, trials: list[Any], trial: Any, how: str) -> None:
        number = len({one.trial_id for one in trials if one.is_finished()} | {trial.trial_id})
        _log.info("trial %d of %d, %s, ended %s", number, self.num_trials, trial.trial_id, how)


def run_trials(
    trainable: Callable[..., Any],
    config: tune.TuneConfig,
    *,
    folder: str,
    resources: Mapping[str, float],
    num_trials: int,
    space: dict[str, Any] | None = None,
    num_kept: int | None = None,
) -> list[tune.Result]:
    """Run the trials of a sweep to their end, or resume them.

    Args:
        trainable: of one trial.
        config: how trials are proposed and stopped; a resumed sweep keeps its own.
        folder: URI where Tune keeps them.
        resources: of a trial.
        num_trials: in all.
        space: what Tune itself draws, where no search algorithm does.
        num_kept: checkpoints of a trial that Tune keeps, where trials report some.
    """
    path, name = folder.rsplit("/", 1)
    ready = tune.with_resources(trainable, dict(resources))
    if tune.Tuner.can_restore(folder):
        _log.info("resuming the trials in '%s'", folder)
        tuner = tune.Tuner.restore(folder, ready, resume_unfinished=True, resume_errored=True)
    else:
        config.trial_dirname_creator = lambda trial: trial.trial_id
        tuner = tune.Tuner(
            ready,
            param_space=space,
            tune_config=config,
            run_config=tune.RunConfig(
                name=name,
                storage_path=path,
                failure_config=tune.FailureConfig(max_failures=1),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=num_kept),
                callbacks=[_Progress(num_trials)],
                verbose=0,
            ),
        )
    with warnings.catch_warnings():
        # Ray advises to reuse a member's process for another's; ours start clean.
        warnings.filterwarnings("ignore", "Consider boosting PBT performance", UserWarning)
        grid = tuner.fit()
    return [grid[number] for number in range(len(grid))]


def train_trial(trial: RunPlan, resources: WorkerResources, to_report: ToReport) -> None:
    """Train a trial and report each of its validations to Tune.

    One worker trains in this process; several train through Ray Train.

    Args:
        trial: its plan.
        resources: of each of its workers.
        to_report: makes Tune's report from a validation's metrics.
    """
    if trial.config.train.num_workers > 1:
        run_training(trial, resources=resources, callbacks=[TuneReportCallback()], to_report=to_report)
    else:
        alone = dataclasses.replace(trial, num_threads=resources.num_threads)
        train_measured(alone, Ranks(), lambda metrics: tune.report(to_report(metrics)))
