"""The runs of a comparison side by side on the cluster; each leaves `play.json` in its storage when it is over.

So a comparison of the same name goes on with what is missing: after a crash, or with more entrants.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from glioray.engine.on_ray.connect import WorkerResources, worker_resources
from glioray.engine.run import RunPlan
from glioray.storage import open_storage

_log = logging.getLogger(__name__)

PLAY_FILE = "play.json"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One entrant with one seed; on one fold, where entrants are cross-validated."""

    label: str
    seed: int
    plan: RunPlan
    fold: int | None = None

    def identity(self) -> dict[str, Any]:
        """What tells its play from the others'."""
        return {"label": self.label, "fold": self.fold, "seed": self.seed, "storage": self.plan.storage}

    def failed(self, reason: str, *, again: bool) -> dict[str, Any]:
        """The play of a run that failed; `again` says that it is played again when the comparison goes on."""
        failed = {"state": "failed", "reason": reason, "again": again, "cases": {}, "history": []}
        return {**self.identity(), **failed}


Play = dict[str, Any]
"""What is left of a run, as JSON: its identity, "state", "reason" and what the comparison keeps."""


def play_all(
    runs: Sequence[Run],
    play: Callable[[Run, WorkerResources], Play],
    told: Callable[[Play], str],
    num_concurrent: int,
) -> list[Play]:
    """What each run left behind, in order; those that left nothing yet run now.

    Args:
        runs: of equal resources.
        play: does a run on a worker, leaves its play in the run's storage if it is to be kept, and returns it.
        told: the outcome of a play that did not fail, in a few words.
        num_concurrent: runs at once.
    """
    plays: dict[int, Play] = {}
    for number, run in enumerate(runs):
        storage = open_storage(run.plan.storage)
        if storage.exists(PLAY_FILE):
            # Where it lies and what it is called now, not when it was played.
            plays[number] = {**json.loads(storage.read(PLAY_FILE)), **run.identity()}
    if plays:
        _log.info("%d of %d runs are there already", len(plays), len(runs))
    waiting = [number for number in range(len(runs)) if number not in plays]
    if not waiting:
        return [plays[number] for number in range(len(runs))]
    num_missing, began = len(waiting), time.monotonic()
    num_workers = runs[0].plan.config.train.num_workers
    # By all runs, not by those that are missing: the last ones of a tournament that goes on would have more of the
    # machine than the others had in the same minutes.
    share = worker_resources(min(num_concurrent, len(runs)) * num_workers)
    resources = share.resources() if num_workers == 1 else {"CPU": 0.01}
    task = ray.remote(play).options(
        num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0), max_retries=2
    )
    going: dict[Any, int] = {}
    while waiting or going:
        while waiting and len(going) < num_concurrent:
            number = waiting.pop(0)
            going[task.remote(runs[number], share)] = number
        (done,), _ = ray.wait(list(going), num_returns=1)
        number = going.pop(done)
        run = runs[number]
        try:
            plays[number] = ray.get(done)
        except ray.exceptions.RayError as error:
            plays[number] = run.failed(str(error).strip().splitlines()[-1], again=True)
        num_done = num_missing - len(waiting) - len(going)
        left_s = (time.monotonic() - began) / num_done * (num_missing - num_done)
        outcome = plays[number]
        said = f"failed: {outcome['reason']}" if outcome["state"] == "failed" else told(outcome)
        fold = "" if run.fold is None else f", fold {run.fold}"
        _log.info(
            "run %d/%d, %s%s, seed %d: %s; %.0f minutes left",
            num_done, num_missing, run.label, fold, run.seed, said, left_s / 60,
        )  # fmt: skip
    return [plays[number] for number in range(len(runs))]
