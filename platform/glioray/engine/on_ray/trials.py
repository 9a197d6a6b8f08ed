"""Trials on Ray Tune: how they are run, stopped, resumed and added to."""

from __future__ import annotations

import dataclasses
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler

from glioray.engine.collectives import Ranks
from glioray.engine.on_ray.connect import keep_credentials
from glioray.engine.on_ray.faults import persist
from glioray.engine.on_ray.gauges import count_end, train_measured
from glioray.engine.on_ray.resources import WorkerResources
from glioray.engine.on_ray.train import run_training
from glioray.engine.run import RunPlan
from glioray.progress import log_progress

_log = logging.getLogger(__name__)

ToReport = Callable[[dict[str, float]], dict[str, Any]]
"""Makes the report of a trial from the metrics of a validation."""


class PercentASHA(ASHAScheduler):
    """ASHA by `percent` of a trial's own run, which every trial reports, whether epochs or minutes end it.

    A trial at 100 % is not stopped: it has nothing left to save, but a model to log and a run to close.

    Tune keeps no scheduler: the rungs of a resumed search, and of trials that are added to one, would begin empty, and
    the first trials to meet them would pass whatever they are worth. So the trials of earlier experiments are put on
    the rungs with all their reports. Of the trials that had ended in a resumed experiment Tune gives the last report
    alone, which counts on the highest rung that they met.

    Args:
        grace_percent: percentage of its run before which no trial is stopped.
        earlier: reports of earlier trials, each with "percent" and "objective".
        task: of the trials, under which those that are stopped are counted: their processes end before they could.
    """

    # A search that an earlier version began is restored without it.
    _task = "unknown"

    def __init__(
        self,
        grace_percent: int,
        earlier: Sequence[Sequence[Mapping[str, float]]] = (),
        *,
        task: str,
    ) -> None:
        super().__init__(time_attr="percent", max_t=101, grace_period=grace_percent, reduction_factor=3)
        self._earlier, self._task = earlier, task

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Take what is compared, and put the earlier trials on the rungs by it."""
        is_set = bool(super().set_search_properties(metric, mode, **spec))
        for number, reports in enumerate(self._earlier):
            trial: Any = SimpleNamespace(trial_id=f"earlier-{number}")
            super().on_trial_add(None, trial)  # type: ignore[arg-type]
            for report in reports:
                self._decide(None, trial, dict(report))
            self.on_trial_complete(None, trial, dict(reports[-1]))  # type: ignore[arg-type]
        return is_set

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take a trial; one that ended before a resumption takes its place on the rungs."""
        super().on_trial_add(tune_controller, trial)
        if trial.is_finished() and trial.last_result:
            self.on_trial_complete(tune_controller, trial, trial.last_result)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial continues or stops."""
        decision = self._decide(tune_controller, trial, result)
        # One that reports why it failed has been counted.
        if decision == ASHAScheduler.STOP and "reason" not in result:
            count_end(self._task, "stopped", "ASHA")
        return decision

    def _decide(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result["percent"] >= 100:
            return str(ASHAScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))


class _Progress(tune.Callback):
    """Logs how far a search is, and how each trial ended."""

    def __init__(self, num_trials: int, num_before: int) -> None:
        self.num_trials, self.num_before, self.began_s = num_trials, num_before, 0.0

    def setup(self, *args: Any, **info: Any) -> None:
        self.began_s = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        ended = [one for one in trials if one.is_finished()]
        running = [one for one in trials if not one.is_finished()]
        percent = 100 * len(ended) + sum((one.last_result or {}).get("percent", 0) for one in running)
        # Of the trials of this command, by which the time left is told. The last one's own end says that it is done.
        done = min(percent / (100 * (self.num_trials - self.num_before)), 0.99)
        num_ended = self.num_before + len(ended)
        log_progress(_log, f"search of {self.num_trials} trials", done, self.began_s, f"{num_ended} ended")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        reason = result.get("reason") or f"objective {result.get('objective', float('nan')):.4g}"
        self._log_end(trials, trial, f"at {result.get('percent', 0)} %: {reason}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        lines = str(trial.get_error() or "its process died").strip().splitlines()
        self._log_end(trials, trial, f"with an error: {lines[-1]}")

    def _log_end(self, trials: list[Any], trial: Any, how: str) -> None:
        ended = {one.trial_id for one in trials if one.is_finished()} | {trial.trial_id}
        number = self.num_before + len(ended)
        _log.info("trial %d of %d, %s, ended %s", number, self.num_trials, trial.trial_id, how)


Configure = Callable[[Sequence[tune.Result], int], tune.TuneConfig | None]
"""How further trials are proposed and stopped, from the results of the earlier ones and the number of the further
ones; None where a sweep cannot grow."""


def run_trials(
    trainable: Callable[..., Any],
    configure: Configure,
    *,
    folder: str,
    resources: Mapping[str, float],
    num_trials: int,
    space: dict[str, Any] | None = None,
    num_kept: int | None = None,
) -> list[tune.Result]:
    """Run the trials of a sweep to their end, resume them, or add to them.

    A restored experiment of Tune keeps its number of trials, so that trials which are added are a further experiment,
    in a folder of its own. Each resumes by itself.

    Args:
        trainable: of one trial.
        configure: how trials are proposed and stopped; a resumed experiment keeps its own.
        folder: URI where Tune keeps the first experiment; the others have the number of theirs at its end.
        resources: of a trial.
        num_trials: in all.
        space: what Tune itself draws, where no search algorithm does.
        num_kept: checkpoints of a trial that Tune keeps, where trials report some.
    """
    keep_credentials()
    ready = tune.with_resources(trainable, dict(resources))
    results: list[tune.Result] = []
    for number in count(1):
        part = folder if number == 1 else f"{folder}-{number}"
        if tune.Tuner.can_restore(part):
            _log.info("resuming the trials in '%s'", part)
            tuner = tune.Tuner.restore(part, ready, resume_unfinished=True, resume_errored=True)
        else:
            num_further = num_trials - len(results)
            config = configure(results, num_further) if num_further > 0 else None
            if config is None:
                break
            if results:
                _log.info("adding %d trials to the %d of before", num_further, len(results))
            config.num_samples = num_further
            config.trial_dirname_creator = lambda trial: trial.trial_id
            path, name = part.rsplit("/", 1)
            tuner = tune.Tuner(
                ready,
                param_space=space,
                tune_config=config,
                run_config=tune.RunConfig(
                    name=name,
                    storage_path=path,
                    failure_config=tune.FailureConfig(max_failures=1),
                    checkpoint_config=tune.CheckpointConfig(num_to_keep=num_kept),
                    callbacks=[_Progress(num_trials, len(results))],
                    verbose=0,
                ),
            )
        with warnings.catch_warnings():
            # Ray advises to reuse a member's process for another's; ours start clean.
            warnings.filterwarnings("ignore", "Consider boosting PBT performance", UserWarning)
            grid = tuner.fit()
        results += [grid[index] for index in range(len(grid))]
    return results


def reports(results: Sequence[tune.Result]) -> list[list[dict[str, float]]]:
    """What each trial reported, in order, as `PercentASHA` takes it; without the trials that reported nothing."""
    tables = [result.metrics_dataframe for result in results]
    return [
        table[["percent", "objective"]].to_dict("records")
        for table in tables
        if table is not None and {"percent", "objective"} <= {*table.columns}
    ]


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

        def train() -> None:
            train_measured(alone, Ranks(), lambda metrics: tune.report(to_report(metrics)))

        # Where only a new process helps, Tune starts one.
        persist(train, max_restarts=0)
