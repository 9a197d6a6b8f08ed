"""What the runs of a comparison of super-resolution GANs say: a table, and a paragraph on what it does not show.

A figure is that of a run's last validation, on the run's panel, and the table has its mean and range over seeds.
No Ray in here.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glioray.tasks.segmentation.standings import Play

FIGURES = {
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
"""Names of a standing's figures, and what the table calls them."""

_DIGITS = {"gain_psnr": 2, "hf_db": 1, "worst_collapse": 2, "epochs_to_90": 0, "steps_per_s": 2}
_FEW_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over an entrant's runs."""

    mean: float
    low: float
    high: float

    def text(self, digits: int = 3) -> str:
        """Mean and range."""
        mean, low, high = (f"{value:.{digits}f}" for value in (self.mean, self.low, self.high))
        return mean if low == high else f"{mean} [{low}, {high}]"


@dataclass(frozen=True, kw_only=True)
class GanStanding:
    """One entrant's place.

    Attributes:
        rank: from 1 on, by mean quality; entrants with collapsed or failed runs come after those without.
        label: of the entrant.
        num_runs: that ended; of them `num_collapsed` collapsed and `num_failed` failed (a run that diverged has no
            figures), with the first such one's `reason`.
        figures: by a name of `FIGURES`, over the runs that have it; a collapsed run's are its last ones.
        num_parameters: of the generator.
        num_critic_parameters: of the discriminator.
        minutes: mean of a run's training.
        num_slices: mean number that a run learned from.
    """

    rank: int
    label: str
    num_runs: int
    num_collapsed: int
    num_failed: int
    reason: str
    figures: dict[str, Spread]
    num_parameters: int
    num_critic_parameters: int
    minutes: float
    num_slices: float


def run_figures(history: Sequence[Mapping[str, float]], batch_size: int) -> dict[str, float]:
    """The figures of one run, by names of `FIGURES`, as far as it has them.

    Args:
        history: a row a validation.
        batch_size: slices a step.
    """
    last = history[-1]
    figures = {
        name: last[name] for name in ("quality", "lpips", "gain_psnr", "hfen", "hf_db") if name in last
    }
    if "dice_sr" in last:
        figures["gain_dice"] = last["dice_sr"] - last["dice_bicubic"]
    figures["worst_collapse"] = max(row["collapse_score"] for row in history)
    if last["quality"] > 0:
        figures["epochs_to_90"] = next(
            row["epoch"] for row in history if row["quality"] >= 0.9 * last["quality"]
        )
    speeds = [row["slices_per_s"] for row in history if row.get("stage") == 1]
    if speeds:
        figures["steps_per_s"] = float(np.median(speeds)) / batch_size
    return figures


