"""A search for super-resolution GANs that knows collapse: it is stopped where it begins, and never wins.

One generator is trained by its pixels first, and trials begin with what it was at some share of their budget. Optuna
proposes, the collapse watch of a trial ends it, ASHA stops what is healthy and lags behind, MLflow keeps the reasons.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ray import tune
from ray.tune.search.optuna import OptunaSearch

from glioray.config import with_settings
from glioray.engine.on_mlflow.parent import parent_run
from glioray.engine.on_mlflow.runs import RunLogger
from glioray.engine.on_ray.connect import WorkerResources, log_to_stderr, worker_resources
from glioray.engine.on_ray.train import RESULT_FILE, run_training
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
from glioray.storage import join_uri, open_storage
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.population import (
    last_storage,
    member_config,
    member_points,
    member_space,
    num_kept,
    population,
    train_member,
)
from glioray.tasks.superres.search_figures import pareto_figure, pareto_front, rates_figure
from glioray.tasks.superres.space import (
    SHARE,
    SHARES,
    apply_gan_point,
    first_points,
    gan_space,
    pretraining,
    recipe_point,
)
from glioray.tasks.superres.trials import (
    FIGURES,
    WORST,
    failed_metrics,
    gan_row,
    importances,
    is_healthy,
    population_text,
    rates_rows,
    stopping_summary,
    summary_text,
    told_metrics,
)

_log = logging.getLogger(__name__)

MODES = ("search", "pareto", "pbt")
"""One objective, with ASHA; two, quality against PSNR gain; or a population whose members take over from others."""

_KEPT = (
    *("train_", "collapse_", "bicubic_", "dice_", "psnr", "ssim", "nrmse", "hfen", "lpips", "hf_db"),
    *("gain_psnr", "quality", "objective", "is_collapsed", "stage"),
)


@dataclass(frozen=True, kw_only=True)
class GanSweepPlan:
    """A search around `base`, whose storage, run name and MLflow kind are the sweep's.

    Attributes:
        base: the plan whose config the trials vary.
        num_trials: in all.
        num_concurrent: at once.
        model_name: under which the winner is registered.
        mode: of `MODES`.
        points: that are tried first, after the recipe's own: what of it they replace.
    """

    base: RunPlan
    num_trials: int
    num_concurrent: int
    model_name: str
    mode: str = "search"
    points: tuple[dict[str, Any], ...] = ()

    @property
    def config(self) -> GanConfig:
        """That of a trial by the recipe: with `minutes`, its own part of those of the search."""
        config: GanConfig = self.base.config
        if self.mode == "pbt":
            return member_config(config)
        minutes = config.train.minutes
        if minutes is None:
            return config
        # The pretraining comes first, alone, and takes as long as the largest share of one trial. The last round of
        # trials takes as long as any other, however few are left for it.
        rounds = math.ceil(self.num_trials / self.num_concurrent) + max(self.shares, default=0)
        return with_settings(config, {"train.minutes": minutes / rounds})

    @property
    def shares(self) -> tuple[float, ...]:
        """Of a trial's budget, that one generator is trained for by its pixels, for all trials to begin with.

        None where a generator is named; that of the recipe alone where members have it alike.
        """
        config: GanConfig = self.base.config
        own = recipe_point(config).get(SHARE)
        if own is None:
            return ()
        return tuple(share for share in ((own,) if self.mode == "pbt" else SHARES) if share)

    def source(self, share: float) -> str:
        """The URI of the generator that was trained for a share of a trial's budget."""
        return join_uri(self.base.storage, "pretrain", f"{round(100 * share)}-percent")


def check_search(config: GanConfig, mode: str, points: Sequence[dict[str, Any]], num_trials: int) -> None:
    """Check what a search is asked for before anything is trained.

    Raises:
        UsageError: a point that is not one of the space or for which there is no trial, or a population's budget or
            points that members cannot have.
    """
    first_points(config, points, num_trials)
    if mode == "pbt":
        member_config(config)
        member_points(config, points, num_trials)


