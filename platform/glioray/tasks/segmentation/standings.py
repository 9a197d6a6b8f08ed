"""What a tournament's runs say: a ranking with intervals, and a paragraph on what it does not show.

Every case is judged once a seed, by the run whose fold had not seen it; seeds are averaged for each case
first, so that what is resampled is patients. No Ray in here.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glioray.config import REGIONS
from glioray.reports.intervals import FEW_PATIENTS, bootstrap_interval

Play = Mapping[str, Any]
"""One run: `label`, `fold`, `seed`, `state` ("complete" or "failed"), `reason`, and of a complete one `cases`
(case id -> `patient`, `regions`: CaseFigures, `confusion`), `num_parameters`, `minutes`, `num_slices`,
`slices_per_s` and `history` (a row a validation)."""


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
        rank: from 1 on; entrants with failed runs come last, since they were not judged on every case.
        label: of the entrant.
        num_runs: that ended, and `num_failed` of them that failed, with the first one's `reason`.
        dice: by region and "mean" (over the regions), over all cases.
        behind: what it lacks to the first in mean Dice, case by case; None for the first and the failed.
        hd95_mm: mean by region.
        case_dice: case id -> mean Dice over the regions.
        num_patients: whose cases these are.
        num_parameters: of its network.
        minutes: mean of a run's training.
        num_slices: mean number that a run learned from.
        slices_per_s: median over the runs.
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


def rank_entrants(plays: Sequence[Play], *, seed: int = 0) -> list[Standing]:
    """The entrants, the highest mean Dice first."""
    tables = {}
    for label in dict.fromkeys(play["label"] for play in plays):
        mine = [play for play in plays if play["label"] == label]
        tables[label] = (mine, _mean_over_seeds(mine))
    failed = {label: sum(p["state"] == "failed" for p in mine) for label, (mine, _) in tables.items()}

    def place(label: str) -> tuple[bool, float]:
        scores = list(_case_means(tables[label][1]).values())
        return failed[label] > 0, -float(np.mean(scores)) if scores else 0.0

    order = sorted(tables, key=place)
    first = _case_means(tables[order[0]][1]) if order else {}
    standings = []
    for rank, label in enumerate(order, 1):
        mine, cases = tables[label]
        patients = [cases[case_id]["patient"] for case_id in sorted(cases)]
        means = _case_means(cases)
        behind = None
        if rank > 1 and not failed[label] and set(means) == set(first):
            gaps = [first[case_id] - means[case_id] for case_id in sorted(means)]
            behind = _estimate(gaps, patients, seed, range_of=(-1.0, 1.0))
        complete = [play for play in mine if play["state"] == "complete"]
        standings.append(
            Standing(
                rank=rank,
                label=label,
                num_runs=len(mine),
                num_failed=failed[label],
                reason=next((play["reason"] for play in mine if play["state"] == "failed"), ""),
                dice=_dice(cases, means, patients, seed),
                behind=behind,
                hd95_mm={name: _mean_of(cases, name, "hd95_mm") for name in _regions(cases)},
                case_dice=means,
                num_patients=len(set(patients)),
                num_parameters=int(complete[0]["num_parameters"]) if complete else 0,
                minutes=_average(complete, "minutes"),
                num_slices=_average(complete, "num_slices"),
                slices_per_s=float(np.median([play["slices_per_s"] for play in complete] or [0.0])),
            )
        )
    return standings


def winner(standings: Sequence[Standing]) -> Standing | None:
    """The first, if it was judged on every case; who was not has not won, though nobody else may be there."""
    return standings[0] if standings and not standings[0].num_failed else None


def standings_markdown(standings: Sequence[Standing]) -> str:
    """The ranking as a Markdown table: Dice with 95 % intervals over patients."""
    regions = _all_regions(standings)
    head = [
        "rank", "entrant", "mean Dice", *(f"Dice {name.upper()}" for name in regions), "behind the first",
        *(f"HD95 {name.upper()} (mm)" for name in regions), "parameters", "minutes", "slices", "slices/s", "note",
    ]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for row in standings:
        note = f"{row.num_failed} of {row.num_runs} runs failed: {row.reason}" if row.num_failed else ""
        dice = [str(row.dice[name]) if name in row.dice else "" for name in ("mean", *regions)]
        lines.append(
            [
                str(row.rank), row.label, dice[0], *dice[1:], str(row.behind) if row.behind else "",
                *(f"{row.hd95_mm[name]:.1f}" if name in row.hd95_mm else "" for name in regions),
                f"{row.num_parameters:,}", f"{row.minutes:.1f}", f"{row.num_slices:.0f}", f"{row.slices_per_s:.1f}",
                note,
            ]
        )  # fmt: skip
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    """Text that neither a bar nor a new line of its own ends."""
    return " ".join(text.replace("|", "/").split())


def standings_csv(standings: Sequence[Standing]) -> str:
    """The ranking as CSV: one column a figure."""
    regions = _all_regions(standings)
    buffer = io.StringIO()
    bounds = [f"dice_{name}{end}" for name in ("mean", *regions) for end in ("", "_low", "_high")]
    names = [
        "rank", "entrant", *bounds, "behind", "behind_low", "behind_high", *(f"hd95_mm_{name}" for name in regions),
        "num_parameters", "minutes", "num_slices", "slices_per_s", "num_runs", "num_failed", "reason",
    ]  # fmt: skip
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    for row in standings:
        estimates = [row.dice.get(name) for name in ("mean", *regions)] + [row.behind]
        flat = [part for e in estimates for part in ((e.mean, e.low, e.high) if e else ("", "", ""))]
        writer.writerow(
            [
                row.rank, row.label, *flat, *(row.hd95_mm.get(name, "") for name in regions), row.num_parameters,
                row.minutes, row.num_slices, row.slices_per_s, row.num_runs, row.num_failed, row.reason,
            ]
        )  # fmt: skip
    return buffer.getvalue()


def reading(standings: Sequence[Standing], *, num_folds: int, num_seeds: int, budget: str) -> str:
    """A paragraph on what the ranking tells and what it cannot tell at this size."""
    judged = [row for row in standings if not row.num_failed]
    best = winner(standings)
    if best is None:
        return "No entrant finished all of its runs: there is no ranking to read.\n"
    num_cases = len(best.case_dice)
    near = [row.label for row in judged[1:] if row.behind is not None and row.behind.low <= 0]
    far = [row.label for row in judged[1:] if row.behind is not None and row.behind.low > 0]
    width = best.dice["mean"].high - best.dice["mean"].low
    parts = [
        f"**Reading.** {best.label} has the highest mean Dice, {best.dice['mean']}, over {num_cases} cases, each judged "
        f"by a run that had not seen its patient ({num_folds} folds, {num_seeds} seed(s), {budget} a run)."
    ]
    if far:
        parts.append(
            f"Compared case by case, it is ahead of {'; '.join(far)} beyond what resampling patients explains "
            f"(95 % interval of the difference above 0, corrected neither for the {_counted(len(judged) - 1, 'comparison')} "
            "nor for the first having been picked because it was ahead)."
        )
    if near:
        parts.append(f"It cannot be told apart from {'; '.join(near)}: their order may be chance.")
    parts.append(
        f"What this does not show: the interval of a mean is {width:.2f} wide with {_counted(num_cases, 'case')} of "
        f"{_counted(best.num_patients, 'patient')}; "
        + _of_few(best.num_patients)
        + (
            "with one seed the luck of initial weights and order is not separated from the entrant; "
            if num_seeds == 1
            else f"{num_seeds} seeds measure the luck of initial weights only roughly; "
        )
        + "all entrants ran with the recipe's settings, which were not tuned for each; an equal small budget favours "
        "what learns fast and is cheap a step, and says little of where entrants end after long training or on more "
        "cases; "
        + (
            "minutes are those of the clock, validation and saving among them, so that what else the machine did "
            "counts too; "
            if "minute" in budget
            else ""
        )
        + "and the first was chosen on the cases that it is reported on, so that its figure flatters."
    )
    if failed := [f"{row.label} ({row.reason})" for row in standings if row.num_failed]:
        parts.append(f"Not judged on every case: {'; '.join(failed)}.")
    return " ".join(parts) + "\n"


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _of_few(num_patients: int) -> str:
    """What is to be said of intervals over so many patients."""
    if num_patients >= FEW_PATIENTS:
        return ""
    if num_patients == 1:
        return "one patient says nothing of the spread, and the intervals are all that can be; "
    return (
        "intervals by resampling so few patients are too narrow (where all of them agree, the interval of a difference "
        "never holds 0), so that what is told apart above is a hint and no proof; "
    )


def _mean_over_seeds(plays: Sequence[Play]) -> dict[str, dict[str, Any]]:
    """Case id -> `patient` and `regions` (figures averaged over the seeds that judged the case)."""
    found: dict[str, list[dict[str, Any]]] = {}
    for play in plays:
        for case_id, case in play["cases"].items() if play["state"] == "complete" else ():
            found.setdefault(case_id, []).append(case)
    return {
        case_id: {
            "patient": cases[0]["patient"],
            "regions": {
                region: {
                    figure: float(np.mean([case["regions"][region][figure] for case in cases]))
                    for figure in ("dice", "hd95_mm")
                }
                for region in REGIONS
                if all(region in case["regions"] for case in cases)
            },
        }
        for case_id, cases in found.items()
    }


def _case_means(cases: Mapping[str, Any]) -> dict[str, float]:
    return {
        case_id: float(np.mean([figures["dice"] for figures in case["regions"].values()]))
        for case_id, case in sorted(cases.items())
    }


def _regions(cases: Mapping[str, Any]) -> list[str]:
    return [name for name in REGIONS if any(name in case["regions"] for case in cases.values())]


def _mean_of(cases: Mapping[str, Any], region: str, figure: str) -> float:
    return float(
        np.mean([case["regions"][region][figure] for case in cases.values() if region in case["regions"]])
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
    values: Sequence[float], patients: Sequence[str], seed: int, *, range_of: tuple[float, float] = (0.0, 1.0)
) -> Estimate:
    # A single patient says nothing of the spread: anything that can be may be.
    known = len(set(patients)) > 1
    low, high = bootstrap_interval(values, patients, seed=seed) if known else range_of
    return Estimate(mean=float(np.mean(values)), low=low, high=high)


def _average(plays: Sequence[Play], name: str) -> float:
    return float(np.mean([play[name] for play in plays])) if plays else 0.0


def _all_regions(standings: Sequence[Standing]) -> list[str]:
    return [name for name in REGIONS if any(name in row.dice for row in standings)]
