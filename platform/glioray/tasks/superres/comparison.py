"""How super-resolution GANs are compared: over seeds, by their quality on one panel of validation images."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from glioray.config import with_settings
from glioray.engine.checkpoint import fetch_model
from glioray.engine.comparison import RunResult, slug
from glioray.engine.run import Fill, RunPlan, load_history
from glioray.errors import UsageError
from glioray.nets.gan import build_discriminator
from glioray.reports.tables import Table
from glioray.slices.cache import SliceCache
from glioray.storage import Storage, open_storage
from glioray.tasks.superres.collapse import fault_word
from glioray.tasks.superres.config import COLLAPSE_COMPONENTS, DEAD, GanConfig
from glioray.tasks.superres.entrants import GOAT_STUDY, gan_entrant_config
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.panel import pick_panel
from glioray.tasks.superres.panel_judge import PanelJudge
from glioray.tasks.superres.standings import (
    Standing,
    interpret,
    rank_entrants,
    run_metrics,
    text_table,
    value_table,
    winner,
)
from glioray.tasks.superres.training import panel_cases, panel_rows
from glioray.tasks.superres.trials import fault

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PICTURES_FILE = "pictures.npz"
"""In a run's storage: some images of the panel, as "0/lr", "0/bicubic", "0/sr", "0/hr", "1/lr" and so on."""

_DEFAULT_ENTRANTS = ("srgan_small", "esrgan_small", "esrgan_small_rmsprop")
_PARTS = ("lr", "bicubic", "sr", "hr")


