"""A sweep: Optuna proposes, ASHA stops, Ray Tune runs, MLflow keeps; of any task.

The same command resumes a sweep that was interrupted, and adds trials to it where it asks for more than there are. A
trial of one worker trains in its own Tune process; a trial of several hands its plan to Ray Train.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import optuna
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from glioray.engine.descriptions import describe_sweep
from glioray.engine.on_mlflow.parent import parent_run
from glioray.engine.on_mlflow.runs import RunLogger
from glioray.engine.on_mlflow.trials import end_stopped, register_winner
from glioray.engine.on_ray.agreement import agree_on_precision
from glioray.engine.on_ray.away import outlast
from glioray.engine.on_ray.faults import judge
from glioray.engine.on_ray.placement import place_data
from glioray.engine.on_ray.population import last_storage, member_domains, num_kept, population, train_member
from glioray.engine.on_ray.resources import WorkerResources, worker_resources
from glioray.engine.on_ray.train import RESULT_FILE, run_training
from glioray.engine.on_ray.trials import PercentASHA, reports, run_trials, train_trial
from glioray.engine.run import CONFIG_FILE, LEFT_OUT_TAG
from glioray.engine.search import Row, Search, SweepPlan, check_sweep
from glioray.engine.space import Space, format_space, freeze_value
from glioray.engine.trials import (
    build_row,
    choose_setting,
    format_table,
    importances,
    number_rows,
    pareto_rows,
    rank_rows,
)
from glioray.errors import TrainingError, UsageError
from glioray.progress import IN_LOG, log_to_stderr
from glioray.reports.pareto import pareto_figure, pareto_front
from glioray.reports.trials import trials_figure
from glioray.storage import join_uri, open_storage

_log = logging.getLogger(__name__)

SPACE_FILE = "space.json"


def run_sweep(plan: SweepPlan) -> dict[str, Any]:
    """Search, or resume the search of that run name, and register the best trial's model (it is not retrained).

    A search with fewer trials than the plan's gets further ones, as long as the earlier ones and proposed from their
    results; one with more keeps them.

    Returns: `run_id` of the sweep, `run_url` and `table_url` (its page in MLflow, and the table of its trials by the
        objective; None where no server shows them), `model` (the registered version), `metrics` of the winner, `winner` ("trial",
        "run_id", "settings"), the summary under the task's `Search.summary_key`, `trials` (a row each, best first) and,
        in the mode "pareto", `front` (trials by the second objective).

    Raises:
        DataError: there is nothing to compare trials by, or too many cases can no longer be decoded.
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
    return outlast(lambda: _run_sweep(_resume(plan), space))


def _run_sweep(plan: SweepPlan, space: Space) -> dict[str, Any]:
    base, search = plan.base, plan.search
    facts = {"num_trials": plan.num_trials, "mode": plan.mode, "space": json.dumps(format_space(space))}
    with parent_run(base, "sweep", **facts) as logger:
        _keep_facts(plan)
        agree = agree_on_precision(base.storage, [plan.config])
        plan = dataclasses.replace(plan, base=dataclasses.replace(base, agree=agree))
        # Trials with another preprocessing, which only some of a space have, fill the caches themselves.
        first = [plan.trial("first", point, logger.run_id) for point in plan.first_points]
        left_out = place_data(first, everywhere=base.config.train.num_workers == 1)
        logger.set_tags({LEFT_OUT_TAG: left_out or "none"})
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


def _budget(plan: SweepPlan) -> dict[str, Any]:
    """What a search's trials have alike, by which they compare, and their number."""
    train = plan.config.train
    return {"num_trials": plan.num_trials, "max_epochs": train.max_epochs, "minutes": train.minutes}


def _keep_facts(plan: SweepPlan) -> None:
    """Write what a later command of the search's name must repeat, and the budgets of each mode."""
    storage = open_storage(plan.base.storage)
    kept = json.loads(storage.read(SPACE_FILE)) if storage.exists(SPACE_FILE) else {}
    budgets = {**kept.get("budgets", {}), plan.mode: _budget(plan)}
    storage.write(SPACE_FILE, json.dumps({**_identity(plan), "budgets": budgets}).encode())


def _resume(plan: SweepPlan) -> SweepPlan:
    """The plan, with what an earlier command of the search's name has decided: its trials, and the minutes of each.

    Raises:
        UsageError: that search has other entries, of which Tune would keep the old ones, trials of another objective
            or of another length, or is a population of fewer members.
    """
    storage = open_storage(plan.base.storage)
    if not storage.exists(CONFIG_FILE) or not any(storage.list("ray/")):
        return plan
    name, now = plan.base.run_name, _identity(plan)
    kept = json.loads(storage.read(SPACE_FILE)) if storage.exists(SPACE_FILE) else {}
    budget = kept.pop("budgets", {}).get(plan.mode)
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
    return plan if budget is None else _with_budget(plan, budget)


