"""A comparison of super-resolution GANs at an equal budget, over seeds, as parallel runs on the cluster.

All entrants share what is not theirs: slices, degradation, batches, budget and the panel that judges them.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glioray.config import override
from glioray.engine.checkpoint import fetch_model
from glioray.engine.collectives import Ranks
from glioray.engine.on_mlflow.parent import parent_run
from glioray.engine.on_mlflow.runs import RunLogger
from glioray.engine.on_ray.compare import PLAY_FILE, Play, Run, play_all
from glioray.engine.on_ray.connect import WorkerResources, log_to_stderr
from glioray.engine.on_ray.data import fill_cache
from glioray.engine.on_ray.train import run_training
from glioray.engine.run import RunPlan, load_history, train_run
from glioray.errors import DivergenceError, GliorayError, TrainingError
from glioray.nets.gan import build_discriminator
from glioray.serialization import fingerprint, to_dict
from glioray.slices.cache import SliceCache
from glioray.storage import Storage, join_uri, open_storage
from glioray.tasks.segmentation.comparison_pictures import slug
from glioray.tasks.superres.comparison_figures import comparison_panel, convergence_figure
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.panel import pick_panel
from glioray.tasks.superres.panel_judge import PanelJudge
from glioray.tasks.superres.standings import (
    gan_reading,
    gan_table_csv,
    gan_table_markdown,
    gan_winner,
    rank_gans,
    run_figures,
)
from glioray.tasks.superres.training import panel_cases, panel_rows
from glioray.tasks.superres.trials import fault

_log = logging.getLogger(__name__)

_PICTURES_FILE = "pictures.npz"
"""In a run's storage: of some images of the panel, "0/lr", "0/bicubic", "0/sr", "0/hr", "1/lr" and so on."""

_PARTS = ("lr", "bicubic", "sr", "hr")


@dataclass(frozen=True, kw_only=True)
class GanComparisonPlan:
    """A comparison on the split of `base`'s manifest; `base`'s storage, run name and MLflow kind are its own.

    Attributes:
        base: the plan whose config holds what is alike for all.
        entrants: label -> whole config.
        seeds: each entrant runs with each.
        num_concurrent: runs at once.
        budget: of a run, in words.
        out: where tables and pictures are written too; None for nowhere else than MLflow and the run's storage.
    """

    base: RunPlan
    entrants: Mapping[str, GanConfig]
    seeds: tuple[int, ...]
    num_concurrent: int
    budget: str
    out: str | None = None


def compare_gans(plan: GanComparisonPlan) -> dict[str, Any]:
    """Run what is missing, rank the entrants, and leave tables and pictures in MLflow, the storage and `out`.

    Returns: `run_id`, `winner` (None where no entrant stayed healthy in all of its runs), `standings` (a dict an
    entrant), `reading`, the URIs of the `files`, and the labels with runs that `collapsed` or `failed`, among the
    latter the `missing`: for another reason than that they diverged, so that the same comparison plays them again.

    Raises:
        UsageError: the name is taken by a run with other settings or other data.
        TrainingError: no run gave a model.
    """
    base = plan.base
    storage = open_storage(base.storage)
    facts = {"entrants": list(plan.entrants), "seeds": plan.seeds, "budget": plan.budget}
    with parent_run(base, "comparison", **facts) as logger:
        plays = play_all(list(_runs(plan, logger.run_id)), _play, _outcome, plan.num_concurrent)
        judged = [play for play in plays if play["state"] != "failed"]
        if not judged:
            raise TrainingError(
                f"none of the {len(plays)} runs gave a model; the first said: {plays[0]['reason']}"
            )
        standings = rank_gans(plays)
        text = gan_reading(
            standings,
            budget=plan.budget,
            num_seeds=len(plan.seeds),
            panel=judged[0]["panel"],
            judge=judged[0]["judge"],
        )
        table, best = gan_table_markdown(standings), gan_winner(standings)
        rows = [dataclasses.asdict(row) for row in standings]
        outs = [storage, *([open_storage(plan.out)] if plan.out else [])]
        written = {
            "comparison.md": f"{table}\n{text}",
            "comparison.csv": gan_table_csv(standings),
            "comparison.json": json.dumps({"standings": rows, "reading": text, "plays": plays}, indent=1),
        }
        for name, content in written.items():
            logger.log_text(content, name)
            for place in outs:
                place.write(name, content.encode())
        names = [*written, *_log_pictures(logger, judged, outs)]
        if best is not None:
            logger.log_metrics({name: spread.mean for name, spread in best.figures.items()}, step=0)
        logger.set_tags({"glioray.winner": best.label if best is not None else ""})
        _log.info("\n%s\n%s", table, text)
    return {
        "run_id": logger.run_id,
        "winner": best.label if best is not None else None,
        "standings": rows,
        "reading": text,
        "files": [join_uri(outs[-1].uri, name) for name in names],
        "collapsed": sorted({play["label"] for play in plays if play["state"] == "collapsed"}),
        "failed": sorted({play["label"] for play in plays if play["state"] == "failed"}),
        "missing": sorted({play["label"] for play in plays if play.get("again")}),
    }


