"""A sweep: Optuna proposes, ASHA stops, Ray Tune runs, MLflow keeps.

A trial of one worker trains in its own Tune process; a trial of several hands its plan to Ray Train. Both
run the one loop of `glioray.training`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from glioray.cluster import Share, log_to_stderr, run_training, share_of
from glioray.config import override
from glioray.errors import DataError, GliorayError, TrainingError
from glioray.slices.pipeline import fill_cache
from glioray.storage import join_uri, open_storage
from glioray.tracking.figures import trials_figure
from glioray.tracking.registry import register_model
from glioray.tracking.runs import RunLogger
from glioray.training.checkpoint import latest_folder
from glioray.training.collectives import Ranks
from glioray.training.session import RunPlan, claim_run, log_run_model, train_segmentation
from glioray.tuning.space import apply_point, recipe_point, unet_space

_log = logging.getLogger(__name__)

OBJECTIVE = "dice_mean"
WORST = -1.0
"""What a trial that crashed or diverged is worth: finite, since Optuna never ends a trial of NaN."""

_NUM_VALIDATIONS = 5


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A search around `base`, whose storage, run name and MLflow kind are the sweep's.

    Attributes:
        base: the plan whose config the trials vary.
        num_trials: in all.
        num_concurrent: at once.
        model_name: under which the winner is registered.
    """

    base: RunPlan
    num_trials: int
    num_concurrent: int
    model_name: str


def run_sweep(plan: SweepPlan) -> dict[str, Any]:
    """Search, or go on searching, and register the best trial's model as it is (picked, not retrained).

    Returns: `run_id` of the sweep, `model` (the registered version), `metrics` of the winner, `winner` and
    `trials`, a row a trial.

    Raises:
        DataError: there is no validation case to compare trials by.
        TrainingError: no trial got as far as a checkpoint.
    """
    base = plan.base
    if not base.manifest.select("val") and base.config.sample.slice_split is None:
        raise DataError(
            "a search compares trials on validation cases and the split has none; choose another --fold"
        )
    storage = open_storage(base.storage)
    claim_run(storage, base)
    tags = {"glioray.manifest_hash": base.manifest.hash, "glioray.recipe": base.config.recipe}
    logger = RunLogger.open_run(
        base.experiment, base.run_name, kind="sweep", tags=tags, tracking_uri=base.tracking_uri
    )
    try:
        logger.log_params(
            {"recipe": base.config.recipe, "num_trials": plan.num_trials, "data": base.manifest.data}
        )
        rows = [_row(result) for result in _fit(plan, logger.run_id)]
        rows.sort(key=lambda row: -row["objective"])
        for number, row in enumerate(rows):
            row["rank"] = number + 1
        logger.log_json(rows, "trials.json")
        logger.log_text(trials_table(rows), "trials.md")
        logger.log_figure(trials_figure(_as_plotted(rows)), "trials.png")
        _close_stopped(plan, logger.run_id, rows)
        _log.info("\n%s", trials_table(rows))
        best = rows[0]
        if best["objective"] <= WORST:
            raise TrainingError(f"none of the {len(rows)} trials succeeded; the first said: {best['reason']}")
        winner = _trial_plan(plan, best["trial"], best["settings"], logger.run_id)
        model, run_id = _register(plan, winner, best)
        logger.log_metrics({OBJECTIVE: best["objective"]}, step=0)
        logger.set_tags(
            {"glioray.winner": best["trial"], "glioray.model": model, "glioray.winner_run": run_id}
        )
        _log.info("winner: trial %s (picked, not retrained), registered as %s", best["trial"], model)
        logger.finish()
    except Exception as error:
        logger.finish("FAILED", str(error) or type(error).__name__)
        raise
    return {
        "run_id": logger.run_id,
        "model": model,
        "metrics": best["metrics"],
        "winner": {"trial": best["trial"], "run_id": run_id, "settings": best["settings"]},
        "trials": [{key: value for key, value in row.items() if key != "metrics"} for row in rows],
    }


def _fit(plan: SweepPlan, parent_run_id: str) -> list[tune.Result]:
    base = plan.base
    num_workers = base.config.train.num_workers
    share = share_of(plan.num_concurrent * num_workers)
    nested = num_workers > 1
    trainable = tune.with_resources(
        tune.with_parameters(_trial, plan=plan, parent_run_id=parent_run_id, share=share),
        {"CPU": 0.01} if nested else share.resources(),
    )
    path = join_uri(base.storage, "ray")
    experiment = join_uri(path, "sweep")
    if tune.Tuner.can_restore(experiment):
        _log.info("the sweep '%s' is there: going on with it", base.run_name)
        tuner = tune.Tuner.restore(experiment, trainable, resume_unfinished=True, resume_errored=True)
    else:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric="objective",
                mode="max",
                num_samples=plan.num_trials,
                max_concurrent_trials=plan.num_concurrent,
                search_alg=OptunaSearch(
                    space=unet_space(base.config),
                    metric="objective",
                    mode="max",
                    points_to_evaluate=[recipe_point(base.config)],
                    study_name=base.run_name,
                    seed=base.config.train.seed,
                ),
                # By share of the run, which every trial reports, whether epochs or minutes end it; one that is at its
                # end is left to end by itself.
                scheduler=ASHAScheduler(time_attr="percent", max_t=101, grace_period=30, reduction_factor=3),
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=path,
                failure_config=tune.FailureConfig(max_failures=1),
                verbose=0,
            ),
        )
    grid = tuner.fit()
    return [grid[number] for number in range(len(grid))]