def run_gan_sweep(plan: GanSweepPlan) -> dict[str, Any]:
    """Search, or go on searching, and register the best healthy trial's model as it is (picked, not retrained).

    Returns: `run_id` of the sweep, `model` (the registered version), `metrics` of the winner, `winner`, `collapse`
    (`stopping_summary`), `trials` (a row each, best first) and, in the mode "pareto", `front` (trials by PSNR gain).

    Raises:
        DataError: there is no validation case to judge collapse by.
        UsageError: as `check_search`.
        TrainingError: no trial is healthy.
    """
    base, config = plan.base, plan.config
    if not base.manifest.select("val"):
        raise DataError(
            "a search judges collapse on validation cases and the split has none; choose another --fold"
        )
    check_search(config, plan.mode, plan.points, plan.num_trials)
    with parent_run(base, "sweep", num_trials=plan.num_trials, mode=plan.mode) as logger:
        _pretrain(plan, logger.run_id)
        found = _fit(plan, logger.run_id)
        rows = rank_rows([gan_row(trial_row(result, worst=WORST, kept=_KEPT)) for result in found])
        summary = stopping_summary(rows)
        _log_rows(logger, plan, rows, summary)
        end_stopped(rows, lambda row: _trial_plan(plan, row["trial"], row["settings"], logger.run_id))
        front = _front(rows, config) if plan.mode == "pareto" else []
        best = next((row for row in rows if not front or row["trial"] in front), rows[0])
        if not is_healthy(best["objective"], config.collapse):
            raise TrainingError(
                f"none of the {len(rows)} trials is healthy; the best said: {best['reason'] or 'collapsed'}"
            )
        winner = _trial_plan(plan, best["trial"], best["settings"], logger.run_id)
        if plan.mode == "pbt":
            winner = dataclasses.replace(winner, storage=last_storage(winner.storage))
        judged = {name: f"{best['metrics'][name]:.4f}" for name in ("quality", "gain_psnr", "collapse_score")}
        model, run_id = register_winner(
            plan.model_name, winner, {"sweep": base.run_name, **judged}, purpose=plan.base.task.purpose
        )
        logger.log_metrics({"objective": best["objective"]}, step=0)
        logger.set_tags(
            {"glioray.winner": best["trial"], "glioray.model": model, "glioray.winner_run": run_id}
        )
        _log.info("winner: trial %s (picked, not retrained), registered as %s", best["trial"], model)
    result = {
        "run_id": logger.run_id,
        "model": model,
        "metrics": best["metrics"],
        "winner": {"trial": best["trial"], "run_id": run_id, "settings": best["settings"]},
        "collapse": summary,
        "trials": [{key: value for key, value in row.items() if key != "metrics"} for row in rows],
    }
    return result | ({"front": front} if plan.mode == "pareto" else {})


def _log_rows(
    logger: RunLogger, plan: GanSweepPlan, rows: list[dict[str, Any]], summary: Mapping[str, Any]
) -> None:
    threshold = plan.config.collapse.threshold
    is_population = plan.mode == "pbt"
    text = population_text(summary) if is_population else summary_text(summary)
    table = f"{text}\n{trials_table(rows, FIGURES)}"
    # What a member ended with is not what made it what it is.
    weights = {} if is_population else importances(rows, gan_space(plan.config))
    if weights:
        table += f"\nWhat tells most of the objective: {', '.join(f'{k} {v:.2f}' for k, v in list(weights.items())[:5])}.\n"
    logger.log_json(rows, "trials.json")
    logger.log_json({**summary, "importances": weights}, "summary.json")
    logger.log_text(table, "trials.md")
    logger.log_figure(trials_figure(plotted_rows(rows, "optim_g.lr")), "trials.png")
    logger.log_figure(rates_figure(rates_rows(rows), threshold=threshold), "rates.png")
    if plan.mode == "pareto":
        logger.log_figure(pareto_figure(rates_rows(rows), threshold=threshold), "pareto.png")
    logger.log_metrics({k: float(v) for k, v in summary.items() if not isinstance(v, list)}, step=0)
    _log.info("\n%s", table)


def _front(rows: list[dict[str, Any]], config: GanConfig) -> list[str]:
    healthy = [row for row in rows if is_healthy(row["objective"], config.collapse)]
    return pareto_front({row["trial"]: (row["gain_psnr"], row["quality"]) for row in healthy})


