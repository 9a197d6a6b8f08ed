"""Collective operations over ranks; with a single rank each returns its argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from glioray.nets.blocks import all_reduce_sum

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's position among the run's processes and among those of its node."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that logs and writes files for the run."""
        return self.rank == 0


def reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks; differentiable.

    The backward pass sums gradients over ranks, and DDP then averages them: a loss computed from global
    sums, identically on each rank, gets the same gradient as on a single rank.
    """
    return all_reduce_sum(tensor) if _is_distributed() else tensor


def reduce_max(value: float) -> float:
    """The maximum over ranks, for decisions that all ranks must take alike."""
    if not _is_distributed():
        return value
    tensor = torch.tensor([value], dtype=torch.float64, device=_device())
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return float(tensor)


def from_first(value: float) -> float:
    """Rank 0's value: the ranks' clocks differ, but their schedules must not."""
    if not _is_distributed():
        return value
    tensor = torch.tensor([value], dtype=torch.float64, device=_device())
    dist.broadcast(tensor, 0)
    return float(tensor)


def gather(value: T) -> list[T]:
    """Every rank's value, ordered by rank."""
    if not _is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def is_first_rank() -> bool:
    """Whether this process is rank 0, or the only one."""
    return not _is_distributed() or dist.get_rank() == 0


def barrier() -> None:
    """Wait for every rank."""
    if _is_distributed():
        dist.barrier()


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
