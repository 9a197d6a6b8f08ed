"""The ranking of segmentation models: Dice with intervals over patients, and its interpretation.

Each case is evaluated once a seed, by the run that was not trained on it. Seeds are averaged for each case first, so
that patients are resampled, not runs.

A result of a complete run has "cases" (case id -> "patient", "regions" of `CaseMetrics`, "confusion", and "slices" of
`case_slice_sums`, which results of earlier versions lack),
"num_parameters", "minutes", "num_slices", "slices_per_s" and "history" (a row a validation).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glioray.config import REGIONS
from glioray.engine.comparison import RunResult
from glioray.reports.intervals import FEW_PATIENTS, bootstrap_interval
from glioray.reports.tables import Table
from glioray.tasks.segmentation.entrants import PUBLISHED
from glioray.tasks.segmentation.slicewise import slicewise_table


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over cases with its 95 % bootstrap interval over patients."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One entrant's place.

    Attributes:
        rank: from 1; entrants with failed runs are last, since they were not evaluated on every case.
        label: of the entrant.
        num_runs: its runs.
        num_failed: how many of them failed.
        reason: of its first failed run.
        dice: by region and "mean" (over the regions), over all cases.
        behind: the top entrant's mean Dice minus its own, paired by case; None for the top one and those with failed
            runs.
        hd95_mm: mean by region.
        case_dice: case id -> mean Dice over the regions.
        num_patients: of these cases.
        num_parameters: of its network.
        minutes: training time of a run, mean.
        num_slices: slices that a run learned from, mean.
        slices_per_s: median over its runs.
        slicewise: means over slices and over classes, background among them (`slicewise_table`), of all runs; empty
            where a result has none.
    """

    rank: int
    label: str
    num_runs: int
    num_failed: int
    reason: str
    dice: dict[str, Estimate]
    behind: Estimate | None
    hd95_mm: dict[str, float]
    case_dice: dict[str, float]
    num_patients: int
    num_parameters: int
    minutes: float
    num_slices: float
    slices_per_s: float
    slicewise: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def rank_entrants(results: Sequence[RunResult], *, seed: int = 0) -> list[Standing]:
    """Rank the entrants, the highest mean Dice first; `seed` is of the resampling."""
    tables = {}
    for label in dict.fromkeys(result["label"] for result in results):
        own = [result for result in results if result["label"] == label]
        tables[label] = (own, _mean_over_seeds(own))
    failed = {label: sum(result["state"] == "failed" for result in own) for label, (own, _) in tables.items()}

    def place(label: str) -> tuple[bool, float]:
        scores = list(_case_means(tables[label][1]).values())
        return failed[label] > 0, -float(np.mean(scores)) if scores else 0.0

    order = sorted(tables, key=place)
    first = _case_means(tables[order[0]][1]) if order else {}
    standings = []
    for rank, label in enumerate(order, 1):
        own, cases = tables[label]
        patients = [cases[case_id]["patient"] for case_id in sorted(cases)]
        means = _case_means(cases)
        behind = None
        if rank > 1 and not failed[label] and set(means) == set(first):
            gaps = [first[case_id] - means[case_id] for case_id in sorted(means)]
            behind = _estimate(gaps, patients, seed, possible=(-1.0, 1.0))
        complete = [result for result in own if result["state"] == "complete"]
        standings.append(
            Standing(
                rank=rank,
                label=label,
                num_runs=len(own),
                num_failed=failed[label],
                reason=next((result["reason"] for result in own if result["state"] == "failed"), ""),
                dice=_dice(cases, means, patients, seed),
                behind=behind,
                hd95_mm={name: _mean_of(cases, name, "hd95_mm") for name in _regions(cases)},
                case_dice=means,
                num_patients=len(set(patients)),
                num_parameters=int(complete[0]["num_parameters"]) if complete else 0,
                minutes=_average(complete, "minutes"),
                num_slices=_average(complete, "num_slices"),
                slices_per_s=float(np.median([result["slices_per_s"] for result in complete] or [0.0])),
                slicewise=_slicewise(complete),
            )
        )
    return standings


def winner(standings: Sequence[Standing]) -> Standing | None:
    """The top entrant if all its runs completed, else None."""
    return standings[0] if standings and not standings[0].num_failed else None


