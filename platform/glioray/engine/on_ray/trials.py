"""The trials of a sweep: run by Ray Tune, told as rows, their MLflow runs ended, the best one's model registered."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler

from glioray.engine.checkpoint import latest_folder
from glioray.engine.collectives import Ranks
from glioray.engine.on_mlflow.registry import register_model
from glioray.engine.on_mlflow.runs import RunLogger
from glioray.engine.on_ray.connect import WorkerResources
from glioray.engine.on_ray.data import fill_cache
from glioray.engine.on_ray.train import run_training
from glioray.engine.run import RunPlan, log_run_model, train_run
from glioray.errors import TrainingError
from glioray.storage import join_uri, open_storage

_log = logging.getLogger(__name__)

_FIGURES = ("epoch", "step", "num_slices", "slices_per_s", "minutes", "progress")


class PercentASHA(ASHAScheduler):
    """ASHA by `percent` of a trial's own run, which every trial reports, whether epochs or minutes end it.

    A trial at its end is left to end by itself: it has nothing left to save, but a model to log and a run to close.

    Args:
        grace_percent: share of its run before which no trial is stopped.
    """

    def __init__(self, grace_percent: int) -> None:
        super().__init__(time_attr="percent", max_t=101, grace_period=grace_percent, reduction_factor=3)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """What is to become of a trial: it is stopped, or goes on."""
        if result["percent"] >= 100:
            return str(ASHAScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))


def run_trials(
    trainable: Callable[..., Any],
    config: tune.TuneConfig,
    *,
    folder: str,
    resources: Mapping[str, float],
    space: dict[str, Any] | None = None,
    num_kept: int | None = None,
) -> list[tune.Result]:
    """Run the trials of a sweep to their end, or go on with those that are there.

    Args:
        trainable: of one trial.
        config: how trials are proposed and stopped; what goes on keeps its own.
        folder: URI where Tune keeps them.
        resources: of a trial.
        space: what Tune itself draws, where no search algorithm does.
        num_kept: checkpoints of a trial that Tune keeps, where trials report some.
    """
    path, name = folder.rsplit("/", 1)
    ready = tune.with_resources(trainable, dict(resources))
    if tune.Tuner.can_restore(folder):
        _log.info("trials are there in '%s': going on with them", folder)
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
                verbose=0,
            ),
        )
    with warnings.catch_warnings():
        # Each member has a process of its own, in which nothing is left of another.
        warnings.filterwarnings("ignore", "Consider boosting PBT performance", UserWarning)
        grid = tuner.fit()
    return [grid[number] for number in range(len(grid))]


def train_trial(
    trial: RunPlan, share: WorkerResources, told: Callable[[dict[str, float]], dict[str, Any]]
) -> None:
    """Train a trial, in its own Tune process where it has one worker, and report each of its validations.

    Args:
        trial: its plan.
        share: what each of its workers may take.
        told: makes what Tune is told out of a validation's figures.
    """
    if trial.config.train.num_workers > 1:
        run_training(trial, resources=share, callbacks=[TuneReportCallback()], to_report=told)
    else:
        alone = dataclasses.replace(trial, num_threads=share.num_threads)
        train_run(alone, Ranks(), fill_cache, lambda metrics: tune.report(told(metrics)))


def trial_row(result: tune.Result, *, worst: float, kept: Sequence[str]) -> dict[str, Any]:
    """What became of a trial: "trial", "objective", "state", "reason", "percent", "settings" and "metrics".

    Args:
        result: of Tune. A trial that told a `reason` itself, or that crashed, is "failed"; one that did not get
            to 100 `percent` was "pruned"; all others are "complete".
        worst: objective of one that failed.
        kept: prefixes of the figures that are kept.
    """
    metrics = result.metrics or {}
    percent = metrics.get("percent", 0)
    reason = metrics.get("reason", "")
    if result.error is not None:
        reason = str(result.error).strip().splitlines()[-1]
    failed = result.error is not None or bool(reason)
    state = "failed" if failed else "complete" if percent >= 100 else "pruned"
    if state == "pruned":
        reason = f"stopped by ASHA at {percent} % of its run"
    return {
        "trial": metrics.get("trial_id") or Path(result.path).name,
        "objective": worst if failed else metrics.get("objective", worst),
        "state": state,
        "reason": reason,
        "percent": percent,
        "settings": result.config,
        "metrics": {k: v for k, v in metrics.items() if k.startswith(tuple(kept)) or k in _FIGURES},
    }


def rank_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, best first, each with its "rank"; of equal objectives, those that failed come last."""
    ordered = sorted(rows, key=lambda row: (-row["objective"], row["state"] == "failed"))
    return [{"rank": number, **row} for number, row in enumerate(ordered, start=1)]


