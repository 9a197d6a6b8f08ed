"""Comparisons of several configs of one task at an equal budget: their runs, and the report on the results.

The runs are scheduled by `engine.on_ray.compare`; nothing here knows Ray.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from glioray.config import override
from glioray.engine.descriptions import describe_comparison
from glioray.errors import TrainingError
from glioray.reports.tables import Table
from glioray.serialization import fingerprint, to_dict
from glioray.storage import join_uri, open_storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from glioray.engine.on_mlflow.runs import RunLogger
    from glioray.engine.run import Fill, RunPlan

_log = logging.getLogger(__name__)

RESULT_FILE = "play.json"
"""In a run's storage once its result is final: the run is not repeated."""

RunResult = dict[str, Any]
"""The result of one run, as JSON values.

"label", "fold" (None where a task does not cross-validate), "seed" and "storage" say which run it is; "state" is
"complete", "failed" or one of the task's own, such as "collapsed", and "reason" says why it is not complete. A failed
one has "again": whether the same comparison repeats it. All else is the task's: see `Comparison.judge`.
"""


class Standing(Protocol):
    """An entrant's place in the ranking."""

    @property
    def label(self) -> str: ...

    def to_dict(self) -> dict[str, Any]:
        """Its values as JSON, for a job's answer."""


