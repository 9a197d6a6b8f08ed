"""A training run on the cluster: ranks placed, retried and joined by Ray Train."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from glioray.engine.checkpoint import LATEST, PROGRESS
from glioray.engine.collectives import Ranks
from glioray.engine.on_ray.away import outlast
from glioray.engine.on_ray.faults import persist
from glioray.engine.on_ray.gauges import train_measured
from glioray.engine.on_ray.placement import place_data
from glioray.engine.on_ray.resources import WorkerResources, wait_for_room, worker_resources
from glioray.engine.run import RunPlan
from glioray.progress import log_to_stderr
from glioray.storage import Storage, join_uri, open_storage

_log = logging.getLogger(__name__)

RESULT_FILE = "result.json"
COLLECTIVE_TIMEOUT_S = 1800
"""How long a rank waits for another in a collective (gloo, NCCL, a report) before the run restarts. Ray notices a rank
that has died within seconds and ends the others; this is for one that hangs. Longer than what a rank may do alone: its
part of the decoding before the first step, a checkpoint, figures."""


def run_training(
    plan: RunPlan,
    *,
    resources: WorkerResources | None = None,
    callbacks: Sequence[Any] = (),
    to_report: Callable[[dict[str, float]], dict[str, Any]] = dict,
) -> dict[str, Any]:
    """Train on `plan.config.train.num_workers` ranks, over failures from the newest saved state on (`faults.RULES`).

    Where the plan allows fewer ranks, as many as there is room for start, and Ray Train starts them anew, from that
    state, when nodes are lost or come. The cases are decoded before the ranks start.

    Args:
        plan: the run.
        resources: of each rank; by default what the plan asks for.
        callbacks: of Ray Train.
        to_report: maps the metrics of a validation to what Ray receives.

    Returns: the result of `engine.run.train_run` on the first rank.

    Raises:
        GliorayError: the error of a worker, there is no room for the ranks, or too many cases can no longer be decoded.
    """
    num_workers, asked = plan.config.train.num_workers, plan.workers
    resources = resources or worker_resources(num_workers, asked)
    fewest = num_workers if asked.fewest is None else asked.fewest
    # In dicts because mypy sees the signatures of older configs.
    quiet: dict[str, Any] = {"logging_config": ray.train.LoggingConfig(log_level="WARNING")}
    scaling: dict[str, Any] = {
        "num_workers": num_workers if fewest == num_workers else (fewest, num_workers),
        "label_selector": resources.labels or None,
    }
    storage = open_storage(plan.storage)

    def prepare() -> None:
        place_data([plan], everywhere=False)
        storage.delete(RESULT_FILE)

    outlast(prepare)
    # By default a report waits for ever. Ray hands it on to the workers.
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", str(COLLECTIVE_TIMEOUT_S))

    def fit() -> None:
        # Ray Train would wait for ever, and say nothing.
        wait_for_room(fewest, resources, asked.wait_minutes)
        # Ray Train itself would retry every error; a trainer of the same name resumes.
        TorchTrainer(
            _train_worker,
            train_loop_config={"plan": plan, "num_threads": resources.num_threads, "to_report": to_report},
            torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
            scaling_config=ray.train.ScalingConfig(
                use_gpu=resources.num_gpus > 0,
                resources_per_worker=resources.resources(),
                **scaling,
            ),
            run_config=ray.train.RunConfig(
                name=Path(plan.storage).name,
                storage_path=join_uri(plan.storage, "ray"),
                callbacks=list(callbacks),
                **quiet,
            ),
        ).fit()

    persist(fit, progress=lambda: _saved(storage))
    result: dict[str, Any] = json.loads(outlast(lambda: storage.read(RESULT_FILE)))
    return result


def _saved(storage: Storage) -> list[bytes]:
    """The pointers to what the run has saved, which change with each save."""
    return [storage.read(name) for name in (LATEST, PROGRESS) if storage.exists(name)]


def _train_worker(settings: dict[str, Any]) -> None:
    log_to_stderr(shown=settings["plan"].kind == "train")
    context = ray.train.get_context()
    ranks = Ranks(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        local_world_size=context.get_local_world_size(),
        node_rank=context.get_node_rank(),
    )
    plan: RunPlan = dataclasses.replace(settings["plan"], num_threads=settings["num_threads"])
    to_report = settings["to_report"]
    result = train_measured(
        plan,
        ranks,
        lambda metrics: ray.train.report(to_report(metrics)),
        # Where Ray is told that a node will be taken away, as clouds do with spot instances.
        is_leaving=lambda: ray.train.get_preemption_info() is not None,
    )
    if ranks.is_first:
        open_storage(plan.storage).write(RESULT_FILE, json.dumps(result).encode())