def trials_table(rows: Sequence[Mapping[str, Any]], figures: Sequence[str] = ()) -> str:
    """The trials as a Markdown table, in the order given.

    Args:
        rows: of `rank_rows`.
        figures: keys of a row that are shown too; a row may lack them.
    """
    names = sorted({name for row in rows for name in row["settings"]})
    short = [name.rpartition(".")[2] for name in names]
    # Settings of two parts of a config may end alike.
    heads = [name if short.count(last) > 1 else last for name, last in zip(names, short, strict=True)]
    lines = [["rank", "trial", "objective", "state", *figures, *heads, "reason"]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        values = [row["settings"].get(name, "") for name in names]
        told = [row[name] for name in ("rank", "trial", "objective", "state")]
        cells = [*told, *(row.get(name, "") for name in figures), *values, row["reason"]]
        lines.append([_shown(cell) for cell in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def plotted_rows(rows: Sequence[Mapping[str, Any]], rate: str) -> list[dict[str, Any]]:
    """The rows as `tracking.figures.trials_figure` wants them, in the order in which trials began.

    Args:
        rows: of `trial_row`.
        rate: which setting is the learning rate.
    """
    return [
        {
            "trial": number,
            "objective": row["objective"] if row["state"] != "failed" else None,
            "lr": row["settings"][rate],
            "state": row["state"],
        }
        for number, row in enumerate(sorted(rows, key=lambda row: row["trial"]))
    ]


def open_trial(trial: RunPlan) -> RunLogger:
    """The MLflow run of a trial."""
    return RunLogger.open_run(
        trial.experiment,
        trial.run_name,
        kind="trial",
        parent_run_id=trial.parent_run_id,
        tracking_uri=trial.tracking_uri,
    )


def end_stopped(rows: Sequence[Mapping[str, Any]], plan_of: Callable[[Mapping[str, Any]], RunPlan]) -> None:
    """End the MLflow runs of trials that did not: one that was stopped from outside could not, nor say why.

    Args:
        rows: of `trial_row`.
        plan_of: the plan of a row's trial.
    """
    for row in rows:
        if row["state"] != "complete":
            logger = open_trial(plan_of(row))
            logger.set_tags({"glioray.stopped": row["reason"]})
            logger.finish("FAILED" if row["state"] == "failed" else "KILLED", row["reason"])


def register_winner(name: str, winner: RunPlan, tags: Mapping[str, str], **purpose: str) -> tuple[str, str]:
    """Log and register the model of a trial's latest checkpoint: the version's URI, and its run's id.

    Args:
        name: of the registered model.
        winner: the trial's plan.
        tags: of the version, beside recipe and manifest hash.
        purpose: `purpose` of `register_model`, where it is not its default.

    Raises:
        TrainingError: the trial left no checkpoint.
    """
    storage = open_storage(winner.storage)
    if latest_folder(storage) is None:
        raise TrainingError(f"trial {winner.run_name} won but left no checkpoint in '{winner.storage}'")
    logger = open_trial(winner)
    log_run_model(winner.task, storage, logger)
    logger.finish()
    facts = {"recipe": winner.config.recipe, "manifest_hash": winner.manifest.hash, **tags}
    uri = winner.tracking_uri
    return register_model(name, logger.run_id, facts, tracking_uri=uri, **purpose), logger.run_id


def trial_storage(base: RunPlan, trial_id: str) -> str:
    """The URI of a trial's own storage, below its sweep's."""
    return join_uri(base.storage, "trials", trial_id)
