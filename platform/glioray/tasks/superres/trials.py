"""What the trials of a search for super-resolution GANs are worth, and what it saved to stop some of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from glioray.tasks.superres.config import COLLAPSE_COMPONENTS, CollapseConfig
from glioray.tasks.superres.space import RATIO

WORST = -2.0
"""What a trial that crashed or diverged is worth: no collapsed one is worth less. Finite, since Optuna never ends a
trial of NaN."""

FIGURES = ("percent", "quality", "gain_psnr", "collapse_score")
"""What the table of trials shows beside the objective."""

_MIN_TRIALS = 8


def is_healthy(objective: float, rules: CollapseConfig) -> bool:
    """Whether an objective is one of a trial that was healthy lately."""
    return objective > -1 - rules.threshold


def told_metrics(metrics: Mapping[str, float], rules: CollapseConfig) -> dict[str, Any]:
    """What a trial tells Tune of a validation: `percent` of its run, two objectives for a front, and everything else.

    The two are quality and PSNR gain over bicubic; a collapsed trial has less of both than any healthy one: of the
    gain, more lost than what counts as collapse by itself.
    """
    objective, score = metrics["objective"], metrics["collapse_score"]
    if not math.isfinite(objective):
        objective = WORST
    healthy = is_healthy(objective, rules)
    return {
        **metrics,
        "objective": objective,
        "quality_or_penalty": metrics["quality"] if healthy else objective,
        "gain_or_penalty": metrics["gain_psnr"] if healthy else -rules.fidelity[1] * (1 + score),
        "percent": int(100 * metrics["progress"]),
    }


def failed_metrics(last: Mapping[str, Any], reason: str, rules: CollapseConfig) -> dict[str, Any]:
    """What a trial that cannot go on tells Tune in the end.

    Args:
        last: what it told before; empty where that was nothing.
        reason: why it ends.
        rules: of collapse.
    """
    worst = {"objective": WORST, "quality_or_penalty": WORST, "gain_or_penalty": -2 * rules.fidelity[1]}
    return {"percent": 0, **last, **worst, "reason": reason}


def fault(metrics: Mapping[str, Any]) -> str:
    """What is wrong with a run that is bad by its objective: component and score of its last evaluation.

    Where that was a better one than another among the last, which the objective remembers, the score of that.
    """
    score, worst = float(metrics["collapse_score"]), -1 - float(metrics["objective"])
    if score >= worst - 1e-6:
        return f"{COLLAPSE_COMPONENTS[int(metrics['collapse_reason'])]} {score:.2f}"
    return f"a score of {worst:.2f} in one of its last evaluations"


def gan_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `trials.trial_row`, with the state "collapsed", its reason, and the figures that judge it."""
    metrics, told = row["metrics"], dict(row)
    if "collapse_reason" in metrics:
        if metrics["is_collapsed"] and told["state"] != "failed":
            told["state"] = "collapsed"
            told["reason"] = f"collapsed: {fault(metrics)} at epoch {metrics['epoch']:.0f}"
        elif told["state"] == "pruned" and metrics["objective"] < -1:
            # One bad evaluation makes a trial the last of its rung, before patience would have called it collapsed.
            told["reason"] += f", at its first bad evaluation: {fault(metrics)}"
        elif told["state"] == "complete" and metrics["objective"] < -1:
            told["reason"] = f"bad in its last evaluations, too late to be stopped: {fault(metrics)}"
    told |= {name: metrics[name] for name in ("quality", "gain_psnr", "collapse_score") if name in metrics}
    if metrics.get("progress"):
        told["num_steps"] = int(metrics["step"])
        told["planned_steps"] = round(metrics["step"] / metrics["progress"])
    return told