def text_table(standings: Sequence[Standing]) -> Table:
    """The ranking for readers: Dice with 95 % intervals over patients."""
    regions = _all_regions(standings)
    columns = [
        "rank", "entrant", "mean Dice", *(f"Dice {name.upper()}" for name in regions), "behind the first",
        *(f"HD95 {name.upper()} (mm)" for name in regions), "parameters", "minutes", "slices", "slices/s",
        *(_STUDY_COLUMNS if _is_study(standings) else ()), "note",
    ]  # fmt: skip
    rows = [
        [
            row.rank,
            row.label,
            *(row.dice.get(name) for name in ("mean", *regions)),
            row.behind,
            *(f"{row.hd95_mm[name]:.1f}" if name in row.hd95_mm else None for name in regions),
            f"{row.num_parameters:,}",
            f"{row.minutes:.1f}",
            f"{row.num_slices:.0f}",
            f"{row.slices_per_s:.1f}",
            *(_study_cells(row) if _is_study(standings) else ()),
            f"{row.num_failed} of {row.num_runs} runs failed: {row.reason}" if row.num_failed else None,
        ]
        for row in standings
    ]
    return Table(columns, rows)


def value_table(standings: Sequence[Standing]) -> Table:
    """The ranking for programs: every number in a column of its own."""
    regions = _all_regions(standings)
    bounds = [f"dice_{name}{end}" for name in ("mean", *regions) for end in ("", "_low", "_high")]
    columns = [
        "rank", "entrant", *bounds, "behind", "behind_low", "behind_high", *(f"hd95_mm_{name}" for name in regions),
        "num_parameters", "minutes", "num_slices", "slices_per_s", "num_runs", "num_failed", "reason",
        *(_STUDY_VALUES if _is_study(standings) else ()),
    ]  # fmt: skip
    rows = []
    for row in standings:
        estimates = [row.dice.get(name) for name in ("mean", *regions)] + [row.behind]
        flat = [part for e in estimates for part in ((e.mean, e.low, e.high) if e else (None,) * 3)]
        rows.append(
            [
                row.rank, row.label, *flat, *(row.hd95_mm.get(name) for name in regions), row.num_parameters,
                row.minutes, row.num_slices, row.slices_per_s, row.num_runs, row.num_failed, row.reason,
                *(_study_values(row) if _is_study(standings) else ()),
            ]
        )  # fmt: skip
    return Table(columns, rows)


def interpret(standings: Sequence[Standing], *, num_folds: int, num_seeds: int, budget: str) -> str:
    """Explain in a paragraph what the ranking shows and what it cannot show at this size.

    Args:
        standings: in order.
        num_folds: of the cross-validation.
        num_seeds: runs an entrant and fold.
        budget: of a run, in words.
    """
    ranked = [row for row in standings if not row.num_failed]
    best = winner(standings)
    if best is None:
        return "No entrant completed all of its runs, so there is no ranking to interpret.\n"
    num_cases = len(best.case_dice)
    near = [row.label for row in ranked[1:] if row.behind is not None and row.behind.low <= 0]
    far = [row.label for row in ranked[1:] if row.behind is not None and row.behind.low > 0]
    width = best.dice["mean"].high - best.dice["mean"].low
    parts = [
        f"**Interpretation.** {best.label} has the highest mean Dice, {best.dice['mean']}, over {num_cases} cases. Each "
        f"case was evaluated by a model that was not trained on its patient ({num_folds} folds, "
        f"{_count(num_seeds, 'seed')}, {budget} a run)."
    ]
    if far:
        parts.append(
            f"Compared case by case, it is ahead of {'; '.join(far)} by more than resampling patients explains (the "
            "95 % interval of the difference is above 0; it is corrected neither for "
            f"{_count(len(ranked) - 1, 'comparison')} nor for selecting the top entrant by its result)."
        )
    if near:
        parts.append(f"It cannot be distinguished from {'; '.join(near)}: their order may be chance.")
    limits = [
        f"the interval of the mean is {width:.2f} wide with {_count(num_cases, 'case')} of "
        f"{_count(best.num_patients, 'patient')}",
        *_few_patients(best.num_patients),
        "with one seed, the effect of initial weights and sample order is not separated from the entrant's"
        if num_seeds == 1
        else f"{num_seeds} seeds measure the effect of initial weights and sample order only roughly",
        "all entrants used the recipe's settings, which were not tuned for each of them",
        "a small equal budget favours entrants that learn fast and have cheap steps, and says little about long "
        "training or more cases",
    ]
    if "minute" in budget:
        limits.append(
            "minutes are wall-clock time, including validation and saving, so other load on the machine counts too"
        )
    limits.append(
        "the top entrant was selected on the same cases that it is reported on, which inflates its score"
    )
    parts.append(f"Limits: {'; '.join(limits)}.")
    if _is_study(standings):
        parts.append(
            "The study's recall and F1, and ours by slice beside them, are means over slices and over four classes: the "
            "background, near 1 for any model, is one of them, and a class that is rightly absent from a slice scores "
            "1. Mean Dice is over whole volumes of patients and over WT, TC and ET, so it is lower and does not compare with "
            "them. The study's slices were chosen around the tumour's centre; ours are all through the brain."
        )
    if failed := [f"{row.label} ({row.reason})" for row in standings if row.num_failed]:
        parts.append(f"Not evaluated on every case: {'; '.join(failed)}.")
    return " ".join(parts) + "\n"


