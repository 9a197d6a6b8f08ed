"""Slices on the nodes: each case is decoded once in the cluster, and kept in the caches that workers read.

Plain tasks rather than Ray Data: each is for a certain node, whose disk it reads or fills, and a case that cannot be
decoded is an answer like any other. They reserve no CPU, since ranks may hold all of them while they wait for their
data; what is at work at once is limited here instead.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from glioray.cases.load import load_case
from glioray.cases.manifest import CaseEntry
from glioray.config import PreprocessConfig
from glioray.engine.lost import check_lost
from glioray.errors import CaseError, GliorayError, StorageError, first_line
from glioray.progress import with_progress
from glioray.slices.cache import CacheConfig, SliceCache
from glioray.slices.preprocess import SliceStack, preprocess
from glioray.storage import open_storage

if TYPE_CHECKING:
    # torch, which decoding does without.
    from glioray.engine.run import RunPlan

_log = logging.getLogger(__name__)

# Memory that finding a brain in a head takes beside a case: by that share, more than nodes have a CPU.
_STRIP_BYTES = 5 << 28
# A node that does not say within this time what it has is left to itself.
_ASK_S = 60.0
_HEARTBEAT_S = 30.0

Stacks = tuple[SliceStack, ...]


@dataclass(frozen=True)
class _Slicing:
    """What makes slices of cases, and where they are kept."""

    data: str
    config: PreprocessConfig
    cache: CacheConfig

    @property
    def slices(self) -> SliceCache:
        """The cache of the node that asks."""
        return SliceCache(self.cache, self.config)


@dataclass
class _Placed:
    """What became of one case: `error` where a task failed, `num_copies` of those to further nodes."""

    entry: CaseEntry
    is_decoded: bool = False
    num_copies: int = 0
    error: Exception | None = None


def place_data(plans: Sequence[RunPlan], *, everywhere: bool) -> str:
    """Decode what runs need before they start, each case on one node of the cluster, spread over all of them.

    Only cases that are in no node's cache are decoded. What fails for another reason than the case itself, such as a
    node that dies meanwhile, is left to the workers, which fill what they miss.

    Args:
        plans: of the runs.
        everywhere: copy each case to the caches of all nodes, for runs on one worker each, which may be on any;
            otherwise ranks copy what is their own.

    Returns: one line on the cases that the runs go without, or "".

    Raises:
        DataError: a run would go without more cases than it may (`check_lost`).
    """
    needs: dict[_Slicing, dict[str, CaseEntry]] = {}
    for plan in plans:
        entries = needs.setdefault(_slicing_of(plan), {})
        entries |= {entry.case_id: entry for part in plan.task.cases(plan) for entry in part}
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    kind = "GPU" if any(node.get("GPU", 0) >= 1 for node in nodes.values()) else "CPU"
    targets = [name for name, node in nodes.items() if node.get(kind, 0) > 0]
    # A node for each of its CPUs, dealt in turn.
    most = max((int(nodes[name].get("CPU", 0)) for name in targets), default=0)
    decoders = [name for count in range(most) for name in targets if nodes[name].get("CPU", 0) > count]
    lost: dict[_Slicing, dict[str, CaseError]] = {}
    # On a cluster that begins without nodes, those that come fill themselves.
    for slicing, entries in needs.items() if decoders else ():
        found = _place(slicing, list(entries.values()), targets, decoders, copies=everywhere)
        lost[slicing] = {one.entry.case_id: one.error for one in found if isinstance(one.error, CaseError)}
        failed = [one for one in found if one.error is not None and not isinstance(one.error, CaseError)]
        if failed:
            _log.warning(
                "%d of %d cases are left to the workers to decode: %s",
                len(failed),
                len(entries),
                failed[0].error,
            )
        num_decoded, num_copies = sum(one.is_decoded for one in found), sum(one.num_copies for one in found)
        if num_decoded or num_copies:
            _log.info(
                "%d cases on %d node(s): %d decoded, %d copied from node to node, %d there already",
                len(entries), len(targets), num_decoded, num_copies, len(entries) - len(found),
            )  # fmt: skip
    lines = dict.fromkeys(check_lost(plan, lost.get(_slicing_of(plan), {})) for plan in plans)
    text = "; ".join(line for line in lines if line)
    if text:
        _log.warning("left out: %s", text)
    return text


def _slicing_of(plan: RunPlan) -> _Slicing:
    # As the cache has them: neighbours are joined when a batch is drawn.
    config = plan.config.preprocess.replace(neighbours=0, neighbour_step=1)
    return _Slicing(plan.manifest.data, config, plan.cache)


def fill_cache(
    data: str, entries: Sequence[CaseEntry], config: PreprocessConfig, cache: CacheConfig
) -> dict[str, CaseError]:
    """Fill this node's cache with the cases it lacks: copied from a node that has them, or else decoded here.

    Returns: case id -> error of the cases that can no longer be decoded.

    Raises:
        GliorayError: the data or the cache cannot be reached.
    """
    slicing = _Slicing(data, config, cache)
    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    missing = [entry for entry in entries if not slicing.slices.has(entry)]
    lost: dict[str, CaseError] = {}
    # The second time without the others, one of which may have died meanwhile.
    for holders in (others, []) if others else ([],):
        if not missing:
            break
        found = _place(slicing, missing, [here], [here] * _own_cpus(), holders=holders)
        lost |= {one.entry.case_id: one.error for one in found if isinstance(one.error, CaseError)}
        failed = [one for one in found if one.error is not None and not isinstance(one.error, CaseError)]
        if failed and not holders:
            assert failed[0].error is not None
            raise failed[0].error
        missing = [one.entry for one in failed]
    return lost


def prepare_case(data: str, entry: CaseEntry, config: PreprocessConfig) -> Stacks:
    """Load and preprocess one case in this process.

    Raises:
        CaseError: it cannot be decoded, is not the one that its manifest describes, or is gone.
        StorageError: its data cannot be reached.
    """
    storage = open_storage(data)
    try:
        case = load_case(storage, entry.described_files)
    except StorageError:
        gone = next((key for key in entry.described_files.checksums if not storage.exists(key)), None)
        if gone is None:
            raise
        found = "is gone since the manifest of its data set was made"
        advice = "bring the file back, or run jobs/prepare.py again"
        raise CaseError(entry.case_id, gone, found, advice) from None
    return preprocess(case, config)


def _own_cpus() -> int:
    """CPUs of this process: those that Ray gave it or, in a driver, those of its machine; at least 1."""
    try:
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    except AssertionError:  # no worker
        cpus = os.cpu_count() or 1
    return max(1, int(cpus))


def _place(
    slicing: _Slicing,
    entries: Sequence[CaseEntry],
    targets: Sequence[str],
    decoders: Sequence[str],
    *,
    holders: Sequence[str] | None = None,
    copies: bool = True,
) -> list[_Placed]:
    """Bring cases to nodes; returns what was done, without the cases that are there already.

    Args:
        slicing: of the cases.
        entries: the cases.
        targets: ids of the nodes that need them: all with `copies`, otherwise any.
        decoders: ids of the nodes that decode those which no node has, in turn; as many cases are in work at once.
        holders: ids of the nodes that may have them; by default `targets`.
        copies: whether each target needs each case.
    """
    held = _ask(slicing, entries, targets if holders is None else holders)
    if holders is None:
        targets, decoders = ([node for node in part if node in held] for part in (targets, decoders))
        if not decoders:
            return []
    steps = []
    for number, entry in enumerate(entries):
        having = [node for node, numbers in held.items() if number in numbers]
        lacking = [node for node in targets if node not in having] if copies else []
        if not having or lacking:
            steps.append((entry, having, lacking))
    placed: list[_Placed] = []
    for one in with_progress(_log, _run(slicing, steps, decoders), len(steps), "placing"):
        placed.append(one)
    return placed


def _run(
    slicing: _Slicing, steps: Sequence[tuple[CaseEntry, list[str], list[str]]], decoders: Sequence[str]
) -> Iterator[_Placed]:
    """Carry out steps (case, nodes that have it, nodes that need it), in order of completion."""
    turns = itertools.cycle(decoders)
    # A task -> its case, and whether it copies; and how many tasks of a case are left.
    running: dict[ray.ObjectRef, tuple[_Placed, bool]] = {}
    left: Counter[str] = Counter()

    def finish(num_most: int) -> Iterator[_Placed]:
        while len(left) > num_most:
            while not (ready := ray.wait([*running], num_returns=1, timeout=_HEARTBEAT_S)[0]):
                _log.info("placing cases: %d are being decoded or copied", len(left))
            (ref,) = ready
            one, is_copy = running.pop(ref)
            _take(one, ref, is_copy=is_copy)
            left[one.entry.case_id] -= 1
            if not left[one.entry.case_id]:
                del left[one.entry.case_id]
                yield one

    for entry, having, lacking in steps:
        source = having[0] if having else next(turns)
        onto = [node for node in lacking if node != source]
        memory = {"memory": _STRIP_BYTES} if slicing.config.skull_strip and not having else {}
        # mypy does not see that the task returns two.
        read: Any = _read_case.options(**_at(source), **memory)
        answer, stacks = read.remote(slicing, entry, bool(onto))
        copies = [_keep_case.options(**_at(node)).remote(slicing, entry, stacks) for node in onto]
        one = _Placed(entry)
        running |= {answer: (one, False)} | dict.fromkeys(copies, (one, True))
        left[entry.case_id] = 1 + len(copies)
        yield from finish(len(decoders) - 1)
    yield from finish(0)


def _take(one: _Placed, ref: ray.ObjectRef, *, is_copy: bool) -> None:
    """Note the result of a task of a case."""
    try:
        result = ray.get(ref)
    except RayTaskError as error:
        one.error = one.error or (error.cause if isinstance(error.cause, GliorayError) else error)
    except RayError as error:
        one.error = one.error or error
    else:
        if isinstance(result, CaseError):
            one.error = result
        elif is_copy:
            one.num_copies += result
        else:
            one.is_decoded = result


def _ask(slicing: _Slicing, entries: Sequence[CaseEntry], nodes: Sequence[str]) -> dict[str, set[int]]:
    """Id of a node -> indices of the cases in its cache, for the nodes that answer."""
    if not nodes:
        return {}
    shared: ray.ObjectRef[Sequence[CaseEntry]] = ray.put(entries)
    asked = {node: _list_held.options(**_at(node)).remote(slicing, shared) for node in nodes}
    ready, _ = ray.wait([*asked.values()], num_returns=len(asked), timeout=_ASK_S)
    held: dict[str, set[int]] = {}
    for node, ref in asked.items():
        try:
            if ref not in ready:
                raise TimeoutError(f"no answer in {_ASK_S:g} s")
            numbers: list[int] = ray.get(ref)
            held[node] = set(numbers)
        except (RayError, TimeoutError) as error:
            _log.warning("a node does not say what its slice cache holds: %s", first_line(error))
    return held


def _at(node: str) -> dict[str, Any]:
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


@ray.remote(num_cpus=0)
def _list_held(slicing: _Slicing, entries: Sequence[CaseEntry]) -> list[int]:
    """Indices of the cases that this node has."""
    slices = slicing.slices
    return [number for number, entry in enumerate(entries) if slices.has(entry)]


@ray.remote(num_cpus=0, num_returns=2)
def _read_case(
    slicing: _Slicing, entry: CaseEntry, is_wanted: bool
) -> tuple[bool | CaseError, Stacks | None]:
    """Whether this node decoded the case now, or why it cannot; and its stacks, if they are wanted elsewhere."""
    try:
        stacks, is_decoded = slicing.slices.fill(
            entry, partial(prepare_case, slicing.data, entry, slicing.config)
        )
    except CaseError as error:
        return error, None
    return is_decoded, tuple(map(_plain, stacks)) if is_wanted else None


@ray.remote(num_cpus=0)
def _keep_case(slicing: _Slicing, entry: CaseEntry, stacks: Stacks | None) -> int:
    """Add a case to this node's cache; returns how many were added."""
    if stacks is None or slicing.slices.has(entry):
        return 0
    slicing.slices.put(entry, stacks)
    return 1


def _plain(stack: SliceStack) -> SliceStack:
    """The stack with arrays that travel without a copy, which maps of files do not."""
    mask = None if stack.mask is None else np.asarray(stack.mask)
    return dataclasses.replace(stack, images=np.asarray(stack.images), mask=mask)
