"""What each worker of a run reserves on the cluster, and waiting until there is room for it."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util import placement_group, remove_placement_group

from glioray.engine.workers import Workers
from glioray.errors import RoomError, UsageError

_log = logging.getLogger(__name__)

TASK_CPUS = 0.25
"""Of a CPU, for the check of a case: a fraction, so that it runs beside workers that hold nearly all of them."""

_FIRST_LINE_S, _LINE_S = 5.0, 30.0
_GPU_TYPE = "ray.io/accelerator-type"

Node = Mapping[str, float]
"""The resources of a node, by Ray's names."""


@dataclass(frozen=True, kw_only=True)
class WorkerResources:
    """The resources of one of several equal workers.

    Attributes:
        num_cpus: that it reserves.
        num_gpus: likewise.
        num_threads: of torch.
        labels: that its node must have.
    """

    num_cpus: float
    num_gpus: float
    num_threads: int
    labels: dict[str, str] = field(default_factory=dict)

    def resources(self) -> dict[str, float]:
        """Return them as Ray names them."""
        return {"CPU": self.num_cpus, **({"GPU": self.num_gpus} if self.num_gpus else {})}


def worker_resources(num_workers: int, asked: Workers | None = None) -> WorkerResources:
    """What each of `num_workers` equal workers reserves, once the cluster is large enough for them.

    What is not asked for is a GPU where there are any, and an equal part of the CPUs. Half a CPU of each node stays free
    for Ray Data, which decodes beside the workers. Where other jobs hold CPUs, it is a part of what they leave, or, if
    that is too little, of the whole: Ray then waits for them to end.

    Raises:
        UsageError: a Ray of this machine alone is too small, or a cluster still is after the minutes to wait.
    """
    asked = asked or Workers()
    fewest = num_workers if asked.fewest is None else min(asked.fewest, num_workers)
    need = _needs(asked)
    if not _holds(_nodes(asked), need, fewest):
        _wait_for_nodes(fewest, need, asked)
    nodes = _nodes(asked)
    gpus = need.get("GPU", 0.0)
    usable = [node for node in nodes if node.get("GPU", 0.0) >= gpus]
    if asked.num_cpus is not None:
        return WorkerResources(
            num_cpus=asked.num_cpus,
            num_gpus=gpus,
            num_threads=max(1, int(asked.num_cpus)),
            labels=_labels(asked),
        )
    # As many as fit now, where a run may have fewer workers than it would like.
    while (num_cpus := _largest_share(num_workers, usable, gpus)) is None and num_workers > fewest:
        num_workers -= 1
    cpus = [node.get("CPU", 0.0) for node in usable]
    if num_cpus is None:
        raise UsageError(
            f"{num_workers} workers do not fit the cluster's {sum(cpus):g} CPUs beside the half of one that a node "
            "keeps for reading data; ask for fewer"
        )
    # The epsilon absorbs rounding: free CPUs are sums of fractions.
    left = ray.available_resources().get("CPU", 0.0) - 2 * TASK_CPUS
    free = max(0.0, math.floor(4 * left / num_workers + 1e-6) / 4)
    if not free:
        _log.info("waiting for %d x %g CPU: other jobs use all CPUs", num_workers, num_cpus)
    threads = max(1, min(int(sum(cpus)) // num_workers, int(max(cpus))))
    return WorkerResources(
        num_cpus=min(num_cpus, free or num_cpus), num_gpus=gpus, num_threads=threads, labels=_labels(asked)
    )


def wait_for_room(num_workers: int, resources: WorkerResources, wait_minutes: float) -> None:
    """Wait until so many workers can start, and say what is asked for and what there is; a cluster may grow meanwhile.

    Raises:
        RoomError: there is no room after `wait_minutes`.
    """
    bundles = [resources.resources()] * num_workers
    selector: dict[str, Any] = (
        {"bundle_label_selector": [resources.labels] * num_workers} if resources.labels else {}
    )
    # Reserved and let go at once: a group that waits is what an autoscaler sees.
    group = placement_group(bundles, strategy="PACK", **selector)
    began, limit_s = time.monotonic(), 60 * wait_minutes
    try:
        # Room that is there takes a moment to reserve too, however short the wait.
        line_s = _FIRST_LINE_S
        while not group.wait(line_s):
            passed_s = time.monotonic() - began
            line_s = min(_LINE_S, limit_s - passed_s)
            asked = f"{num_workers} x {_in_words(bundles[0], resources.labels)}"
            there = f"{_cluster_in_words()}, {_in_words(ray.available_resources())} of them free"
            if line_s <= 0:
                raise RoomError(
                    f"no room for {asked} in {wait_minutes:g} minutes: the cluster has {there}; ask for less (--workers, "
                    "--worker-cpus, --worker-gpus, --gpu-type), add nodes, or wait longer (--wait-minutes)"
                )
            _log.info(
                "waiting for room for %s, %.0f s so far and %.1f minutes at most: the cluster has %s",
                asked, passed_s, wait_minutes, there,
            )  # fmt: skip
    finally:
        remove_placement_group(group)


def default_concurrency(num_workers: int) -> int:
    """Return how many trials of `num_workers` fit the cluster at once, one GPU per worker, or one CPU without GPUs."""
    found = ray.cluster_resources()
    return max(1, int(found.get("GPU", 0) or found.get("CPU", 1)) // num_workers)


def _needs(asked: Workers) -> dict[str, float]:
    """What a worker cannot do without: a whole CPU where none is asked for, so that workers are at most CPUs."""
    num_gpus = asked.num_gpus
    if num_gpus is None:
        num_gpus = float(asked.gpu_type is not None or ray.cluster_resources().get("GPU", 0.0) >= 1)
    num_cpus = asked.num_cpus
    if num_cpus is None:
        num_cpus = 0.25 if num_gpus else 1.0
    return {"CPU": num_cpus, **({"GPU": num_gpus} if num_gpus else {})}


def _labels(asked: Workers) -> dict[str, str]:
    return {} if asked.gpu_type is None else {_GPU_TYPE: asked.gpu_type}


def _nodes(asked: Workers) -> list[Node]:
    """The resources of the live nodes that have the labels asked for."""
    wanted = _labels(asked).items()
    return [
        node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and wanted <= node.get("Labels", {}).items()
    ]


def _holds(nodes: Sequence[Node], need: Node, num_workers: int) -> bool:
    rooms = (min(int(node.get(name, 0.0) / amount + 1e-6) for name, amount in need.items()) for node in nodes)
    return sum(rooms) >= num_workers


def _wait_for_nodes(num_workers: int, need: Node, asked: Workers) -> None:
    if (os.environ.get("RAY_ADDRESS") or "local") != "local":
        wait = WorkerResources(
            num_cpus=need["CPU"], num_gpus=need.get("GPU", 0.0), num_threads=1, labels=_labels(asked)
        )
        wait_for_room(num_workers, wait, asked.wait_minutes)
        return
    raise UsageError(
        f"{_count(num_workers, 'worker')} of {_in_words(need, _labels(asked))} each were asked for but this machine has "
        f"{_in_words(ray.cluster_resources())}; ask for fewer, or set RAY_ADDRESS to a cluster"
    )


def _largest_share(num_workers: int, nodes: Sequence[Node], num_gpus: float) -> float | None:
    """Return the most CPUs, in quarters, that each worker can have on these nodes; None if they do not fit."""
    rooms = [
        (
            node.get("CPU", 0.0) - 2 * TASK_CPUS + 1e-6,
            int(node["GPU"] / num_gpus + 1e-6) if num_gpus else num_workers,
        )
        for node in nodes
    ]
    for quarters in range(int(4 * max((cpus for cpus, _ in rooms), default=0)), 0, -1):
        if sum(min(int(max(cpus, 0) / (quarters / 4)), gpus) for cpus, gpus in rooms) >= num_workers:
            return quarters / 4
    return None


def _in_words(resources: Node, labels: Mapping[str, str] | None = None) -> str:
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    kind = f" of the type {labels[_GPU_TYPE]}" if labels else ""
    return _count(cpus, "CPU") + (f" and {_count(gpus, 'GPU')}{kind}" if gpus or kind else "")


def _cluster_in_words() -> str:
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    return f"{_in_words(ray.cluster_resources())} on {_count(num_nodes, 'node')}"


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