def _trial(point: dict[str, Any], *, plan: SweepPlan, parent_run_id: str, share: Share) -> None:
    log_to_stderr()
    trial_id = tune.get_context().get_trial_id()
    run = dataclasses.replace(
        _trial_plan(plan, trial_id, point, parent_run_id), num_threads=share.num_threads
    )
    try:
        if run.config.train.num_workers > 1:
            run_training(run, share=share, callbacks=[TuneReportCallback()], told=trial_metrics)
        else:
            train_segmentation(run, Ranks(), fill_cache, lambda metrics: tune.report(trial_metrics(metrics)))
    except GliorayError as error:
        _log.warning("trial %s ends at %g: %s", trial_id, WORST, error)
        tune.report({"objective": WORST, "percent": 100, "reason": str(error)})


def trial_metrics(metrics: dict[str, float]) -> dict[str, Any]:
    """What a trial tells Tune: the objective, how far it is, and everything else."""
    objective = metrics.get(OBJECTIVE, WORST)
    return {
        **metrics,
        "objective": objective if math.isfinite(objective) else WORST,
        "percent": int(100 * metrics["progress"]),
    }


def _trial_plan(plan: SweepPlan, trial_id: str, point: dict[str, Any], parent_run_id: str) -> RunPlan:
    base = plan.base
    minutes = base.config.train.minutes
    if minutes is not None:
        minutes = minutes * plan.num_concurrent / plan.num_trials
    settings = {"train.minutes": minutes, "train.num_validations": _NUM_VALIDATIONS}
    return dataclasses.replace(
        base,
        config=override(apply_point(base.config, point), **settings),
        storage=join_uri(base.storage, "trials", trial_id),
        run_name=f"{base.run_name}/{trial_id}",
        kind="trial",
        parent_run_id=parent_run_id,
    )


def _row(result: tune.Result) -> dict[str, Any]:
    metrics = result.metrics or {}
    percent = metrics.get("percent", 0)
    reason = metrics.get("reason", "")
    if result.error is not None:
        reason = str(result.error).strip().splitlines()[-1]
    failed = result.error is not None or bool(reason)
    state = "failed" if failed else "complete" if percent >= 100 else "pruned"
    if state == "pruned":
        reason = f"stopped by ASHA at {percent} % of its run"
    figures = {k: v for k, v in metrics.items() if k.startswith(("dice_", "train_")) or k in _KEPT}
    return {
        "trial": metrics.get("trial_id") or Path(result.path).name,
        "objective": WORST if failed else metrics.get("objective", WORST),
        "state": state,
        "reason": reason,
        "settings": result.config,
        "metrics": figures,
    }


_KEPT = ("epoch", "step", "num_slices", "slices_per_s", "minutes")


def trials_table(rows: list[dict[str, Any]]) -> str:
    """The trials as a Markdown table, best first."""
    names = sorted({name for row in rows for name in row["settings"]})
    head = ["rank", "trial", "objective", "state", *(name.rpartition(".")[2] for name in names), "reason"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for row in rows:
        values = [_shown(row["settings"].get(name, "")) for name in names]
        lines.append(
            " | ".join(
                [
                    str(row["rank"]),
                    row["trial"],
                    _shown(row["objective"]),
                    row["state"],
                    *values,
                    row["reason"],
                ]
            )
        )
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _as_plotted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "trial": number,
            "objective": row["objective"] if row["state"] != "failed" else None,
            "lr": row["settings"]["optim.lr"],
            "state": row["state"],
        }
        for number, row in enumerate(sorted(rows, key=lambda row: row["trial"]))
    ]


def _open_trial(winner: RunPlan) -> RunLogger:
    return RunLogger.open_run(
        winner.experiment,
        winner.run_name,
        kind="trial",
        parent_run_id=winner.parent_run_id,
        tracking_uri=winner.tracking_uri,
    )


def _close_stopped(plan: SweepPlan, parent_run_id: str, rows: list[dict[str, Any]]) -> None:
    """A trial that was stopped from outside could not end its own MLflow run, nor say why."""
    for row in rows:
        if row["state"] != "complete":
            status: Any = "FAILED" if row["state"] == "failed" else "KILLED"
            _open_trial(_trial_plan(plan, row["trial"], row["settings"], parent_run_id)).finish(
                status, row["reason"]
            )


def _register(plan: SweepPlan, winner: RunPlan, best: dict[str, Any]) -> tuple[str, str]:
    storage = open_storage(winner.storage)
    if latest_folder(storage) is None:
        raise TrainingError(f"trial {best['trial']} won but left no checkpoint in '{winner.storage}'")
    logger = _open_trial(winner)
    log_run_model(storage, logger)
    logger.finish()
    tags = {
        "recipe": winner.config.recipe,
        "manifest_hash": winner.manifest.hash,
        "sweep": plan.base.run_name,
    }
    tags |= {name: f"{value:.4f}" for name, value in best["metrics"].items() if name.startswith("dice_")}
    return register_model(
        plan.model_name, logger.run_id, tags, tracking_uri=winner.tracking_uri
    ), logger.run_id