def _runs(plan: GanComparisonPlan, parent_run_id: str) -> Iterator[Run]:
    base = plan.base
    for seed in plan.seeds:
        for label, config in plan.entrants.items():
            seeded = override(config, **{"train.seed": seed})
            # Settings and split name the folder: with another budget or other cases it is another run.
            key = fingerprint([to_dict(seeded), base.manifest.hash])
            run = dataclasses.replace(
                base,
                config=seeded,
                storage=join_uri(base.storage, "runs", f"{slug(label)}-{key}"),
                run_name=f"{base.run_name}/{label}, seed {seed}, {key[:4]}",
                kind="trial",
                parent_run_id=parent_run_id,
                tags={"glioray.entrant": label},
                log_model=False,
            )
            yield Run(label=label, seed=seed, plan=run)


def _play(run: Run, share: WorkerResources) -> Play:
    """Train one run; what is compared of it. Collapse and divergence are results, and kept; other errors are not."""
    log_to_stderr()
    plan = dataclasses.replace(run.plan, num_threads=share.num_threads)
    storage = open_storage(plan.storage)
    try:
        if plan.config.train.num_workers > 1:
            result: Mapping[str, Any] = run_training(plan, resources=share)
        else:
            result = train_run(plan, Ranks(), fill_cache)
        history = load_history(storage)
        stopped = str(result.get("stopped", ""))
        play = {
            **run.identity(),
            **_verdict(history[-1], stopped),
            "minutes": history[-1]["minutes"],
            "num_slices": history[-1]["num_slices"],
            "figures": run_figures(history, plan.config.train.batch_size),
            "history": history,
            **_keep_pictures(plan, storage),
        }
    except DivergenceError as error:
        play = run.failed(str(error), again=False)
    except GliorayError as error:
        return run.failed(str(error), again=True)
    storage.write(PLAY_FILE, json.dumps(play).encode())
    return play


def _verdict(last: Mapping[str, float], stopped: str) -> dict[str, str]:
    """The state of a run, and why. One that ended before patience was over, but bad, has collapsed too: by its objective.

    Args:
        last: figures of its last validation.
        stopped: why it was, if it was.
    """
    if not last["is_collapsed"] and last["objective"] >= -1:
        return {"state": "complete", "reason": ""}
    return {"state": "collapsed", "reason": stopped or f"collapsed at its end: {fault(last)}"}


def _outcome(play: Play) -> str:
    if play["state"] == "collapsed":
        return str(play["reason"])
    return f"quality {play['figures']['quality']:.3f}"


def _keep_pictures(plan: RunPlan, storage: Storage) -> dict[str, Any]:
    """Leaves images of the panel by the run's last model in its storage; what else is to be said of the model."""
    config: GanConfig = plan.config
    with tempfile.TemporaryDirectory() as folder:
        resolver = SuperResolver.load(fetch_model(storage, Path(folder)))
    entries = panel_cases(plan.manifest.select("val"))
    fill_cache(plan.manifest.data, entries, config.preprocess, plan.cache)
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
        critic = build_discriminator(
            config.discriminator.name, channels=config.num_channels, **config.discriminator.options
        )
    num_patients = len(set(judge.panel.patients))
    return {
        "titles": [row.title for row in rows],
        "panel": f"{len(judge.panel)} images of {num_patients} patient{'s' if num_patients > 1 else ''}",
        "judge": resolver.spec.extractors.get("judge", ""),
        "num_parameters": sum(p.numel() for p in resolver.generator().parameters()),
        "num_critic_parameters": sum(p.numel() for p in critic.parameters()),
    }


def _log_pictures(logger: RunLogger, plays: Sequence[Play], outs: Sequence[Storage]) -> list[str]:
    """Courses, and every kept image by each entrant's first run; the names of the pictures."""
    labels = list(dict.fromkeys(play["label"] for play in plays))
    first = {label: next(play for play in plays if play["label"] == label) for label in labels}
    courses = {label: [play["history"] for play in plays if play["label"] == label] for label in labels}
    figures = {f"convergence_{x}.png": convergence_figure(courses, x) for x in ("num_slices", "minutes")}
    kept = {label: _pictures(play) for label, play in first.items()}
    reference = next(iter(kept.values()))
    for number, title in enumerate(next(iter(first.values()))["titles"]):
        lr, bicubic, hr = (reference[f"{number}/{part}"] for part in ("lr", "bicubic", "hr"))
        entrants = {label: images[f"{number}/sr"] for label, images in kept.items()}
        figure = comparison_panel(entrants, lr, bicubic, hr)
        figure.suptitle(title, fontsize=8)
        figures[f"panels/{number + 1}-{slug(title)}.png"] = figure
    for name, figure in figures.items():
        logger.log_figure(figure, name)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        for place in outs:
            place.write(name, buffer.getvalue())
    return list(figures)


def _pictures(play: Play) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(open_storage(play["storage"]).read(_PICTURES_FILE))) as found:
        return dict(found)
