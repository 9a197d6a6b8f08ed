"""Collapsed and dead generators in the trials of a search for super-resolution GANs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glioray.engine.trials import start_order
from glioray.tasks.superres.collapse import describe_evaluation, fault_word
from glioray.tasks.superres.config import COLLAPSE_COMPONENTS, CollapseConfig, GanConfig
from glioray.tasks.superres.space import RATIO

WORST = -2.0
"""The objective of a trial that crashed or diverged: no collapsed one has less."""


def is_healthy(objective: float, rules: CollapseConfig) -> bool:
    """Whether an objective is that of a run that was healthy in its last evaluations."""
    return objective > -1 - rules.threshold


def fault(metrics: Mapping[str, Any]) -> str:
    """The reason for a run's bad objective: component and score of its last evaluation.

    If an earlier one of the last evaluations was worse, which the objective remembers, the score of that.
    """
    score, worst = float(metrics["collapse_score"]), -1 - float(metrics["objective"])
    if score >= worst - 1e-6:
        return describe_evaluation(metrics)
    return f"a score of {worst:.2f} in one of its last evaluations"


def refine_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `engine.trials.build_row`, with the states "collapsed" and "dead" and the reasons of bad objectives."""
    metrics, refined = row["metrics"], dict(row)
    if "collapse_reason" not in metrics:
        return refined
    if metrics["is_collapsed"] and row["state"] != "failed":
        state = fault_word(COLLAPSE_COMPONENTS[int(metrics["collapse_reason"])])
        refined["state"] = state
        refined["reason"] = f"{state}: {fault(metrics)} at epoch {metrics['epoch']:.0f}"
    elif row["state"] == "pruned" and metrics["objective"] < -1:
        # One bad evaluation makes a trial the last of its rung, before `patience` bad ones make it collapsed.
        refined["reason"] += f", at its first bad evaluation: {fault(metrics)}"
    elif row["state"] == "complete" and metrics["objective"] < -1:
        refined["reason"] = f"bad in its last evaluations, too late to be stopped: {fault(metrics)}"
    return refined


def rates_rows(rows: Sequence[Mapping[str, Any]], config: GanConfig) -> list[dict[str, Any]]:
    """The rows as `search_figures.rates_figure` takes them, in the order in which trials started.

    Args:
        rows: of `refine_row`.
        config: whose rates trials have where those are not searched.
    """
    return [
        {
            "trial": number,
            **_rates(row["settings"], config),
            "state": row["state"],
            "score": _worst_score(row),
            "objective": row["objective"] if row["state"] != "failed" else None,
            "reason": row["reason"],
        }
        for number, row in enumerate(start_order(rows))
    ]


def _rates(settings: Mapping[str, Any], config: GanConfig) -> dict[str, float]:
    generator = settings.get("optim_g.lr", config.optim_g.lr)
    if RATIO in settings:
        return {"lr_g": generator, "lr_d": generator * settings[RATIO]}
    return {"lr_g": generator, "lr_d": settings.get("optim_d.lr", config.optim_d.lr)}


def _worst_score(row: Mapping[str, Any]) -> float | None:
    """The score behind the objective, which may be worse than that of the last evaluation; None without one."""
    score: float | None = row.get("collapse_score")
    if score is None or row["state"] == "failed" or row["objective"] >= -1:
        return score
    return max(score, min(1.0, -1 - row["objective"]))
