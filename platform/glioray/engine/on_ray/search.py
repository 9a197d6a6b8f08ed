"""A sweep: Optuna proposes, ASHA stops, Ray Tune runs, MLflow keeps; of any task.

A trial of one worker trains in its own Tune process; a trial of several hands its plan to Ray Train.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from ray import tune
from ray.tune.search.optuna import OptunaSearch

from glioray.engine.descriptions import describe_sweep
from glioray.engine.on_mlflow.parent import parent_run
from glioray.engine.on_mlflow.runs import RunLogger
from glioray.engine.on_mlflow.trials import end_stopped, register_winner
from glioray.engine.on_ray.connect import WorkerResources, worker_resources
from glioray.engine.on_ray.population import last_storage, member_domains, num_kept, population, train_member
from glioray.engine.on_ray.train import RESULT_FILE, run_training
from glioray.engine.on_ray.trials import PercentASHA, run_trials, train_trial
from glioray.engine.run import CONFIG_FILE
from glioray.engine.search import Row, Search, SweepPlan, check_sweep
from glioray.engine.space import format_space
from glioray.engine.trials import (
    build_row,
    choose_setting,
    format_table,
    importances,
    number_rows,
    pareto_rows,
    rank_rows,
)
from glioray.errors import GliorayError, TrainingError, UsageError
from glioray.progress import IN_LOG, log_to_stderr
from glioray.reports.pareto import pareto_figure, pareto_front
from glioray.reports.trials import trials_figure
from glioray.storage import join_uri, open_storage

_log = logging.getLogger(__name__)

SPACE_FILE = "space.json"


def run_sweep(plan: SweepPlan) -> dict[str, Any]:
    """Search, or resume the search of that run name, and register the best trial's model (it is not retrained).

    Returns: `run_id` of the sweep, `run_url` and `table_url` (its page in MLflow, and the table of its trials by the
        objective; None where no server shows them), `model` (the registered version), `metrics` of the winner, `winner` ("trial",
        "run_id", "settings"), the summary under the task's `Search.summary_key`, `trials` (a row each, best first) and,
        in the mode "pareto", `front` (trials by the second objective).

    Raises:
        DataError: there is nothing to compare trials by.
        UsageError: as `check_sweep`, or the run's name is taken by another search.
        TrainingError: no trial is healthy.
    """
    base, search = plan.base, plan.search
    search.check_data(base.manifest, base.config)
    space = check_sweep(
        base.task,
        base.config,
        num_trials=plan.num_trials,
        mode=plan.mode,
        points=plan.points,
        custom=plan.custom,
    )
    _check_same_space(plan)
    facts = {"num_trials": plan.num_trials, "mode": plan.mode, "space": json.dumps(format_space(space))}
    with parent_run(base, "sweep", **facts) as logger:
        open_storage(base.storage).write(SPACE_FILE, json.dumps(_identity(plan)).encode())
        _train_warm_starts(plan, logger.run_id)
        results = _fit(plan, logger.run_id)
        rows = rank_rows([build_row(result, search) for result in results])
        config = plan.config
        is_healthy = {row["trial"]: search.is_healthy(row["objective"], config) for row in rows}
        summary = search.summarize(rows)
        _log_rows(logger, plan, rows, summary, is_healthy)
        shown = [name for name in search.columns if name in rows[0]["metrics"]]
        logger.share_table(search.objective, shown, plan.space)
        end_stopped(rows, lambda row: plan.trial_run(row["trial"], logger.run_id))
        front = _find_front(plan, rows, is_healthy) if plan.mode == "pareto" else []
        best = next((row for row in rows if row["trial"] in front), rows[0])
        if not is_healthy[best["trial"]]:
            logger.describe(describe_sweep(plan, rows, summary, {}, logger))
            raise TrainingError(
                f"none of the {len(rows)} trials is healthy; the best one's reason: {best['reason'] or search.unhealthy}"
            )
        winner = plan.trial(best["trial"], best["settings"], logger.run_id)
        if plan.mode == "pbt":
            winner = dataclasses.replace(winner, storage=last_storage(winner.storage))
        tags = {"sweep": base.run_name, **search.version_tags(best["metrics"])}
        model, run_id = register_winner(plan.model_name, winner, tags)
        logger.log_metrics(_winner_metrics(search, best), step=0)
        won = {"trial": best["trial"], "model": model, "run_id": run_id}
        logger.set_tags(
            {"glioray.winner": best["trial"], "glioray.model": model, "glioray.winner_run": run_id}
        )
        logger.describe(describe_sweep(plan, rows, summary, won, logger))
        _log.info(
            "winner: trial %s with %s %.4g (not retrained), registered as %s",
            best["trial"], search.objective, best["objective"], model,
        )  # fmt: skip
    result = {
        "run_id": logger.run_id,
        "run_url": logger.url,
        "table_url": logger.table_url,
        "model": model,
        "metrics": best["metrics"],
        "winner": {"trial": best["trial"], "run_id": run_id, "settings": best["settings"]},
        search.summary_key: summary,
        "trials": [{key: value for key, value in row.items() if key != "metrics"} for row in rows],
    }
    return result | ({"front": front} if plan.mode == "pareto" else {})


def _identity(plan: SweepPlan) -> dict[str, Any]:
    """The settings that a search must keep when it resumes, beside its config: its own entries and its objective."""
    custom = plan.custom
    space = {"entries": format_space(custom.entries), "keep_own": custom.keep_own}
    return {**space, "objective": plan.search.objective}


def _check_same_space(plan: SweepPlan) -> None:
    """Refuse to resume a search with other entries, since Tune would keep the old ones, or with another objective.

    Raises:
        UsageError: a search of that name has other entries, or trials of another objective.
    """
    storage = open_storage(plan.base.storage)
    if not storage.exists(CONFIG_FILE) or not any(storage.list("ray/")):
        return
    name, now = plan.base.run_name, _identity(plan)
    kept = json.loads(storage.read(SPACE_FILE)) if storage.exists(SPACE_FILE) else {}
    if kept.get("objective") != now["objective"]:
        raise UsageError(
            f"the search '{name}' was begun by a version of glioray that ranks trials by another objective, which does "
            f"not compare with '{now['objective']}'; choose another --run-name"
        )
    if kept != now:
        raise UsageError(
            f"the search '{name}' exists with another search space ({json.dumps(kept['entries'])}); choose another "
            "--run-name, or repeat its --search flags to resume it"
        )


def _log_rows(
    logger: RunLogger,
    plan: SweepPlan,
    rows: list[Row],
    summary: Mapping[str, Any],
    is_healthy: Mapping[str, bool],
) -> None:
    search = plan.search
    summary_text = search.describe(summary, plan.mode)
    table = f"{summary_text}\n{format_table(rows, search.columns)}"
    # The settings that a member ended with are not those of its whole run.
    weights = {} if plan.mode == "pbt" else importances(rows, plan.space)
    if weights:
        largest = ", ".join(f"{name} {value:.2f}" for name, value in list(weights.items())[:5])
        table += f"\nSettings that explain most of the objective: {largest}.\n"
    logger.log_json(rows, "trials.json")
    logger.log_json({**summary, "importances": weights}, "summary.json")
    logger.log_text(table, "trials.md")
    setting, is_log = choose_setting(plan.space, search.rate)
    label = "learning rate" if setting == search.rate else setting
    logger.log_figure(trials_figure(number_rows(rows, setting), label=label, is_log=is_log), "trials.png")
    for path, figure in search.figures(rows, plan.config).items():
        logger.log_figure(figure, path)
    if plan.mode == "pareto":
        vertical, horizontal = objectives = search.objectives(plan.config)
        figure = pareto_figure(
            pareto_rows(rows, objectives, is_healthy=is_healthy),
            labels=(horizontal.label, vertical.label),
            maximize=(horizontal.maximize, vertical.maximize),
            baselines=(horizontal.baseline, vertical.baseline),
            unhealthy=search.unhealthy,
        )
        logger.log_figure(figure, "pareto.png")
    logger.log_metrics({k: float(v) for k, v in summary.items() if not isinstance(v, list)}, step=0)
    _log.info("%s", summary_text.strip())
    _log.info("\n%s", table, extra=IN_LOG)


def _winner_metrics(search: Search, best: Row) -> dict[str, float]:
    """The winner's metrics and numeric settings, so that MLflow's table and charts compare searches."""
    settings = {
        f"winner.{name}": float(value)
        for name, value in best["settings"].items()
        if isinstance(value, int | float)
    }
    kept = {
        name: float(value) for name, value in best["metrics"].items() if name.startswith(search.kept_metrics)
    }
    return settings | kept | {search.objective: float(best["objective"])}


def _find_front(plan: SweepPlan, rows: list[Row], is_healthy: Mapping[str, bool]) -> list[str]:
    vertical, horizontal = plan.search.objectives(plan.config)
    points = {
        row["trial"]: (row["metrics"][horizontal.metric], row["metrics"][vertical.metric])
        for row in rows
        if is_healthy[row["trial"]]
    }
    return pareto_front(points, (horizontal.maximize, vertical.maximize))


def _train_warm_starts(plan: SweepPlan, parent_run_id: str) -> None:
    """Train what all trials start from, to each share of their budget, with the resources that one of them has."""
    config = plan.config
    for begin, end in pairwise((0.0, *plan.shares)):
        uri = plan.source(end)
        if open_storage(uri).exists(RESULT_FILE):
            continue
        run = dataclasses.replace(
            plan.base,
            config=plan.search.warm_start(config, begin, end, plan.source(begin) if begin else None),
            storage=uri,
            run_name=f"{plan.base.run_name}/pretrain-{round(100 * end)}",
            kind="train",
            parent_run_id=parent_run_id,
            log_model=False,
        )
        _log.info("pretraining to %.0f %% of a trial's budget", 100 * end)
        run_training(run, resources=worker_resources(plan.num_concurrent * config.train.num_workers))


def _fit(plan: SweepPlan, parent_run_id: str) -> list[tune.Result]:
    base, config, search = plan.base, plan.config, plan.search
    num_workers = config.train.num_workers
    resources = worker_resources(plan.num_concurrent * num_workers)
    trainable = tune.with_parameters(_trial, plan=plan, parent_run_id=parent_run_id, resources=resources)
    folder = join_uri(base.storage, "ray", plan.mode)
    if plan.mode == "pbt":
        return run_trials(
            trainable,
            population(plan),
            folder=folder,
            resources=resources.resources(),
            num_trials=plan.num_trials,
            space=member_domains(plan),
            num_kept=num_kept(config.train.num_validations),
        )
    objective: dict[str, Any] = {"metric": "objective", "mode": "max"}
    rules: dict[str, Any] = {**objective, "scheduler": PercentASHA(search.grace_percent(config))}
    if plan.mode == "pareto":
        # Tune's schedulers compare trials by one metric alone.
        objectives = search.objectives(config)
        objective = {
            "metric": [one.reported for one in objectives],
            "mode": ["max" if one.maximize else "min" for one in objectives],
        }
        rules = {}
    return run_trials(
        trainable,
        tune.TuneConfig(
            num_samples=plan.num_trials,
            max_concurrent_trials=plan.num_concurrent,
            search_alg=OptunaSearch(
                space=plan.space,
                points_to_evaluate=plan.first_points,
                study_name=base.run_name,
                seed=config.train.seed,
                **objective,
            ),
            **rules,
        ),
        folder=folder,
        resources={"CPU": 0.01} if num_workers > 1 else resources.resources(),
        num_trials=plan.num_trials,
    )


def _trial(point: dict[str, Any], *, plan: SweepPlan, parent_run_id: str, resources: WorkerResources) -> None:
    log_to_stderr(shown=False)
    trial_id = tune.get_context().get_trial_id()
    search = plan.search
    last: dict[str, Any] = {"percent": 0}

    def to_report(metrics: Mapping[str, float]) -> dict[str, Any]:
        last.update(search.to_report({**static, **metrics}, config))
        return dict(last)

    try:
        trial = plan.trial(trial_id, point, parent_run_id)
        config = trial.config
        static = search.static_metrics(config)
        train = train_member if plan.mode == "pbt" else train_trial
        train(trial, resources, to_report)
    except GliorayError as error:
        _log.warning("trial %s ends at %g: %s", trial_id, search.worst, error)
        worst = {one.reported: one.worst for one in search.objectives(plan.config)}
        tune.report({**last, **worst, "objective": search.worst, "reason": str(error)})
