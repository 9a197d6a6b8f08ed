"""The descriptions of a search's and a comparison's MLflow run, in Markdown for MLflow's pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glioray.engine.space import format_space
from glioray.reports.tables import Table

if TYPE_CHECKING:
    from glioray.engine.on_mlflow.runs import RunLogger
    from glioray.engine.search import Row, SweepPlan

_MAX_ROWS = 20


def describe_sweep(
    plan: SweepPlan,
    rows: Sequence[Row],
    summary: Mapping[str, Any],
    best: Mapping[str, str],
    logger: RunLogger,
) -> str:
    """Describe a sweep: the space, the winner, the stopped trials with their reasons, links.

    Args:
        plan: the search.
        rows: its trials, best first.
        summary: of `Search.summarize`.
        best: of the winner: "trial", "model" (its registered version) and "run_id"; empty where no trial is healthy.
        logger: the search's run.
    """
    base, search = plan.base, plan.search
    lines = [
        f"Search of the recipe `{base.config.recipe}` for the largest `{search.objective}`: {plan.num_trials} trials, "
        f"mode {plan.mode}, on `{base.manifest.data}` (manifest `{base.manifest.hash}`). "
        f"{base.task.purpose}; research use only.",
        "",
        f"[All trials, best first]({logger.table_link}) · trials.md · trials.json",
        "",
        "## Best",
        "",
    ]
    winner = next((row for row in rows if row["trial"] == best.get("trial")), None)
    if winner is None:
        lines.append("No trial is healthy.")
    else:
        name, _, version = best["model"].removeprefix("models:/").rpartition("/")
        lines += [
            f"Trial [{winner['trial']}]({logger.link(best['run_id'])}), {search.objective} "
            f"{winner['objective']:.4f}, registered as [{best['model']}]({logger.version_link(name, version)}).",
        ]
    won = {} if winner is None else winner["settings"]
    searched = [[f"`{name}`", values, won.get(name)] for name, values in format_space(plan.space).items()]
    lines += ["", *Table(["setting", "searched", "best"], searched).to_markdown().splitlines(), ""]
    stopped = [row for row in rows if row["state"] != "complete"]
    lines += [f"## Stopped: {len(stopped)} of {len(rows)}", "", search.describe(summary, plan.mode)]
    if stopped:
        cells = [
            [row["trial"], row["state"], f"{row['percent']} %", row["reason"]] for row in stopped[:_MAX_ROWS]
        ]
        lines += Table(["trial", "state", "at", "reason"], cells).to_markdown().splitlines()
    return "\n".join([*lines, "", "![trials](trials.png)"]) + "\n"


def describe_comparison(
    entrants: Sequence[str], table: str, interpretation: str, figures: Sequence[str], logger: RunLogger
) -> str:
    """The ranking, what it shows, and the first figure.

    Args:
        entrants: their labels.
        table: the ranking, in Markdown.
        interpretation: of the ranking.
        figures: names of the run's figures.
        logger: the comparison's run.
    """
    lines = [f"Comparison of {len(entrants)} entrants at an equal budget. Research use only.", "", table]
    lines += [interpretation, "", *(f"![{name}]({name})" for name in figures[:1])]
    return "\n".join(lines) + "\n"
