"""Agreement between ranks; each is the identity where there is one rank."""

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
    """Where this process stands among the run's processes, and among those of its node."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this rank logs, writes and speaks for the run."""
        return self.rank == 0


def reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks, through which gradients flow.

    DDP averages gradients over ranks; this sum's backward adds them up over ranks, so that a loss of
    global sums, computed alike on each rank, has the gradient that one rank would have.
    """
    return all_reduce_sum(tensor) if _several() else tensor


def reduce_max(value: float) -> float:
    """The largest over ranks: for decisions that all must take together."""
    if not _several():
        return value
    tensor = torch.tensor([value], dtype=torch.float64, device=_device())
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return float(tensor)


def from_first(value: float) -> float:
    """Rank 0's value: clocks differ, and a schedule must not."""
    if not _several():
        return value
    tensor = torch.tensor([value], dtype=torch.float64, device=_device())
    dist.broadcast(tensor, 0)
    return float(tensor)


def gather(value: T) -> list[T]:
    """Every rank's value, in the order of ranks."""
    if not _several():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for every rank."""
    if _several():
        dist.barrier()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
