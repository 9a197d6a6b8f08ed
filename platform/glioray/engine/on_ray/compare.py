"""The runs of a comparison, scheduled by Ray Tune.

Each run leaves its result in its own storage, so that a comparison of the same name resumes with the runs that have
none: after a crash, or with further entrants. Tune's own state is therefore never restored.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

from ray import tune

from glioray.engine.collectives import Ranks
from glioray.engine.comparison import (
    Comparison,
    ComparisonPlan,
    ComparisonRun,
    RunResult,
    plan_facts,
    plan_runs,
    report_results,
)
from glioray.engine.on_mlflow.parent import parent_run
from glioray.engine.on_ray.agreement import agree_on_precision
from glioray.engine.on_ray.away import outlast
from glioray.engine.on_ray.connect import keep_credentials
from glioray.engine.on_ray.faults import MAX_RESTARTS, Decision, judge, persist
from glioray.engine.on_ray.gauges import train_measured
from glioray.engine.on_ray.placement import fill_cache, place_data
from glioray.engine.on_ray.resources import WorkerResources, worker_resources
from glioray.engine.on_ray.train import run_training
from glioray.errors import DivergenceError, TrainingError
from glioray.progress import log_to_stderr
from glioray.storage import join_uri

_log = logging.getLogger(__name__)


def run_comparison(plan: ComparisonPlan) -> dict[str, Any]:
    """Execute the runs that have no result yet, rank the entrants and report.

    Returns: as `report_results`.

    Raises:
        UsageError: an entrant that cannot be compared, or the name is taken by a run with other settings or other data.
        TrainingError: no run has a model.
    """
    comparison = plan.base.task.comparison
    for config in plan.entrants.values():
        comparison.check(config)
    return outlast(lambda: _run_comparison(plan))


def _run_comparison(plan: ComparisonPlan) -> dict[str, Any]:
    with parent_run(plan.base, "comparison", **plan_facts(plan)) as logger:
        agree = agree_on_precision(plan.base.storage, plan.entrants.values())
        plan = dataclasses.replace(plan, base=dataclasses.replace(plan.base, agree=agree))
        runs = plan_runs(plan, logger.run_id)
        results = execute_runs(runs, plan.num_concurrent, folder=join_uri(plan.base.storage, "tune"))
        return report_results(plan, results, logger)


def execute_runs(runs: Sequence[ComparisonRun], num_concurrent: int, *, folder: str) -> list[RunResult]:
    """The result of each run, in order; runs without a final one are executed now.

    Args:
        runs: of equal resources.
        num_concurrent: runs at a time.
        folder: URI where Tune keeps its files.

    Raises:
        DataError: too many of the cases can no longer be decoded.
    """
    results = {number: result for number, run in enumerate(runs) if (result := run.load_result()) is not None}
    if results:
        _log.info("%d of %d runs are there already", len(results), len(runs))
    missing = [number for number in range(len(runs)) if number not in results]
    if missing:
        num_workers = runs[0].plan.config.train.num_workers
        # Divided by the number of all runs, not of the missing ones: the last runs of a resumed comparison would
        # otherwise get more of the machine than the others had in the same minutes.
        asked = runs[0].plan.workers
        workers = worker_resources(min(num_concurrent, len(runs)) * num_workers, asked)
        place_data([runs[number].plan for number in missing], everywhere=num_workers == 1)
        resources = workers.resources() if num_workers == 1 else {"CPU": 0.01}
        progress = _Progress(runs, len(missing))
        path, name = folder.rsplit("/", 1)
        keep_credentials()
        tune.Tuner(
            tune.with_resources(tune.with_parameters(_execute_trial, runs=runs, workers=workers), resources),
            param_space={"number": tune.grid_search(missing)},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=num_concurrent,
                # A new process a run would import everything again, at the cost of the runs beside it.
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=path,
                failure_config=tune.FailureConfig(max_failures=MAX_RESTARTS),
                callbacks=[progress],
                verbose=0,
            ),
        ).fit()
        results |= progress.results
    return [
        results.get(number) or run.failed("interrupted before its end", again=True)
        for number, run in enumerate(runs)
    ]


class _Progress(tune.Callback):
    """Collects the results as runs end, and logs each of them."""

    def __init__(self, runs: Sequence[ComparisonRun], num_missing: int) -> None:
        self.runs, self.num_missing, self.start_s = runs, num_missing, time.monotonic()
        self.results: dict[int, RunResult] = {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        reason = (trial.last_result or {}).get("reason", "")
        run = self.runs[number]
        self._add(number, run.load_result() or run.failed(reason, again=True))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        lines = str(trial.get_error() or "its process died").strip().splitlines()
        self._add(number, self.runs[number].failed(lines[-1], again=True))

    def _add(self, number: int, result: RunResult) -> None:
        self.results[number] = result
        run, num_done = self.runs[number], len(self.results)
        left_s = (time.monotonic() - self.start_s) / num_done * (self.num_missing - num_done)
        failed = result["state"] == "failed"
        comparison = run.plan.task.comparison
        _log.info(
            "run %d/%d, %s%s, seed %d: %s; %.0f minutes left",
            num_done,
            self.num_missing,
            run.label,
            "" if run.fold is None else f", fold {run.fold}",
            run.seed,
            f"failed: {result['reason']}" if failed else comparison.summarize(result),
            left_s / 60,
        )


def _execute_trial(
    config: dict[str, Any], runs: Sequence[ComparisonRun], workers: WorkerResources
) -> dict[str, str]:
    return {"reason": execute_run(runs[config["number"]], workers)["reason"]}


def execute_run(run: ComparisonRun, workers: WorkerResources) -> RunResult:
    """Train and judge one run. Its result is final unless it failed for another reason than divergence.

    Raises:
        GliorayError: another process may succeed with it: Tune starts one.
    """
    log_to_stderr(shown=False)
    plan = dataclasses.replace(run.plan, num_threads=workers.num_threads)
    comparison: Comparison = plan.task.comparison
    is_alone = plan.config.train.num_workers == 1

    def execute() -> RunResult:
        outcome = train_measured(plan, Ranks()) if is_alone else run_training(plan, resources=workers)
        return {**run.identity(), **comparison.judge(plan, outcome, fill_cache)}

    try:
        result = persist(execute, max_restarts=0)
    except Exception as error:
        verdict = judge(error)
        # Several processes have been restarted already.
        if is_alone and verdict.decision is Decision.RESTART:
            raise
        if not isinstance(verdict.error, DivergenceError):
            # Of an error that is none of ours, where it came from.
            show = error if type(verdict.error) is TrainingError else None
            _log.error("the run failed: %s", verdict.error, exc_info=show)
            return run.failed(str(verdict.error), again=True)
        # Deterministic: retrying would not help.
        result = run.failed(str(verdict.error), again=False)
    run.save_result(result)
    return result