def _with_budget(plan: SweepPlan, kept: Mapping[str, Any]) -> SweepPlan:
    """The plan with the minutes, and at least the number, of the trials that its search has.

    Args:
        plan: of the command.
        kept: of `_budget`, as an earlier command left it.
    """
    name, now = plan.base.run_name, _budget(plan)
    if (now["max_epochs"], now["minutes"] is None) != (kept["max_epochs"], kept["minutes"] is None):
        minutes = "no limit in minutes" if kept["minutes"] is None else f"{kept['minutes']:.3g} minutes each"
        raise UsageError(
            f"the trials of the search '{name}' have up to {kept['max_epochs']} epochs and {minutes}, and trials of "
            "another length do not compare with them; repeat its --max-epochs and --minutes, or choose another "
            "--run-name"
        )
    before, num_trials = kept["num_trials"], plan.num_trials
    if plan.mode == "pbt" and num_trials > before:
        raise UsageError(
            f"the search '{name}' is a population of {before} members, which cannot grow: one that joins now would be "
            f"compared with members that have finished; repeat --trials {before}, or choose another --run-name"
        )
    if num_trials < before:
        _log.warning(
            "the search '%s' has %d trials and keeps them; --trials %d takes none away",
            name,
            before,
            num_trials,
        )
    if now["minutes"] != kept["minutes"]:
        _log.info("each trial has %.3g minutes, as long as the earlier ones", kept["minutes"])
    return dataclasses.replace(plan, num_trials=max(num_trials, before), trial_minutes=kept["minutes"])


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
        num_workers = plan.num_concurrent * config.train.num_workers
        run_training(run, resources=worker_resources(num_workers, plan.base.workers))


def _fit(plan: SweepPlan, parent_run_id: str) -> list[tune.Result]:
    base, config, search = plan.base, plan.config, plan.search
    num_workers = config.train.num_workers
    resources = worker_resources(plan.num_concurrent * num_workers, base.workers)
    trainable = tune.with_parameters(_trial, plan=plan, parent_run_id=parent_run_id, resources=resources)
    folder = join_uri(base.storage, "ray", plan.mode)
    if plan.mode == "pbt":
        return run_trials(
            trainable,
            lambda earlier, num_trials: None if earlier else population(plan),
            folder=folder,
            resources=resources.resources(),
            num_trials=plan.num_trials,
            space=member_domains(plan),
            num_kept=num_kept(config.train.num_validations),
        )

    def configure(earlier: Sequence[tune.Result], num_further: int) -> tune.TuneConfig:
        # Tune's schedulers compare trials by one metric alone.
        rules: dict[str, Any] = {}
        if plan.mode != "pareto":
            asha = PercentASHA(search.grace_percent(config), reports(earlier), task=base.task.name)
            rules = {"metric": "objective", "mode": "max", "scheduler": asha}
        return tune.TuneConfig(
            max_concurrent_trials=plan.num_concurrent,
            search_alg=_proposals(plan, earlier, num_further),
            **rules,
        )

    return run_trials(
        trainable,
        configure,
        folder=folder,
        resources={"CPU": 0.01} if num_workers > 1 else resources.resources(),
        num_trials=plan.num_trials,
    )


def _proposals(plan: SweepPlan, earlier: Sequence[tune.Result], num_further: int) -> OptunaSearch:
    """Optuna's proposals of further trials: the first points that have not been tried, then what the earlier results
    suggest.

    Raises:
        UsageError: an earlier trial is not in the space.
    """
    config = plan.config
    metrics, modes = ["objective"], ["max"]
    if plan.mode == "pareto":
        objectives = plan.search.objectives(config)
        metrics = [one.reported for one in objectives]
        modes = ["max" if one.maximize else "min" for one in objectives]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Tune's `evaluated_rewards` takes one objective alone, and then no further points to try.
    storage, name = optuna.storages.InMemoryStorage(), plan.base.run_name
    directions: list[Any] = ["maximize" if mode == "max" else "minimize" for mode in modes]
    study = optuna.create_study(storage=storage, study_name=name, directions=directions)
    tried = [
        {name: freeze_value(value) for name, value in (result.config or {}).items()} for result in earlier
    ]
    for point, result in zip(tried, earlier, strict=True):
        values: list[Any] = [(result.metrics or {}).get(metric) for metric in metrics]
        # As Tune itself does: a trial that crashed says nothing, one that was stopped counts by its last report.
        if result.error is None and None not in values:
            try:
                study.add_trial(
                    optuna.trial.create_trial(params=point, distributions=plan.space, values=values)
                )
            except ValueError as error:
                raise UsageError(
                    f"the search '{name}' has a trial outside its space ({error}), as of another version of glioray; "
                    "choose another --run-name"
                ) from error
    points = [point for point in plan.first_points if point not in tried]
    if len(points) > num_further:
        _log.warning("%d of the points are not tried; ask for more --trials", len(points) - num_further)
    is_front = plan.mode == "pareto"
    return OptunaSearch(
        space=plan.space,
        points_to_evaluate=points,
        study_name=name,
        storage=storage,
        metric=metrics if is_front else metrics[0],
        mode=modes if is_front else modes[0],
        # Of the first trials the sampler draws at random: the same seed would draw the earlier ones again.
        seed=config.train.seed + len(earlier),
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
    except Exception as error:
        verdict = judge(error)
        # A node that dies, no room, a store that is away or full: Tune starts the trial once more, and then counts it as lost.
        if not verdict.by_settings:
            raise
        # Of an error that is none of ours, where it came from.
        show = error if type(verdict.error) is TrainingError else None
        _log.warning("trial %s ends at %g: %s", trial_id, search.worst, verdict.error, exc_info=show)
        worst = {one.reported: one.worst for one in search.objectives(plan.config)}
        tune.report({**last, **worst, "objective": search.worst, "reason": str(verdict.error)})
