"""What a run asks of the cluster; apart from `run`, for processes that need no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Workers:
    """What a run asks of the cluster for each of its workers.

    Attributes:
        num_cpus: that a worker reserves; None: an equal part of the cluster's.
        num_gpus: likewise; None: one where the cluster has any.
        gpu_type: of the nodes, as Ray labels them, such as A100 or H200; None: any.
        fewest: workers with which the run begins, and goes on after a node is lost; None: all of them.
        wait_minutes: for a cluster that has no room.
    """

    num_cpus: float | None = None
    num_gpus: float | None = None
    gpu_type: str | None = None
    fewest: int | None = None
    wait_minutes: float = 10.0