def _pretrain(plan: GanSweepPlan, parent_run_id: str) -> None:
    """Train the generator that all trials begin with, to each share of their budget, on as much as one of them has."""
    config = plan.config
    share = worker_resources(plan.num_concurrent * config.train.num_workers)
    for begin, end in pairwise((0.0, *plan.shares)):
        uri = plan.source(end)
        if open_storage(uri).exists(RESULT_FILE):
            continue
        source = plan.source(begin) if begin else None
        run = dataclasses.replace(
            plan.base,
            config=pretraining(config, begin, end, source),
            storage=uri,
            run_name=f"{plan.base.run_name}/pretrain-{round(100 * end)}",
            kind="train",
            parent_run_id=parent_run_id,
            log_model=False,
        )
        _log.info("pretraining to %.0f %% of a trial's budget", 100 * end)
        run_training(run, resources=share)


def _fit(plan: GanSweepPlan, parent_run_id: str) -> list[tune.Result]:
    base, config = plan.base, plan.config
    num_workers = config.train.num_workers
    share = worker_resources(plan.num_concurrent * num_workers)
    trainable = tune.with_parameters(_trial, plan=plan, parent_run_id=parent_run_id, share=share)
    folder = join_uri(base.storage, "ray", plan.mode)
    if plan.mode == "pbt":
        rule, space = population(config, plan.num_trials, plan.points), member_space(config)
        return run_trials(
            trainable,
            rule,
            folder=folder,
            resources=share.resources(),
            space=space,
            num_kept=num_kept(config),
        )
    objective: dict[str, Any] = {"metric": "objective", "mode": "max"}
    rules: dict[str, Any] = {**objective, "scheduler": _asha(config)}
    if plan.mode == "pareto":
        # With two of them, Tune's own schedulers have nothing to compare trials by; their watch still ends them.
        objective = {"metric": ["quality_or_penalty", "gain_or_penalty"], "mode": ["max", "max"]}
        rules = {}
    return run_trials(
        trainable,
        tune.TuneConfig(
            num_samples=plan.num_trials,
            max_concurrent_trials=plan.num_concurrent,
            search_alg=OptunaSearch(
                space=gan_space(config),
                points_to_evaluate=first_points(config, plan.points, plan.num_trials),
                study_name=base.run_name,
                seed=config.train.seed,
                **objective,
            ),
            **rules,
        ),
        folder=folder,
        resources={"CPU": 0.01} if num_workers > 1 else share.resources(),
    )


def _asha(config: GanConfig) -> PercentASHA:
    """Stops what lags behind, and not before the watch can have told whether it has collapsed.

    Until then a trial's objective is its quality, and ASHA would compare what has collapsed with what has not; or it
    would stop it for its rank, and nobody would learn that it had collapsed.
    """
    rules = config.collapse
    verdict = 100 * (rules.grace + rules.patience) // config.train.num_validations + 1
    return PercentASHA(min(100, max(30, verdict)))


def _trial(point: dict[str, Any], *, plan: GanSweepPlan, parent_run_id: str, share: WorkerResources) -> None:
    log_to_stderr()
    trial_id = tune.get_context().get_trial_id()
    rules = plan.config.collapse
    last: dict[str, Any] = {}

    def told(metrics: dict[str, float]) -> dict[str, Any]:
        last.update(told_metrics(metrics, rules))
        return dict(last)

    try:
        train = train_member if plan.mode == "pbt" else train_trial
        train(_trial_plan(plan, trial_id, point, parent_run_id), share, told)
    except GliorayError as error:
        _log.warning("trial %s ends at %g: %s", trial_id, WORST, error)
        tune.report(failed_metrics(last, str(error), rules))


def _trial_plan(plan: GanSweepPlan, trial_id: str, point: dict[str, Any], parent_run_id: str) -> RunPlan:
    sources = {share: plan.source(share) for share in plan.shares}
    return dataclasses.replace(
        plan.base,
        config=apply_gan_point(plan.config, point, sources),
        storage=trial_storage(plan.base, trial_id),
        run_name=f"{plan.base.run_name}/{trial_id}",
        kind="trial",
        parent_run_id=parent_run_id,
    )
