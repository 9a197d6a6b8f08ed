"""The trials of a sweep as rows: their states, their order, their table, and the settings that matter."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from glioray.engine.search import Objective, Row, Search
from glioray.engine.space import freeze_value

_PROGRESS_METRICS = ("epoch", "step", "num_slices", "slices_per_s", "minutes", "progress")
_MIN_TRIALS = 8


def build_row(result: Any, search: Search) -> Row:
    """Describe a trial: "trial", "objective", "state", "reason", "percent", "settings", "metrics" and more.

    "state" is "failed" (it crashed, or reported a `reason`), "pruned" (it did not reach 100 `percent`), "complete", or
    one of the task's. The metrics of `search.columns` are keys of their own; of a trial that got as far as a
    validation, "num_steps" and "planned_steps" are too. "began_s" is the Unix time at which it started, as far as it
    reported anything.

    Args:
        result: `tune.Result` of the trial.
        search: of its task.
    """
    metrics = result.metrics or {}
    percent = metrics.get("percent", 0)
    reason = metrics.get("reason", "")
    if result.error is not None:
        reason = str(result.error).strip().splitlines()[-1]
    is_failed = result.error is not None or bool(reason)
    state = "failed" if is_failed else "complete" if percent >= 100 else "pruned"
    if state == "pruned":
        reason = f"stopped by ASHA at {percent} % of its run"
    kept = (*search.kept_metrics, *_PROGRESS_METRICS)
    row = {
        "trial": metrics.get("trial_id") or Path(result.path).name,
        "objective": search.worst if is_failed else metrics.get("objective", search.worst),
        "state": state,
        "reason": reason,
        "percent": percent,
        "began_s": metrics.get("timestamp", 0) - metrics.get("time_total_s", 0.0),
        # Tune restores tuples as lists.
        "settings": {name: freeze_value(value) for name, value in result.config.items()},
        "metrics": {name: value for name, value in metrics.items() if name.startswith(kept)},
    }
    row |= {name: metrics[name] for name in search.columns if name in metrics}
    if metrics.get("progress"):
        row["num_steps"] = int(metrics["step"])
        row["planned_steps"] = round(metrics["step"] / metrics["progress"])
    return search.refine_row(row)


def rank_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows, best first, each with its "rank"; among equal objectives, failed trials come last."""
    ordered = sorted(rows, key=lambda row: (-row["objective"], row["state"] == "failed"))
    return [{"rank": number, **row} for number, row in enumerate(ordered, start=1)]


def start_order(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows in the order in which their trials started, over all commands that added some."""
    return sorted(rows, key=lambda row: (row["began_s"], row["trial"]))


def format_table(rows: Sequence[Row], columns: Sequence[str] = ()) -> str:
    """The trials as a Markdown table, in the order given.

    Args:
        rows: of `rank_rows`.
        columns: keys to show beside the objective; a row may lack them.
    """
    names = sorted({name for row in rows for name in row["settings"]})
    short = [name.rpartition(".")[2] for name in names]
    # Settings of two parts of a config may end alike.
    heads = [name if short.count(last) > 1 else last for name, last in zip(names, short, strict=True)]
    lines = [["rank", "trial", "objective", "state", *columns, *heads, "reason"]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        cells = [row[name] for name in ("rank", "trial", "objective", "state")]
        cells += [row.get(name, "") for name in columns]
        cells += [row["settings"].get(name, "") for name in names]
        lines.append([_format_cell(cell) for cell in [*cells, row["reason"]]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _format_cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def choose_setting(space: Mapping[str, BaseDistribution], rate: str) -> tuple[str, bool]:
    """The setting to draw objectives by, and whether on a logarithmic axis: the learning rate, or else any number.

    Args:
        space: what was searched.
        rate: the setting that is the learning rate.
    """
    numbers = [name for name, values in space.items() if not isinstance(values, CategoricalDistribution)]
    name = rate if rate in numbers or not numbers else numbers[0]
    return name, getattr(space.get(name), "log", True)


def number_rows(rows: Sequence[Row], setting: str) -> list[dict[str, Any]]:
    """The rows as `reports.trials.trials_figure` takes them, in the order in which trials started.

    Args:
        rows: of `build_row`.
        setting: of `choose_setting`.
    """
    return [
        {
            "trial": number,
            "objective": row["objective"] if row["state"] != "failed" else None,
            "setting": row["settings"].get(setting),
            "state": row["state"],
        }
        for number, row in enumerate(start_order(rows))
    ]


def pareto_rows(
    rows: Sequence[Row], objectives: tuple[Objective, Objective], *, is_healthy: Mapping[str, bool]
) -> list[dict[str, Any]]:
    """The rows as `reports.pareto.pareto_figure` takes them, in the order in which trials started."""
    vertical, horizontal = objectives
    return [
        {
            "trial": number,
            "x": row["metrics"].get(horizontal.metric) if row["state"] != "failed" else None,
            "y": row["metrics"].get(vertical.metric) if row["state"] != "failed" else None,
            "is_healthy": is_healthy[row["trial"]],
        }
        for number, row in enumerate(start_order(rows))
    ]


def count_rows(rows: Sequence[Row]) -> dict[str, Any]:
    """Trials by state, and the steps of all trials: done, planned, and the share of the planned that ASHA saved.

    A failed trial would not have continued, so that it plans no more steps than it has done.
    """
    planned = sum(row.get("planned_steps", 0) for row in rows if row["state"] != "failed")
    planned += sum(row.get("num_steps", 0) for row in rows if row["state"] == "failed")
    states = [row["state"] for row in rows]
    return {
        "num_trials": len(rows),
        **{f"num_{state}": states.count(state) for state in ("complete", "pruned", "failed")},
        "num_steps": sum(row.get("num_steps", 0) for row in rows),
        "planned_steps": planned,
        "saved_by_asha": saved_share(rows, "pruned", planned),
    }


def saved_share(rows: Sequence[Row], state: str, planned: int) -> float:
    """The share of all planned steps that the trials of a state did not run."""
    found = [row for row in rows if row["state"] == state and "planned_steps" in row]
    left = sum(row["planned_steps"] - row["num_steps"] for row in found)
    return left / planned if planned else 0.0


def importances(rows: Sequence[Row], space: Mapping[str, BaseDistribution]) -> dict[str, float]:
    """How much each setting explains of the objective, adding up to 1, the largest first; empty for few trials.

    It compares the best trials with all of them: it needs more than a handful, and does not see settings that matter
    only together.

    Reference: Watanabe et al. 2023, PED-ANOVA (arXiv 2304.10255).
    """
    # Imported late: it loads scikit-learn, and every worker of a cluster imports this module.
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

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