class Comparison(Protocol):
    """How a task judges, ranks and reports the runs of a comparison.

    Attributes:
        cross_validates: whether each entrant runs on every fold of the manifest, rather than on its split.
        report_name: the tables are the files `<report_name>.md` and `<report_name>.csv`.
        stores_all: whether figures and documents are files of the comparison's storage too, not only of its MLflow
            run; tables always are.
        states: in which a run with a model can end, beside "complete".
    """

    cross_validates: bool
    report_name: str
    stores_all: bool
    states: tuple[str, ...]

    def entrants(self, config: Any, chosen: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The configs that a request compares, by label, before their budget is set.

        Args:
            config: what all entrants share.
            chosen: fields of the request that only this task knows, such as `nets` or `entrants`; those not given are
                absent.
            settings: by dotted name, for each entrant.

        Raises:
            UsageError: an entrant that does not exist or cannot be built, or one twice.
        """

    def check(self, config: Any) -> None:
        """Refuse an entrant that cannot be compared fairly.

        Raises:
            UsageError: names the setting.
        """

    def judge(self, plan: RunPlan, outcome: Mapping[str, Any], fill: Fill) -> RunResult:
        """Evaluate a run that has ended, on its node: its "state" and "reason", and whatever the ranking needs.

        Images for the figures are left in the run's storage.

        Args:
            plan: of the run, whose latest checkpoint and history are in its storage.
            outcome: what `train_run` returned.
            fill: brings cases into this node's slice cache.
        """

    def summarize(self, result: RunResult) -> str:
        """The result of a run that did not fail, in a few words."""

    def rank(self, results: Sequence[RunResult]) -> Sequence[Any]:
        """Rank the entrants: a `Standing` each, the best first."""

    def winner(self, standings: Sequence[Any]) -> Any | None:
        """The top entrant if all its runs completed, else None."""

    def winner_metrics(self, winner: Any) -> dict[str, float]:
        """Metrics of the comparison's MLflow run, from the winner's standing."""

    def interpret(self, standings: Sequence[Any], results: Sequence[RunResult], budget: str) -> str:
        """Explain in a paragraph what the ranking shows and what it does not show.

        Args:
            standings: of `rank`.
            results: of all runs, at least one of which did not fail.
            budget: of a run, in words.
        """

    def text_table(self, standings: Sequence[Any]) -> Table:
        """The ranking for readers: rounded, with intervals or ranges in one cell."""

    def value_table(self, standings: Sequence[Any]) -> Table:
        """The ranking for programs: every number in a column of its own."""

    def documents(
        self, standings: Sequence[Any], interpretation: str, results: Sequence[RunResult]
    ) -> dict[str, Any]:
        """Further JSON values of the comparison, by file name."""

    def figures(self, standings: Sequence[Any], results: Sequence[RunResult]) -> Iterator[tuple[str, Figure]]:
        """Draw the figures of the comparison, by file name, from results and what `judge` left in storage."""


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """A comparison on the data of `base`, whose storage, run name and MLflow kind are the comparison's own.

    Attributes:
        base: its config is what all entrants have in common, its task the one that is compared.
        entrants: label -> whole config.
        seeds: each entrant runs with each of them.
        num_concurrent: runs at a time.
        budget: of a run, in words.
        out: a URI where the report is written too.
    """

    base: RunPlan
    entrants: Mapping[str, Any]
    seeds: tuple[int, ...]
    num_concurrent: int
    budget: str
    out: str | None = None


@dataclass(frozen=True, kw_only=True)
class ComparisonRun:
    """One entrant with one seed, on one fold where the task cross-validates."""

    label: str
    seed: int
    plan: RunPlan
    fold: int | None = None

    def identity(self) -> RunResult:
        """The part of the result that differs between runs."""
        return {"label": self.label, "fold": self.fold, "seed": self.seed, "storage": self.plan.storage}

    def failed(self, reason: str, *, again: bool) -> RunResult:
        """The result of a run that failed; `again`: the same comparison repeats it."""
        return {**self.identity(), "state": "failed", "reason": reason, "again": again, "history": []}

    def load_result(self) -> RunResult | None:
        """The final result of an earlier attempt, or None where there is none."""
        storage = open_storage(self.plan.storage)
        if not storage.exists(RESULT_FILE):
            return None
        # The file may have been written under another label or before its folder was moved.
        return {**json.loads(storage.read(RESULT_FILE)), **self.identity()}

    def save_result(self, result: RunResult) -> None:
        """Make a result final."""
        open_storage(self.plan.storage).write(RESULT_FILE, json.dumps(result).encode())


def plan_runs(plan: ComparisonPlan, parent_run_id: str) -> list[ComparisonRun]:
    """Plan every run of a comparison: all entrants with the first seed on the first fold come first.

    Args:
        plan: of the comparison.
        parent_run_id: of its MLflow run.
    """
    base = plan.base
    folds = range(len(base.manifest.folds)) if base.task.comparison.cross_validates else [None]
    runs = []
    for fold in folds:
        manifest = base.manifest if fold is None else base.manifest.with_fold(fold)
        for seed in plan.seeds:
            for label, config in plan.entrants.items():
                seeded = override(config, **{"train.seed": seed})
                # Settings and split name the folder: with another budget or other data it is another run.
                key = fingerprint([to_dict(seeded), manifest.hash])
                of_fold = "" if fold is None else f", fold {fold}"
                tags = {"glioray.entrant": label}
                if fold is not None:
                    tags["glioray.fold"] = str(fold)
                run = dataclasses.replace(
                    base,
                    config=seeded,
                    manifest=manifest,
                    storage=join_uri(base.storage, "runs", f"{slug(label)}-{key}"),
                    run_name=f"{base.run_name}/{label}{of_fold}, seed {seed}, {key[:4]}",
                    kind="trial",
                    parent_run_id=parent_run_id,
                    tags=tags,
                    log_model=False,
                )
                runs.append(ComparisonRun(label=label, fold=fold, seed=seed, plan=run))
    return runs


def plan_facts(plan: ComparisonPlan) -> dict[str, Any]:
    """Params of the comparison's MLflow run."""
    facts: dict[str, Any] = {"entrants": list(plan.entrants), "seeds": plan.seeds, "budget": plan.budget}
    if plan.base.task.comparison.cross_validates:
        facts["num_folds"] = len(plan.base.manifest.folds)
    return facts


def report_results(plan: ComparisonPlan, results: Sequence[RunResult], logger: RunLogger) -> dict[str, Any]:
    """Rank the entrants, and write tables and figures to MLflow, the comparison's storage and `plan.out`.

    Returns: `run_id`; `run_url`, its page in MLflow, None where no server shows it; `winner`, the label or None;
    `standings`, one object an entrant; `reading`, the interpretation; the URIs of the `files`; the labels with `failed` runs, and among them with `missing` ones, which the same
    comparison repeats; and the labels with runs in each of the task's own states.

    Raises:
        TrainingError: no run has a model.
    """
    if all(result["state"] == "failed" for result in results):
        raise TrainingError(
            f"none of the {len(results)} runs has a model; the first failed: {results[0]['reason']}"
        )
    comparison = plan.base.task.comparison
    standings = comparison.rank(results)
    text = comparison.interpret(standings, results, plan.budget)
    table = comparison.text_table(standings).to_markdown()
    files: dict[str, bytes] = {
        f"{comparison.report_name}.md": f"{table}\n{text}".encode(),
        f"{comparison.report_name}.csv": comparison.value_table(standings).to_csv().encode(),
    }
    for name, content in files.items():
        logger.log_text(content.decode(), name)
    for name, value in comparison.documents(standings, text, results).items():
        logger.log_json(value, name)
        if comparison.stores_all:
            files[name] = json.dumps(value, indent=1).encode()
    figures = []
    for name, figure in comparison.figures(standings, results):
        logger.log_figure(figure, name)
        figures.append(name)
        if comparison.stores_all:
            files[name] = _png(figure)
    storages = [open_storage(uri) for uri in (plan.base.storage, plan.out) if uri is not None]
    for storage in storages:
        for name, data in files.items():
            storage.write(name, data)
    winner = comparison.winner(standings)
    if winner is not None:
        logger.log_metrics(comparison.winner_metrics(winner), step=0)
    logger.set_tags({"glioray.winner": "" if winner is None else winner.label})
    logger.describe(describe_comparison(list(plan.entrants), table, text, figures, logger))
    _log.info("\n%s\n%s", table, text)

    def labels(state: str) -> list[str]:
        return sorted({result["label"] for result in results if result["state"] == state})

    return {
        "run_id": logger.run_id,
        "run_url": logger.url,
        "winner": None if winner is None else winner.label,
        "standings": [standing.to_dict() for standing in standings],
        "reading": text,
        "files": [join_uri(storages[-1].uri, name) for name in files],
        **{state: labels(state) for state in comparison.states},
        "failed": labels("failed"),
        "missing": sorted({result["label"] for result in results if result.get("again")}),
    }


def slug(label: str) -> str:
    """A label as part of a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-")[:60]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()
