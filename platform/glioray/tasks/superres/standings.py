"""The ranking of super-resolution GANs: metrics with their range over seeds, and its interpretation.

A run's metrics are those of its last validation, on its panel. In results and answers they are called "figures".

A result of a run that did not fail has "figures" (`run_metrics`), "num_parameters", "num_critic_parameters",
"minutes", "num_slices" and "history" (a row a validation).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glioray.engine.comparison import RunResult
from glioray.reports.tables import Table
from glioray.tasks.superres.config import DEAD

METRICS = {
    "quality": "quality",
    "lpips": "LPIPS",
    "gain_psnr": "PSNR gain (dB)",
    "hfen": "HFEN",
    "hf_db": "detail (dB)",
    "gain_dice": "Dice gain by use",
    "worst_collapse": "worst collapse score",
    "epochs_to_90": "epochs to 90 % of quality",
    "steps_per_s": "adversarial steps/s",
}
"""Metrics of a standing, and their columns in the table."""

_DIGITS = {"gain_psnr": 2, "hf_db": 1, "worst_collapse": 2, "epochs_to_90": 0, "steps_per_s": 2}
_FEW_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A metric over an entrant's runs."""

    mean: float
    low: float
    high: float

    def text(self, digits: int = 3) -> str:
        """Mean and range, or the value alone where all runs agree."""
        mean, low, high = (f"{value:.{digits}f}" for value in (self.mean, self.low, self.high))
        return mean if low == high else f"{mean} [{low}, {high}]"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One entrant's place.

    Attributes:
        rank: from 1, by mean quality; entrants with collapsed, dead or failed runs come after those without.
        label: of the entrant.
        num_runs: its runs.
        num_collapsed: how many of them collapsed.
        num_dead: how many of them died.
        num_failed: how many of them failed; a failed run has no metrics.
        reason: of its first run that collapsed, died or failed.
        metrics: by a name of `METRICS`, over the runs that have it; a collapsed or dead run's are those of its end.
        num_parameters: of the generator.
        num_critic_parameters: of the discriminator.
        minutes: training time of a run, mean.
        num_slices: slices that a run learned from, mean.
    """

    rank: int
    label: str
    num_runs: int
    num_collapsed: int
    num_dead: int
    num_failed: int
    reason: str
    metrics: dict[str, Spread]
    num_parameters: int
    num_critic_parameters: int
    minutes: float
    num_slices: float

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        return {"figures" if name == "metrics" else name: value for name, value in values.items()}


def run_metrics(history: Sequence[Mapping[str, float]], batch_size: int) -> dict[str, float]:
    """Compute the metrics of one run, by names of `METRICS`; a run need not have all.

    Args:
        history: a row a validation.
        batch_size: slices a step.
    """
    last = history[-1]
    metrics = {
        name: last[name] for name in ("quality", "lpips", "gain_psnr", "hfen", "hf_db") if name in last
    }
    if "dice_sr" in last:
        metrics["gain_dice"] = last["dice_sr"] - last["dice_bicubic"]
    metrics["worst_collapse"] = max(row["collapse_score"] for row in history)
    if last["quality"] > 0:
        metrics["epochs_to_90"] = next(
            row["epoch"] for row in history if row["quality"] >= 0.9 * last["quality"]
        )
    speeds = [row["slices_per_s"] for row in history if row.get("stage") == 1]
    if speeds:
        metrics["steps_per_s"] = float(np.median(speeds)) / batch_size
    return metrics


def rank_entrants(results: Sequence[RunResult]) -> list[Standing]:
    """Rank the entrants, the highest mean quality first; those with collapsed, dead or failed runs are last."""
    rows = []
    for label in dict.fromkeys(result["label"] for result in results):
        own = [result for result in results if result["label"] == label]
        ended = [result for result in own if result["state"] != "failed"]
        values = {
            name: [result["figures"][name] for result in ended if name in result["figures"]]
            for name in METRICS
        }
        rows.append(
            Standing(
                rank=0,
                label=label,
                num_runs=len(own),
                num_collapsed=sum(result["state"] == "collapsed" for result in own),
                num_dead=sum(result["state"] == DEAD for result in own),
                num_failed=len(own) - len(ended),
                reason=next((result["reason"] for result in own if result["state"] != "complete"), ""),
                metrics={
                    name: Spread(mean=float(np.mean(found)), low=min(found), high=max(found))
                    for name, found in values.items()
                    if found
                },
                num_parameters=ended[0]["num_parameters"] if ended else 0,
                num_critic_parameters=ended[0]["num_critic_parameters"] if ended else 0,
                minutes=_average(ended, "minutes"),
                num_slices=_average(ended, "num_slices"),
            )
        )
    rows.sort(key=lambda row: (_was_unstable(row), -_mean(row, "quality")))
    return [dataclasses.replace(row, rank=rank) for rank, row in enumerate(rows, 1)]


def winner(standings: Sequence[Standing]) -> Standing | None:
    """The top entrant if all its runs completed, else None."""
    return standings[0] if standings and not _was_unstable(standings[0]) else None


def text_table(standings: Sequence[Standing]) -> Table:
    """The ranking for readers: metrics with their range over seeds."""
    shown = _shown(standings)
    columns = [
        "rank", "entrant", "healthy runs", *(METRICS[name] for name in shown), "parameters G", "parameters D",
        "minutes", "slices", "note",
    ]  # fmt: skip
    rows = [
        [
            row.rank,
            row.label,
            f"{row.num_runs - _num_unhealthy(row)} of {row.num_runs}",
            *(
                row.metrics[name].text(_DIGITS.get(name, 3)) if name in row.metrics else None
                for name in shown
            ),
            f"{row.num_parameters:,}",
            f"{row.num_critic_parameters:,}",
            f"{row.minutes:.1f}",
            f"{row.num_slices:.0f}",
            row.reason,
        ]
        for row in standings
    ]
    return Table(columns, rows)


def value_table(standings: Sequence[Standing]) -> Table:
    """The ranking for programs, with three columns a metric: mean, lowest and highest."""
    shown = _shown(standings)
    names = [field.name for field in dataclasses.fields(Standing) if field.name not in ("metrics", "reason")]
    columns = [*names, *(f"{name}{end}" for name in shown for end in ("", "_low", "_high")), "reason"]
    rows = []
    for row in standings:
        spreads = [row.metrics.get(name) for name in shown]
        values = [part for s in spreads for part in ((s.mean, s.low, s.high) if s else (None,) * 3)]
        rows.append([*(getattr(row, name) for name in names), *values, row.reason])
    return Table(columns, rows)


def interpret(standings: Sequence[Standing], *, budget: str, num_seeds: int, panel: str, judge: str) -> str:
    """Explain in a paragraph who came first, by how much, and what the table cannot show.

    Args:
        standings: in order.
        budget: of a run, in words.
        num_seeds: runs an entrant.
        panel: the images of the evaluation, in words.
        judge: the network of LPIPS; empty where quality is by HFEN.
    """
    sentences = []
    best = winner(standings)
    if best is None:
        sentences.append("No entrant stayed healthy in all of its runs, so there is no winner.")
    elif len(standings) > 1:
        sentences.append(_lead(best, standings[1], num_seeds))
    for row in standings:
        if _was_unstable(row):
            parts = [
                f"{count} of {row.num_runs} runs {state}"
                for count, state in (
                    *((row.num_collapsed, "collapsed"), (row.num_dead, "died"), (row.num_failed, "failed")),
                )
                if count
            ]
            sentences.append(f"{row.label}: {' and '.join(parts)} ({row.reason}).")
    gains = [row for row in standings if "gain_psnr" in row.metrics]
    if len(gains) > 1:
        fidelity = max(gains, key=lambda row: _mean(row, "gain_psnr"))
        sentences.append(
            f"Closest to the truth pixel by pixel is {fidelity.label} "
            f"({_mean(fidelity, 'gain_psnr'):+.2f} dB over bicubic); quality and PSNR reward different properties."
        )
    if 1 < num_seeds < _FEW_SEEDS:
        sentences.append(f"{num_seeds} seeds are too few to distinguish a difference from chance.")
    scope = "the range over seeds shows the variation of training and" if num_seeds > 1 else "the table shows"
    sentences.append(
        f"Each run had {budget}. All were evaluated on {panel}: {scope} nothing about other patients, scanners or "
        "degradations."
    )
    sentences.append(
        f"Quality is the gain over bicubic in LPIPS by {judge}, a network trained on photographs; it does not measure "
        "diagnostic value."
        if judge
        else "Quality is the gain over bicubic in HFEN, since no extractor was available for LPIPS."
    )
    if len(standings) > 1:
        sentences.append(
            "Entrants differ in several things at once (generator, losses, the weights between them, optimiser): the "
            "table shows which whole recipe did better at this size and budget, not which part of it did, nor how the "
            "published networks perform at full size and length."
        )
    return " ".join(sentences) + "\n"


def _lead(best: Standing, second: Standing, num_seeds: int) -> str:
    """The sentence on the winner and its distance to the second."""
    lead = f"{best.label} comes first with quality {best.metrics['quality'].text()}"
    if _was_unstable(second):
        return f"{lead}; no other entrant stayed healthy in all of its runs."
    gap = _mean(best, "quality") - _mean(second, "quality")
    if num_seeds == 1:
        verdict = "with one seed each, this may be chance"
    elif best.metrics["quality"].low > second.metrics["quality"].high:
        verdict = "the ranges over seeds do not overlap"
    else:
        verdict = "the ranges over seeds overlap"
    return f"{lead}, {gap:.3f} ahead of {second.label}; {verdict}."


def _num_unhealthy(row: Standing) -> int:
    return row.num_collapsed + row.num_dead + row.num_failed


def _was_unstable(row: Standing) -> bool:
    return _num_unhealthy(row) > 0


def _mean(row: Standing, name: str) -> float:
    return row.metrics[name].mean if name in row.metrics else -math.inf


def _shown(standings: Sequence[Standing]) -> list[str]:
    return [name for name in METRICS if any(name in row.metrics for row in standings)]


def _average(results: Sequence[RunResult], name: str) -> float:
    return float(np.mean([result[name] for result in results])) if results else 0.0