def rates_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows as `tracking.gan_search_figures` wants them, in the order in which trials began."""
    return [
        {
            "trial": number,
            "lr_g": row["settings"]["optim_g.lr"],
            "lr_d": row["settings"]["optim_g.lr"] * row["settings"][RATIO],
            "state": row["state"],
            "score": _worst_score(row),
            "objective": row["objective"] if row["state"] != "failed" else None,
            "reason": row["reason"],
            "quality": row.get("quality") if row["state"] != "failed" else None,
            "gain_psnr": row.get("gain_psnr") if row["state"] != "failed" else None,
        }
        for number, row in enumerate(sorted(rows, key=lambda row: row["trial"]))
    ]


def _worst_score(row: Mapping[str, Any]) -> float | None:
    """The score that an objective was made of, which of late may have been worse than the last; None without one."""
    score: float | None = row.get("collapse_score")
    if score is None or row["state"] == "failed" or row["objective"] >= -1:
        return score
    return max(score, min(1.0, -1 - row["objective"]))


def stopping_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many trials collapsed, how early they were stopped, and the share of all planned steps that this saved.

    Steps are the adversarial ones of trials. `saved_by_collapse` and `saved_by_asha` are what trials that were stopped
    for the one and the other would still have run; a trial that failed would not have, stopped or not.

    Args:
        rows: of `gan_row`.
    """
    planned = sum(row.get("planned_steps", 0) for row in rows if row["state"] != "failed")
    planned += sum(row.get("num_steps", 0) for row in rows if row["state"] == "failed")

    def saved(state: str) -> float:
        found = [row for row in rows if row["state"] == state and "planned_steps" in row]
        left = sum(row["planned_steps"] - row["num_steps"] for row in found)
        return left / planned if planned else 0.0

    stopped = sorted(row["percent"] for row in rows if row["state"] == "collapsed")
    states = [row["state"] for row in rows]
    return {
        "num_trials": len(rows),
        **{f"num_{state}": states.count(state) for state in ("complete", "collapsed", "pruned", "failed")},
        "stopped_at_percent": stopped,
        "num_steps": sum(row.get("num_steps", 0) for row in rows),
        "planned_steps": planned,
        "saved_by_collapse": saved("collapsed"),
        "saved_by_asha": saved("pruned"),
    }


def summary_text(summary: Mapping[str, Any]) -> str:
    """The summary in sentences, as Markdown."""
    stopped = summary["stopped_at_percent"]
    when = ""
    if stopped:
        when = f", stopped at {stopped[0]} % to {stopped[-1]} % of their run" if len(stopped) > 1 else f", stopped at {stopped[0]} % of its run"  # fmt: skip
    return (
        f"{summary['num_collapsed']} of {summary['num_trials']} trials collapsed{when}; {summary['num_failed']} failed, "
        f"{summary['num_pruned']} were pruned by ASHA. Of {summary['planned_steps']} steps planned, "
        f"{summary['saved_by_collapse']:.0%} were saved by stopping what had collapsed and "
        f"{summary['saved_by_asha']:.0%} by ASHA.\n"
    )


def population_text(summary: Mapping[str, Any]) -> str:
    """The summary of a population in sentences, as Markdown: nothing is stopped in it."""
    return (
        f"{summary['num_complete']} of {summary['num_trials']} members ended healthy, {summary['num_collapsed']} collapsed "
        f"and {summary['num_failed']} failed. What lagged or had collapsed went on from a better member, and the settings "
        "are those that each ended with.\n"
    )


def importances(rows: Sequence[Mapping[str, Any]], space: Mapping[str, BaseDistribution]) -> dict[str, float]:
    """How much each setting tells of the objective, adding up to 1, the largest first; empty for few trials.

    What the best of the trials have in common against all of them, so that it takes more than a handful and says
    nothing of settings that matter together alone.

    Reference: Watanabe et al. 2023, PED-ANOVA (arXiv 2304.10255).
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for row in rows:
        if set(row["settings"]) == set(space):
            trial = optuna.trial.create_trial(
                params=dict(row["settings"]), distributions=dict(space), value=row["objective"]
            )
            study.add_trial(trial)
    if len(study.trials) < _MIN_TRIALS:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {name: float(value) for name, value in found.items()}
