"""A tournament: entrants at an equal budget, cross-validated, as parallel runs on the cluster.

Each run is one entrant on one fold with one seed; see `plays` for how they are spread and resumed.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glioray.cases.labels import CONVENTIONS
from glioray.cases.load import Case, load_case
from glioray.config import override
from glioray.engine.checkpoint import fetch_model
from glioray.engine.collectives import Ranks
from glioray.engine.on_mlflow.parent import parent_run
from glioray.engine.on_ray.compare import PLAY_FILE, Run, play_all
from glioray.engine.on_ray.connect import WorkerResources, log_to_stderr
from glioray.engine.on_ray.data import fill_cache
from glioray.engine.on_ray.train import run_training
from glioray.engine.run import RunPlan, load_history, train_run
from glioray.errors import DivergenceError, GliorayError, TrainingError, UsageError
from glioray.serialization import fingerprint, to_dict
from glioray.storage import Storage, join_uri, open_storage
from glioray.tasks.segmentation.case_metrics import case_metrics
from glioray.tasks.segmentation.comparison_pictures import PICTURES_FILE, log_pictures, mean_dice_of, slug
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.metrics import confusion
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.segmentation.standings import (
    rank_entrants,
    reading,
    standings_csv,
    standings_markdown,
    winner,
)

_log = logging.getLogger(__name__)

_KEPT = ("epoch", "minutes", "num_slices", "train_loss", "dice_mean", "dice_wt", "dice_tc", "dice_et")


@dataclass(frozen=True, kw_only=True)
class TournamentPlan:
    """A comparison on the folds of `base`'s manifest; `base`'s storage, run name and MLflow kind are its own.

    Attributes:
        base: the plan whose config each entrant replaces.
        entrants: label -> whole config.
        seeds: each entrant runs on each fold with each.
        num_concurrent: runs at once.
        budget: of a run, in words.
    """

    base: RunPlan
    entrants: Mapping[str, RunConfig]
    seeds: tuple[int, ...]
    num_concurrent: int
    budget: str


def run_tournament(plan: TournamentPlan) -> dict[str, Any]:
    """Run what is missing, rank the entrants, and leave tables and pictures in MLflow and in the storage.

    Returns: `run_id`, `winner` (None where no entrant finished all of its runs), `standings` (a dict an entrant),
    `reading`, the URIs of the tables, and the labels that `failed`, among them the `missing`: for another reason
    than that they diverged, so that the same tournament plays them again.

    Raises:
        UsageError: the name is taken by a run with other settings or other data, slices are split, or
            thresholds are to be fitted.
        TrainingError: no run succeeded.
    """
    base = plan.base
    if any(config.sample.slice_split for config in plan.entrants.values()):
        raise UsageError(
            "sample.slice_split trains on slices of every patient, and a tournament judges on patients that were not "
            "trained on; leave it out"
        )
    if any(config.postprocess.fit_thresholds for config in plan.entrants.values()):
        raise UsageError(
            "postprocess.fit_thresholds fits on a run's validation cases, and a tournament judges on those; leave it out, "
            "and fit the winner's in a training of its own"
        )
    storage = open_storage(base.storage)
    facts = {
        "entrants": list(plan.entrants),
        "num_folds": len(base.manifest.folds),
        "seeds": plan.seeds,
        "budget": plan.budget,
    }
    with parent_run(base, "comparison", **facts) as logger:
        runs = list(_runs(plan, logger.run_id))
        plays = play_all(runs, _play, _outcome, plan.num_concurrent)
        complete = [play for play in plays if play["state"] == "complete"]
        if not complete:
            raise TrainingError(
                f"none of the {len(plays)} runs succeeded; the first said: {plays[0]['reason']}"
            )
        standings = rank_entrants(plays)
        text = reading(
            standings, num_folds=len(base.manifest.folds), num_seeds=len(plan.seeds), budget=plan.budget
        )
        table = standings_markdown(standings)
        files = {"standings.md": f"{table}\n{text}", "standings.csv": standings_csv(standings)}
        for name, content in files.items():
            storage.write(name, content.encode())
            logger.log_text(content, name)
        logger.log_json(plays, "plays.json")
        log_pictures(logger, plays, standings)
        best = winner(standings)
        if best is not None:
            logger.log_metrics({"dice_mean": best.dice["mean"].mean}, step=0)
        logger.set_tags({"glioray.winner": best.label if best is not None else ""})
        _log.info("\n%s\n%s", table, text)
    return {
        "run_id": logger.run_id,
        "winner": best.label if best is not None else None,
        "standings": [dataclasses.asdict(row) for row in standings],
        "reading": text,
        "files": [join_uri(storage.uri, name) for name in files],
        "failed": sorted({play["label"] for play in plays if play["state"] == "failed"}),
        "missing": sorted({play["label"] for play in plays if play.get("again")}),
    }


def _runs(plan: TournamentPlan, parent_run_id: str) -> Iterator[Run]:
    base = plan.base
    for fold in range(len(base.manifest.folds)):
        for seed in plan.seeds:
            for label, config in plan.entrants.items():
                seeded, manifest = override(config, **{"train.seed": seed}), base.manifest.with_fold(fold)
                # Settings and split name the folder: with another budget or other folds it is another run.
                key = fingerprint([to_dict(seeded), manifest.hash])
                run = dataclasses.replace(
                    base,
                    config=seeded,
                    manifest=manifest,
                    storage=join_uri(base.storage, "runs", f"{slug(label)}-{key}"),
                    run_name=f"{base.run_name}/{label}, fold {fold}, seed {seed}, {key[:4]}",
                    kind="trial",
                    parent_run_id=parent_run_id,
                    tags={"glioray.entrant": label, "glioray.fold": str(fold)},
                    log_model=False,
                )
                yield Run(label=label, fold=fold, seed=seed, plan=run)


def _play(run: Run, share: WorkerResources) -> dict[str, Any]:
    """Train and judge one run; what is ranked of it. A divergence is a result, and kept; other errors are not."""
    log_to_stderr()
    plan = dataclasses.replace(run.plan, num_threads=share.num_threads)
    storage = open_storage(plan.storage)
    try:
        if plan.config.train.num_workers > 1:
            metrics: Any = run_training(plan, resources=share)["metrics"]
        else:
            metrics = train_run(plan, Ranks(), fill_cache)["metrics"]
        play = {
            **run.identity(),
            "state": "complete",
            "reason": "",
            "minutes": metrics["minutes"],
            "num_slices": metrics["num_slices"],
            "slices_per_s": metrics["slices_per_s"],
            "history": [{k: row[k] for k in _KEPT if k in row} for row in load_history(storage)],
            **_judge(plan, storage),
        }
    except DivergenceError as error:
        play = run.failed(str(error), again=False)
    except GliorayError as error:
        return run.failed(str(error), again=True)
    storage.write(PLAY_FILE, json.dumps(play).encode())
    return play


def _outcome(play: Mapping[str, Any]) -> str:
    return f"mean Dice {mean_dice_of(play):.3f}"


def _judge(plan: RunPlan, storage: Storage) -> dict[str, Any]:
    """The figures of the fold's cases by the run's last model, and a slice of each for the overlays."""
    with tempfile.TemporaryDirectory() as folder:
        predictor = Predictor.load(fetch_model(storage, Path(folder)))
    data = open_storage(plan.manifest.data)
    cases, pictures = {}, {}
    for entry in plan.manifest.select("val"):
        convention = None if entry.convention is None else CONVENTIONS[entry.convention]
        case = load_case(data, entry.files, convention=convention)
        assert case.mask is not None, "folds are of labelled cases"
        prediction = predictor.predict(case)
        cases[case.case_id] = {
            "patient": entry.patient_id,
            "regions": case_metrics(case, prediction),
            "confusion": confusion(case.mask, prediction).tolist(),
        }
        pictures[case.case_id] = _picture(case, prediction)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **pictures)  # type: ignore[arg-type]
    storage.write(PICTURES_FILE, buffer.getvalue())
    num_parameters = sum(parameter.numel() for parameter in predictor.net.parameters())
    return {"cases": cases, "num_parameters": num_parameters}


def _picture(case: Case, prediction: np.ndarray) -> np.ndarray:
    """(3, Y, X) float32 of the axial slice with most tumour: image, truth, prediction; drawn from the front."""
    assert case.mask is not None
    number = int((case.mask > 0).sum(axis=(0, 1)).argmax())
    channel = case.modalities.index("flair") if "flair" in case.modalities else len(case.modalities) - 1
    planes = (case.images[channel], case.mask, prediction)
    # RAS+ indices grow to the right and the front; pictures show the patient's right first, the front on top.
    return np.stack([plane[::-1, ::-1, number].T for plane in planes]).astype(np.float32)
