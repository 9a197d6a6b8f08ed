"""A sweep: Optuna proposes, ASHA stops, Ray Tune runs, MLflow keeps.

A trial of one worker trains in its own Tune process; a trial of several hands its plan to Ray Train. Both
run the one loop of `glioray.training`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.search.optuna import OptunaSearch

from glioray.config import override
from glioray.engine.on_mlflow.parent import parent_run
from glioray.engine.on_ray.connect import WorkerResources, log_to_stderr, worker_resources
from glioray.engine.on_ray.trials import (
    PercentASHA,
    end_stopped,
    plotted_rows,
    rank_rows,
    register_winner,
    run_trials,
    train_trial,
    trial_row,
    trial_storage,
    trials_table,
)
from glioray.engine.run import RunPlan
from glioray.errors import DataError, GliorayError, TrainingError
from glioray.reports.trials import trials_figure
from glioray.storage import join_uri
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.space import apply_point, recipe_point, unet_space

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
    with parent_run(base, "sweep", num_trials=plan.num_trials) as logger:
        found = _fit(plan, logger.run_id)
        rows = rank_rows([trial_row(result, worst=WORST, kept=("dice_", "train_")) for result in found])
        logger.log_json(rows, "trials.json")
        logger.log_text(trials_table(rows), "trials.md")
        logger.log_figure(trials_figure(plotted_rows(rows, "optim.lr")), "trials.png")
        end_stopped(rows, lambda row: _trial_plan(plan, row["trial"], row["settings"], logger.run_id))
        _log.info("\n%s", trials_table(rows))
        best = rows[0]
        if best["objective"] <= WORST:
            raise TrainingError(f"none of the {len(rows)} trials succeeded; the first said: {best['reason']}")
        winner = _trial_plan(plan, best["trial"], best["settings"], logger.run_id)
        dice = {name: f"{v:.4f}" for name, v in best["metrics"].items() if name.startswith("dice_")}
        model, run_id = register_winner(plan.model_name, winner, {"sweep": base.run_name, **dice})
        logger.log_metrics({OBJECTIVE: best["objective"]}, step=0)
        logger.set_tags(
            {"glioray.winner": best["trial"], "glioray.model": model, "glioray.winner_run": run_id}
        )
        _log.info("winner: trial %s (picked, not retrained), registered as %s", best["trial"], model)
    return {
        "run_id": logger.run_id,
        "model": model,
        "metrics": best["metrics"],
        "winner": {"trial": best["trial"], "run_id": run_id, "settings": best["settings"]},
        "trials": [{key: value for key, value in row.items() if key != "metrics"} for row in rows],
    }


def _fit(plan: SweepPlan, parent_run_id: str) -> list[tune.Result]:
    base, config = plan.base, _base_config(plan)
    num_workers = config.train.num_workers
    share = worker_resources(plan.num_concurrent * num_workers)
    return run_trials(
        tune.with_parameters(_trial, plan=plan, parent_run_id=parent_run_id, share=share),
        tune.TuneConfig(
            metric="objective",
            mode="max",
            num_samples=plan.num_trials,
            max_concurrent_trials=plan.num_concurrent,
            search_alg=OptunaSearch(
                space=unet_space(config),
                metric="objective",
                mode="max",
                points_to_evaluate=[recipe_point(config)],
                study_name=base.run_name,
                seed=config.train.seed,
            ),
            scheduler=PercentASHA(30),
        ),
        folder=join_uri(base.storage, "ray", "sweep"),
        resources={"CPU": 0.01} if num_workers > 1 else share.resources(),
    )


def _base_config(plan: SweepPlan) -> RunConfig:
    config: RunConfig = plan.base.config
    return config


def _trial(point: dict[str, Any], *, plan: SweepPlan, parent_run_id: str, share: WorkerResources) -> None:
    log_to_stderr()
    trial_id = tune.get_context().get_trial_id()
    run = _trial_plan(plan, trial_id, point, parent_run_id)
    try:
        train_trial(run, share, trial_metrics)
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
        config=override(apply_point(_base_config(plan), point), **settings),
        storage=trial_storage(base, trial_id),
        run_name=f"{base.run_name}/{trial_id}",
        kind="trial",
        parent_run_id=parent_run_id,
    )
