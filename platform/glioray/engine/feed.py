"""This rank's batches, from the slice cache of its node."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from glioray.cases.manifest import CaseEntry
from glioray.config import PreprocessConfig
from glioray.engine.collectives import Ranks, gather, reduce_max
from glioray.engine.lost import check_lost
from glioray.engine.run import Fill, RunPlan
from glioray.engine.splits import INFLATED, split_store
from glioray.errors import CaseError, DataError
from glioray.progress import IN_LOG
from glioray.slices.cache import SliceCache
from glioray.slices.preprocess import SliceStack
from glioray.slices.store import EpochSampler, SliceFeed, SliceStore

_log = logging.getLogger(__name__)


def median_spacing(entries: Sequence[CaseEntry]) -> tuple[float, float, float]:
    """Compute the median voxel size of cases along X, Y, Z in mm."""
    x, y, z = np.median([entry.spacing_mm for entry in entries], axis=0).tolist()
    return x, y, z


def load_slices(
    plan: RunPlan,
    ranks: Ranks,
    fill: Fill,
    device: torch.device,
    train: Sequence[CaseEntry],
    mine: Sequence[CaseEntry],
) -> tuple[SliceFeed, list[tuple[SliceStack, ...]], dict[str, str]]:
    """Build this rank's batches, and load the stacks of the cases it validates on.

    A case that one rank cannot decode is left out on all of them: its reason is by its id in what is returned last.

    Training cases are dealt to ranks, and the ranks of a node pool theirs: each node decodes its own part once, and
    every rank draws from all slices of its node.

    Args:
        plan: the run.
        ranks: all ranks of the run, and which one this is.
        fill: brings cases into this node's slice cache.
        device: of this rank.
        train: the cases to train on, the same on each rank.
        mine: the cases whose stacks this rank needs for validation.

    Raises:
        DataError: there is nothing to train on, the cache cannot hold it, or too many cases can no longer be decoded.
    """
    if not train:
        raise DataError(
            "no labelled case is left to train on; check the report of jobs/prepare.py and the split"
        )
    node_ranks = [rank for node, rank in gather((ranks.node_rank, ranks.rank)) if node == ranks.node_rank]
    pool = [entry for number, entry in enumerate(train) if number % ranks.world_size in node_ranks]
    if not pool:
        raise DataError(
            f"{len(train)} training cases are too few for {ranks.world_size} workers; use fewer --workers"
        )
    config = plan.config
    preprocess = config.preprocess
    part = {entry.case_id: entry for entry in [*pool[ranks.local_rank :: ranks.local_world_size], *mine]}
    lost: dict[str, CaseError] = {}
    # No rank goes on before all have filled their part.
    for found in gather(dict(fill(plan.manifest.data, list(part.values()), preprocess, plan.cache))):
        lost |= found
    left_out = check_lost(plan, lost)
    if left_out and ranks.is_first:
        _log.warning("left out: %s", left_out, extra=IN_LOG)
    stacks = [
        _cached(plan, [entry for entry in entries if entry.case_id not in lost]) for entries in (pool, mine)
    ]
    if not stacks[0]:
        raise DataError(f"no training case is left on this node: {left_out}")
    store = SliceStore([stack for case in stacks[0] for stack in case], preprocess)
    if ranks.local_rank == 0:
        warmed = store.warm(plan.cache.memory_bytes)
        _log.info(
            "%d slices of %d cases on this node, %.1f GB read ahead", len(store), len(stacks[0]), warmed / 1e9
        )
        _warn_of_cut_tumour(stacks[0], preprocess)
    node_batch = config.train.batch_size // ranks.world_size * ranks.local_world_size
    seed = config.train.seed + 1_000_003 * ranks.node_rank
    place = (ranks.local_rank, ranks.local_world_size)
    allowed: NDArray[np.bool_] | None = None
    if config.sample.slice_split is not None:
        allowed, _, _ = split_store(store, config.sample, config.train.seed)
        if ranks.is_first:
            _log.warning(INFLATED)
    tumour_px, case_numbers = store.tumour_px(), store.case_numbers()
    sampler = EpochSampler(tumour_px, case_numbers, config.sample, node_batch, seed, allowed)
    num_steps = int(reduce_max(sampler.num_steps))
    feed = SliceFeed(store, sampler, place, num_steps, pin=device.type == "cuda")
    return feed, stacks[1], {case_id: str(error) for case_id, error in sorted(lost.items())}


def _cached(plan: RunPlan, entries: Sequence[CaseEntry]) -> list[tuple[SliceStack, ...]]:
    cache = SliceCache(plan.cache, plan.config.preprocess)
    found = [cache.get(entry) for entry in entries]
    if any(stack is None for stack in found):
        raise DataError(
            f"the slice cache '{plan.cache.folder}' cannot hold this run's cases at once; raise "
            "GLIORAY_CACHE_DISK_GB or point GLIORAY_CACHE at a larger disk"
        )
    return [stack for stack in found if stack is not None]


def _warn_of_cut_tumour(cases: Sequence[tuple[SliceStack, ...]], preprocess: PreprocessConfig) -> None:
    """Warn of tumour outside the slices' window, which training never sees."""
    whole = [sum(stacks[0].label_voxels[1:]) for stacks in cases]
    inside = [int(np.count_nonzero(stacks[0].mask)) for stacks in cases if stacks[0].mask is not None]
    num_cut = sum(a > b for a, b in zip(whole, inside, strict=True))
    if num_cut:
        _log.warning(
            "%d of %d cases have tumour outside the window of %d x %d pixels, %.1f %% of all of it; raise preprocess.size",
            num_cut, len(cases), *preprocess.size, 100 * (1 - sum(inside) / sum(whole)),
        )  # fmt: skip