def rank_gans(plays: Sequence[Play]) -> list[GanStanding]:
    """The entrants, the highest mean quality first among those none of whose runs collapsed or failed."""
    rows = []
    for label in dict.fromkeys(play["label"] for play in plays):
        mine = [play for play in plays if play["label"] == label]
        ended = [play for play in mine if play["state"] != "failed"]
        values = {
            name: [play["figures"][name] for play in ended if name in play["figures"]] for name in FIGURES
        }
        rows.append(
            GanStanding(
                rank=0,
                label=label,
                num_runs=len(mine),
                num_collapsed=sum(play["state"] == "collapsed" for play in mine),
                num_failed=len(mine) - len(ended),
                reason=next((play["reason"] for play in mine if play["state"] != "complete"), ""),
                figures={
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


def gan_winner(standings: Sequence[GanStanding]) -> GanStanding | None:
    """The first, if all of its runs stayed healthy."""
    return standings[0] if standings and not _was_unstable(standings[0]) else None


def gan_table_markdown(standings: Sequence[GanStanding]) -> str:
    """The ranking as a Markdown table: mean [lowest, highest] over seeds."""
    shown = _shown(standings)
    head = [
        "rank", "entrant", "healthy runs", *(FIGURES[name] for name in shown), "parameters G", "parameters D", "minutes",
        "slices", "note",
    ]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for row in standings:
        healthy = row.num_runs - row.num_collapsed - row.num_failed
        cells = [
            row.figures[name].text(_DIGITS.get(name, 3)) if name in row.figures else "" for name in shown
        ]
        lines.append(
            [
                str(row.rank), row.label, f"{healthy} of {row.num_runs}", *cells, f"{row.num_parameters:,}",
                f"{row.num_critic_parameters:,}", f"{row.minutes:.1f}", f"{row.num_slices:.0f}", row.reason,
            ]
        )  # fmt: skip
    return "\n".join("| " + " | ".join(" ".join(c.replace("|", "/").split()) for c in line) + " |" for line in lines) + "\n"  # fmt: skip


def gan_table_csv(standings: Sequence[GanStanding]) -> str:
    """The ranking with three columns a figure: mean, lowest and highest."""
    shown = _shown(standings)
    plain = [
        field.name for field in dataclasses.fields(GanStanding) if field.name not in ("figures", "reason")
    ]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*plain, *(f"{name}{end}" for name in shown for end in ("", "_low", "_high")), "reason"])
    for row in standings:
        spreads = [row.figures.get(name) for name in shown]
        values: list[Any] = [
            value
            for spread in spreads
            for value in (("", "", "") if spread is None else (spread.mean, spread.low, spread.high))
        ]
        writer.writerow([*(getattr(row, name) for name in plain), *values, row.reason])
    return buffer.getvalue()


def gan_reading(
    standings: Sequence[GanStanding], *, budget: str, num_seeds: int, panel: str, judge: str
) -> str:
    """A paragraph: who came first, by how much, and what the table cannot tell.

    Args:
        standings: in order.
        budget: of a run, in words.
        num_seeds: runs an entrant.
        panel: what was judged on, in words.
        judge: what LPIPS was measured by; empty where quality is by HFEN.
    """
    sentences = []
    best = gan_winner(standings)
    if best is None:
        sentences.append("No entrant stayed healthy in all of its runs, so none is named the better one.")
    elif len(standings) > 1:
        second = standings[1]
        here = f"{best.label} comes first with quality {best.figures['quality'].text()}"
        if _was_unstable(second):
            sentences.append(f"{here}; no other entrant stayed healthy in all of its runs.")
        else:
            gap = _mean(best, "quality") - _mean(second, "quality")
            apart = best.figures["quality"].low > second.figures["quality"].high
            said = (
                "the ranges over seeds do not meet"
                if apart and num_seeds > 1
                else "which is within what seeds alone change"
                if num_seeds > 1
                else "with one seed each, which says nothing of chance"
            )
            sentences.append(f"{here}, {gap:.3f} ahead of {second.label}; {said}.")
    for row in standings:
        if row.num_collapsed or row.num_failed:
            parts = [
                f"{count} of {row.num_runs} runs {what}"
                for count, what in ((row.num_collapsed, "collapsed"), (row.num_failed, "failed"))
                if count
            ]
            sentences.append(f"{row.label}: {' and '.join(parts)} ({row.reason}).")
    gains = [row for row in standings if "gain_psnr" in row.figures]
    if len(gains) > 1:
        fidelity = max(gains, key=lambda row: _mean(row, "gain_psnr"))
        sentences.append(
            f"Nearest to the truth pixel by pixel is {fidelity.label} "
            f"({_mean(fidelity, 'gain_psnr'):+.2f} dB over bicubic); quality and PSNR reward different things."
        )
    if 1 < num_seeds < _FEW_SEEDS:
        sentences.append(f"{num_seeds} seeds are too few to tell a difference from chance.")
    scatter = (
        "the range over seeds says how much training scatters and" if num_seeds > 1 else "the table says"
    )
    sentences.append(
        f"Each run had {budget}. All were judged on {panel}: {scatter} nothing about other patients, scanners or "
        "degradations."
    )
    sentences.append(
        f"Quality is what is gained over bicubic in LPIPS by {judge}, a network trained on photographs; it is no "
        "measure of diagnostic value."
        if judge
        else "Quality is what is gained over bicubic in HFEN, as no extractor was at hand for LPIPS."
    )
    if len(standings) > 1:
        sentences.append(
            "Entrants differ in several things at once (generator, losses, the weights between them, optimiser): the "
            "table says which whole recipe did better at this size and in this budget, not which part of it did, nor "
            "what the published networks do at full size and length."
        )
    return " ".join(sentences) + "\n"


def _was_unstable(row: GanStanding) -> bool:
    return row.num_collapsed + row.num_failed > 0


def _mean(row: GanStanding, name: str) -> float:
    return row.figures[name].mean if name in row.figures else -math.inf


def _shown(standings: Sequence[GanStanding]) -> list[str]:
    return [name for name in FIGURES if any(name in row.figures for row in standings)]


def _average(plays: Sequence[Play], name: str) -> float:
    return float(np.mean([play[name] for play in plays])) if plays else 0.0