class SuperResComparison:
    """Ranks entrants by mean quality over seeds; all have the same data, degradation, budget and panel."""

    cross_validates = False
    report_name = "comparison"
    stores_all = True
    states: tuple[str, ...] = ("collapsed", DEAD)

    def entrants(
        self, config: GanConfig, chosen: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> dict[str, GanConfig]:
        usual = GOAT_STUDY if config.recipe in GOAT_STUDY else _DEFAULT_ENTRANTS
        names = chosen.get("entrants", usual)
        if len(set(names)) < len(names):
            raise UsageError(f"--entrants is {', '.join(names)}; give each super-resolution recipe once")
        return {name: with_settings(gan_entrant_config(config, name), settings) for name in names}

    def check(self, config: GanConfig) -> None:
        """Every config can be compared."""

    def judge(self, plan: RunPlan, outcome: Mapping[str, Any], fill: Fill) -> RunResult:
        """Summarize the run's history, and keep images of the panel by its last model."""
        storage = open_storage(plan.storage)
        history = load_history(storage)
        return {
            **_verdict(history[-1], str(outcome.get("stopped", ""))),
            "minutes": history[-1]["minutes"],
            "num_slices": history[-1]["num_slices"],
            "figures": run_metrics(history, plan.config.train.batch_size),
            "history": history,
            **_keep_pictures(plan, storage, fill),
        }

    def summarize(self, result: RunResult) -> str:
        if result["state"] in self.states:
            return str(result["reason"])
        return f"quality {result['figures']['quality']:.3f}"

    def rank(self, results: Sequence[RunResult]) -> list[Standing]:
        return rank_entrants(results)

    def winner(self, standings: Sequence[Standing]) -> Standing | None:
        return winner(standings)

    def winner_metrics(self, winner: Standing) -> dict[str, float]:
        return {name: spread.mean for name, spread in winner.metrics.items()}

    def interpret(self, standings: Sequence[Standing], results: Sequence[RunResult], budget: str) -> str:
        first = _with_model(results)[0]
        return interpret(
            standings,
            budget=budget,
            num_seeds=len({result["seed"] for result in results}),
            panel=first["panel"],
            judge=first["judge"],
        )

    def text_table(self, standings: Sequence[Standing]) -> Table:
        return text_table(standings)

    def value_table(self, standings: Sequence[Standing]) -> Table:
        return value_table(standings)

    def documents(
        self, standings: Sequence[Standing], interpretation: str, results: Sequence[RunResult]
    ) -> dict[str, Any]:
        rows = [row.to_dict() for row in standings]
        return {"comparison.json": {"standings": rows, "reading": interpretation, "plays": list(results)}}

    def figures(
        self, standings: Sequence[Standing], results: Sequence[RunResult]
    ) -> Iterator[tuple[str, Figure]]:
        """Convergence, and every kept image by each entrant's first run that has a model."""
        from glioray.tasks.superres.comparison_figures import comparison_panel, convergence_figure

        own: dict[str, list[RunResult]] = {}
        for result in _with_model(results):
            own.setdefault(result["label"], []).append(result)
        histories = {label: [result["history"] for result in found] for label, found in own.items()}
        for x in ("num_slices", "minutes"):
            yield f"convergence_{x}.png", convergence_figure(histories, x)
        images = {label: _load_pictures(found[0]) for label, found in own.items()}
        reference = next(iter(images.values()))
        for number, title in enumerate(next(iter(own.values()))[0]["titles"]):
            lr, bicubic, hr = (reference[f"{number}/{part}"] for part in ("lr", "bicubic", "hr"))
            entrants = {label: kept[f"{number}/sr"] for label, kept in images.items()}
            figure = comparison_panel(entrants, lr, bicubic, hr)
            figure.suptitle(title, fontsize=8)
            yield f"panels/{number + 1}-{slug(title)}.png", figure


def _with_model(results: Sequence[RunResult]) -> list[RunResult]:
    return [result for result in results if result["state"] != "failed"]


def _verdict(last: Mapping[str, float], stopped: str) -> dict[str, str]:
    """The state of a run and its reason. By its objective, a run that ended before patience ran out can be collapsed.

    Args:
        last: metrics of its last validation.
        stopped: why it was stopped, if it was.
    """
    if not last["is_collapsed"] and last["objective"] >= -1:
        return {"state": "complete", "reason": ""}
    state = fault_word(COLLAPSE_COMPONENTS[int(last["collapse_reason"])])
    return {"state": state, "reason": stopped or f"{state} at its end: {fault(last)}"}


def _keep_pictures(plan: RunPlan, storage: Storage, fill: Fill) -> dict[str, Any]:
    """Leave images of the panel by the run's last model in its storage; returns facts on the model and the panel."""
    config: GanConfig = plan.config
    with tempfile.TemporaryDirectory() as folder:
        resolver = SuperResolver.load(fetch_model(storage, Path(folder)), agree=plan.agree)
    entries = panel_cases(plan.manifest.select("val"))
    fill(plan.manifest.data, entries, config.preprocess, plan.cache)
    cache = SliceCache(plan.cache, config.preprocess)
    stacks = [stack for entry in entries if (stack := cache.get(entry)) is not None]
    judge = PanelJudge(
        pick_panel(stacks, {entry.case_id: entry.patient_id for entry in entries}, config), config
    )
    height, width = judge.panel.hr.shape[-2:]
    judge.sr = resolver.images(judge.lr, (height, width))
    rows = panel_rows(judge)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        **{f"{number}/{part}": getattr(row, part) for number, row in enumerate(rows) for part in _PARTS},
    )
    storage.write(_PICTURES_FILE, buffer.getvalue())
    with torch.device("meta"):
        discriminator = build_discriminator(
            config.discriminator.name, channels=config.num_channels, **config.discriminator.options
        )
    num_patients = len(set(judge.panel.patients))
    return {
        "titles": [row.title for row in rows],
        "panel": f"{len(judge.panel)} images of {num_patients} patient{'s' if num_patients > 1 else ''}",
        "judge": resolver.spec.extractors.get("judge", ""),
        "num_parameters": sum(p.numel() for p in resolver.generator().parameters()),
        "num_critic_parameters": sum(p.numel() for p in discriminator.parameters()),
    }


def _load_pictures(result: RunResult) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(open_storage(result["storage"]).read(_PICTURES_FILE))) as stored:
        return dict(stored)