_STUDY_COLUMNS = (
    "study's recall",
    "our recall by slice",
    "study's F1",
    "our F1 by slice",
    "study's parameters",
)
_STUDY_VALUES = ("study_recall", "slice_recall", "study_f1", "slice_f1", "study_num_parameters")


def _is_study(standings: Sequence[Standing]) -> bool:
    return any(row.label in PUBLISHED for row in standings)


def _study_values(row: Standing) -> list[float | None]:
    """Cells of `_STUDY_VALUES`; None for an entrant that is not the study's, or without results by slice."""
    study = PUBLISHED.get(row.label)
    own = (row.slicewise.get("sensitivity"), row.slicewise.get("dice"))
    if study is None:
        return [None, own[0], None, own[1], None]
    return [study.recall, own[0], study.f1, own[1], study.num_parameters]


def _study_cells(row: Standing) -> list[str | None]:
    *shares, num_parameters = _study_values(row)
    cells = [None if share is None else f"{share:.3f}" for share in shares]
    return [*cells, None if num_parameters is None else f"{num_parameters:,}"]


def _slicewise(results: Sequence[RunResult]) -> dict[str, float]:
    cases = [case for result in results for case in result["cases"].values()]
    if not cases or not all("slices" in case for case in cases):
        return {}
    return slicewise_table(case["slices"] for case in cases)["mean"]


def _count(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _few_patients(num_patients: int) -> list[str]:
    """The limits of intervals over so few patients; none where there are enough."""
    if num_patients >= FEW_PATIENTS:
        return []
    if num_patients == 1:
        return ["one patient does not show the spread, so the intervals are the whole possible range"]
    return [
        "intervals by resampling so few patients are too narrow (where all of them agree, the interval of a difference "
        "never contains 0), so differences are hints, not evidence"
    ]


def _mean_over_seeds(results: Sequence[RunResult]) -> dict[str, dict[str, Any]]:
    """Case id -> "patient" and "regions", with metrics averaged over the seeds that evaluated the case."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        for case_id, case in result["cases"].items() if result["state"] == "complete" else ():
            found.setdefault(case_id, []).append(case)
    return {
        case_id: {
            "patient": cases[0]["patient"],
            "regions": {
                region: {
                    metric: float(np.mean([case["regions"][region][metric] for case in cases]))
                    for metric in ("dice", "hd95_mm")
                }
                for region in REGIONS
                if all(region in case["regions"] for case in cases)
            },
        }
        for case_id, cases in found.items()
    }


def _case_means(cases: Mapping[str, Any]) -> dict[str, float]:
    return {
        case_id: float(np.mean([metrics["dice"] for metrics in case["regions"].values()]))
        for case_id, case in sorted(cases.items())
    }


def _regions(cases: Mapping[str, Any]) -> list[str]:
    return [name for name in REGIONS if any(name in case["regions"] for case in cases.values())]


def _mean_of(cases: Mapping[str, Any], region: str, metric: str) -> float:
    return float(
        np.mean([case["regions"][region][metric] for case in cases.values() if region in case["regions"]])
    )


def _dice(
    cases: Mapping[str, Any], means: Mapping[str, float], patients: Sequence[str], seed: int
) -> dict[str, Estimate]:
    if not cases:
        return {}
    result = {"mean": _estimate(list(means.values()), patients, seed)}
    for name in _regions(cases):
        with_it = [case_id for case_id in sorted(cases) if name in cases[case_id]["regions"]]
        values = [cases[case_id]["regions"][name]["dice"] for case_id in with_it]
        result[name] = _estimate(values, [cases[case_id]["patient"] for case_id in with_it], seed)
    return result


def _estimate(
    values: Sequence[float],
    patients: Sequence[str],
    seed: int,
    *,
    possible: tuple[float, float] = (0.0, 1.0),
) -> Estimate:
    # A single patient does not show the spread.
    several = len(set(patients)) > 1
    low, high = bootstrap_interval(values, patients, seed=seed) if several else possible
    return Estimate(mean=float(np.mean(values)), low=low, high=high)


def _average(results: Sequence[RunResult], name: str) -> float:
    return float(np.mean([result[name] for result in results])) if results else 0.0


def _all_regions(standings: Sequence[Standing]) -> list[str]:
    return [name for name in REGIONS if any(name in row.dice for row in standings)]
