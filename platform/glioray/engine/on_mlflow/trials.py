"""The MLflow runs of a sweep's trials, and the registered model of the winner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glioray.engine.checkpoint import latest_folder
from glioray.engine.on_mlflow.registry import register_model
from glioray.engine.on_mlflow.runs import RunLogger
from glioray.engine.run import RunPlan, log_run_model
from glioray.errors import TrainingError
from glioray.storage import open_storage


def open_trial(trial: RunPlan) -> RunLogger:
    """Open the MLflow run of a trial."""
    return RunLogger.open_run(
        trial.experiment,
        trial.run_name,
        kind="trial",
        parent_run_id=trial.parent_run_id,
        tracking_uri=trial.tracking_uri,
    )


def end_stopped(rows: Sequence[Mapping[str, Any]], plan_of: Callable[[Mapping[str, Any]], RunPlan]) -> None:
    """End the MLflow runs of trials that Tune stopped or that crashed: they could not do it themselves.

    Args:
        rows: of `engine.trials.build_row`.
        plan_of: the plan of a row's trial.
    """
    for row in rows:
        if row["state"] != "complete":
            logger = open_trial(plan_of(row))
            logger.set_tags({"glioray.stopped": row["reason"]})
            logger.finish("FAILED" if row["state"] == "failed" else "KILLED", row["reason"])


def register_winner(name: str, winner: RunPlan, tags: Mapping[str, str]) -> tuple[str, str]:
    """Log and register the model of a trial's latest checkpoint: the version's URI, and its run's id.

    Args:
        name: of the registered model.
        winner: the trial's plan.
        tags: of the version, beside recipe and manifest hash.

    Raises:
        TrainingError: the trial left no checkpoint.
    """
    storage = open_storage(winner.storage)
    if latest_folder(storage) is None:
        raise TrainingError(f"trial {winner.run_name} won but left no checkpoint in '{winner.storage}'")
    logger = open_trial(winner)
    log_run_model(winner, storage, logger)
    logger.finish()
    facts = {"recipe": winner.config.recipe, "manifest_hash": winner.manifest.hash, **tags}
    model = register_model(
        name, logger.run_id, facts, purpose=winner.task.purpose, tracking_uri=winner.tracking_uri
    )
    return model, logger.run_id
