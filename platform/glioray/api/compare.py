"""Compare entrants around a recipe at an equal budget."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from glioray.api.configs import resolve_recipe, short_settings
from glioray.api.data import check_labelled_regions
from glioray.api.places import ready_out
from glioray.api.requests import CompareRequest
from glioray.api.train import open_plan
from glioray.api.verbs import as_verb
from glioray.config import with_settings
from glioray.engine.comparison import ComparisonPlan
from glioray.engine.entrants import budget_settings, budget_text
from glioray.engine.on_ray.compare import run_comparison
from glioray.engine.on_ray.resources import default_concurrency
from glioray.engine.task import Task
from glioray.errors import UsageError
from glioray.serialization import to_dict

_NUM_FOLDS = 5
_NUM_SEEDS_WITHOUT_FOLDS = 3


@dataclass(frozen=True)
class CompareResult:
    """A ranking.

    Attributes:
        winner: label of the top entrant if all its runs completed, else None.
        standings: one object an entrant, the best first.
        missing: labels of entrants with runs that failed and that the same request repeats.
        run_id: of the comparison, in MLflow.
        files: URIs of the report.
        answer: the JSON answer of the job.
    """

    winner: str | None
    standings: tuple[dict[str, Any], ...] = field(repr=False)
    missing: tuple[str, ...]
    run_id: str
    files: tuple[str, ...]
    answer: dict[str, Any] = field(repr=False)

    @property
    def exit_code(self) -> int:
        """Of the job: 1 where a run is missing."""
        return int(bool(self.missing))


def preview(request: CompareRequest) -> dict[str, Any]:
    """The shared settings, the entrants and the budget; starts nothing.

    Raises:
        UsageError: as `compare`.
    """
    _, config, entrants, budget = _resolve(request)
    return {"config": to_dict(config), "entrants": list(entrants), "budget": budget}


@as_verb(CompareRequest)
def compare(request: CompareRequest) -> CompareResult:
    """Compare entrants around a recipe: equal budget, same data and seeds, one ranking; or resume a comparison.

    A run that diverges or collapses has lost.

    Returns:
        CompareResult: the ranking and its report.

    Raises:
        UsageError: a request that is not valid, or an entrant that cannot be built.
        DataError: the data cannot be used.
        TrainingError: no run has a model.
    """
    task, config, entrants, budget = _resolve(request)
    cross_validates = task.comparison.cross_validates
    num_seeds = request.seeds or (1 if cross_validates else _NUM_SEEDS_WITHOUT_FOLDS)
    out = ready_out(request.out) if request.out else None
    with open_plan(request, task, config, "comparison") as plan:
        if cross_validates:
            folds = plan.manifest.with_folds(_NUM_FOLDS if request.folds is None else request.folds)
            if task.output == "labels":
                for fold in range(len(folds.folds)):
                    check_labelled_regions(folds.with_fold(fold))
            plan = dataclasses.replace(plan, manifest=folds)
        answer = run_comparison(
            ComparisonPlan(
                base=plan,
                entrants=entrants,
                seeds=tuple(range(config.train.seed, config.train.seed + num_seeds)),
                num_concurrent=request.concurrent or default_concurrency(config.train.num_workers),
                budget=budget,
                out=out,
            )
        )
    return CompareResult(
        winner=answer["winner"],
        standings=tuple(answer["standings"]),
        missing=tuple(answer["missing"]),
        run_id=answer["run_id"],
        files=tuple(answer["files"]),
        answer=answer,
    )


def _resolve(request: CompareRequest) -> tuple[Task, Any, dict[str, Any], str]:
    """The task, what all entrants share, the entrants' configs by label, and the budget in words."""
    task, config = resolve_recipe(request, apart=_CHOICES)
    if task.comparison.cross_validates and request.fold is not None:
        raise UsageError("a comparison of this task runs on every fold; leave out --fold, or give --folds")
    if not task.comparison.cross_validates and request.folds is not None:
        raise UsageError("a comparison of this task runs on one split; leave out --folds, or give --fold")
    chosen = short_settings(request, task, config.recipe, _CHOICES)
    minutes, num_slices = request.minutes_each, request.slices_each
    budget = budget_text(config, minutes=minutes, num_slices=num_slices)
    entrants = {}
    for label, own in task.comparison.entrants(config, chosen, dict(request.set)).items():
        entrants[label] = with_settings(own, budget_settings(own, minutes=minutes, num_slices=num_slices))
        task.check(entrants[label])
    return task, config, entrants, budget


_CHOICES = ("nets", "losses", "optimizers", "width", "entrants")
"""Fields that say what is compared, rather than what all entrants share."""
