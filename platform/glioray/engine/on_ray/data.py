"""Ray Data: cases streamed from storage and preprocessed across the cluster."""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import ray
import ray.data
from ray.exceptions import RayTaskError

from glioray.cases.layouts import RECOGNISED, CaseFiles, Problem, discover_cases
from glioray.cases.load import load_case
from glioray.cases.manifest import CaseEntry, Manifest, build_manifest, examine_case, load_manifest
from glioray.cases.statistics import CaseStatistics, describe_case
from glioray.config import PreprocessConfig
from glioray.errors import DataError, GliorayError
from glioray.progress import log_progress
from glioray.serialization import fingerprint, from_dict, to_dict
from glioray.slices.cache import CacheConfig, SliceCache
from glioray.slices.preprocess import SliceStack, preprocess
from glioray.storage import Unlisted, join_uri, open_storage

_log = logging.getLogger(__name__)

# A fraction of a CPU, so that decoding runs beside workers that hold nearly all of them.
TASK_CPUS = 0.25

# Increased when manifests state more, so that those of older versions are not reused.
_INDEX_VERSION = 2

# Memory that finding a brain in a head takes beside a case: by that share, more than nodes have a CPU.
_STRIP_BYTES = 5 << 28


def check_cases(
    data: str, cases: Sequence[CaseFiles], *, is_stated: bool = False
) -> Iterator[tuple[CaseEntry | None, list[Problem]]]:
    """Run `check_case` on every case across the cluster, in order of completion."""
    for entry, problems, _ in describe_cases(data, cases, None, is_stated=is_stated):
        yield entry, problems


def describe_cases(
    data: str, cases: Sequence[CaseFiles], pictured: Collection[str] | None, *, is_stated: bool = False
) -> Iterator[tuple[CaseEntry | None, list[Problem], CaseStatistics | None]]:
    """Run `check_cases` and compute the statistics of each good case; each case is read once.

    Args:
        data: the URI that contains the cases.
        cases: their files.
        pictured: ids of the cases to draw too; None to skip all statistics.
        is_stated: as of `check_case`.
    """
    if not cases:
        return

    def examine(row: dict[str, Any]) -> dict[str, Any]:
        files = from_dict(CaseFiles, json.loads(row["item"]))
        entry, problems, case = examine_case(open_storage(data), files, is_stated=is_stated)
        found = [to_dict(problem) for problem in problems]
        statistics = None
        if case is not None and pictured is not None:
            statistics = describe_case(case, with_picture=files.case_id in pictured)
        return {
            "answer": json.dumps([None if entry is None else to_dict(entry), found]),
            "statistics": pickle.dumps(statistics),
        }

    items = [json.dumps(to_dict(files)) for files in cases]
    quiet_data()
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(examine, num_cpus=TASK_CPUS)
    for row in _with_progress(dataset.iter_rows(), len(items), "checking"):
        entry, problems = json.loads(row["answer"])
        yield (
            None if entry is None else from_dict(CaseEntry, entry),
            [from_dict(Problem, problem) for problem in problems],
            pickle.loads(row["statistics"]),
        )


def index_data(data: str, manifests: str, *, seed: int = 0, labels: str | None = None) -> Manifest:
    """Build the manifest of a data set without one: find, check and count every case.

    Args:
        data: the URI that contains the cases.
        manifests: URI of earlier manifests; one is reused while names, sizes and stamps of the objects are unchanged.
        seed: of the folds.
        labels: the label convention of all masks, if the user states it.

    Raises:
        DataError: no object is named like a case.
        UsageError: several label conventions fit the masks.
    """
    storage = open_storage(data)
    unlisted: list[Unlisted] = []
    listing = [(item.key, item.size_bytes, item.stamp) for item in storage.list(unlisted=unlisted)]
    facts = [_INDEX_VERSION, storage.uri, listing, [item.key for item in unlisted], seed, labels]
    kept, key = open_storage(manifests), f"{fingerprint(facts)}.json"
    if kept.exists(key):
        _log.info("the manifest of %s is known: %s", data, join_uri(kept.uri, key))
        return load_manifest(join_uri(kept.uri, key))
    cases, problems = discover_cases(storage, labels=labels)
    if not cases and not problems:
        raise DataError(f"'{data}' holds {len(listing)} objects but no case; {RECOGNISED}")
    checked = check_cases(data, cases, is_stated=labels is not None)
    manifest = build_manifest(storage.uri, [(None, problems), *checked], seed=seed)
    manifest.save(kept, key)
    return manifest


def fill_cache(data: str, entries: Sequence[CaseEntry], config: PreprocessConfig, cache: CacheConfig) -> None:
    """Fill this node's cache with the cases it lacks, decoding them across the cluster.

    A case decoded on this node goes straight into its cache; others arrive through the object store.

    Raises:
        CaseError: a case can no longer be decoded.
    """
    here = SliceCache(cache, config)
    missing = [entry for entry in entries if not here.has(entry)]
    if not missing:
        return
    by_id = {entry.case_id: entry for entry in missing}
    for stacks in _with_progress(stream_cases(data, missing, config, cache), len(missing), "decoding"):
        here.put(by_id[stacks[0].case_id], stacks)


def stream_cases(
    data: str, entries: Sequence[CaseEntry], config: PreprocessConfig, cache: CacheConfig
) -> Iterator[tuple[SliceStack, ...]]:
    """Yield the stacks of each case, decoded across the cluster, in order of completion.

    The node that decodes a case reads it from its cache, or adds it.

    Raises:
        CaseError: a case can no longer be decoded.
    """

    def decode(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        there = SliceCache(cache, config)
        for item in batch["item"]:
            entry = from_dict(CaseEntry, json.loads(item))
            stacks = there.get(entry)
            if stacks is None:
                stacks = prepare_case(data, entry, config)
                there.put(entry, stacks)
            for stack in stacks:
                yield _to_rows(stack)

    quiet_data()
    items = [json.dumps(to_dict(entry)) for entry in entries]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        decode, batch_size=1, num_cpus=TASK_CPUS, memory=_STRIP_BYTES if config.skull_strip else None
    )
    cases: dict[str, list[SliceStack]] = {}
    try:
        for stack in _assemble(
            dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)
        ):
            stacks = cases.setdefault(stack.case_id, [])
            stacks.append(stack)
            if len(stacks) == len(config.planes):
                yield tuple(cases.pop(stack.case_id))
    except RayTaskError as error:
        if isinstance(error.cause, GliorayError):
            raise error.cause from None
        raise


def quiet_data() -> None:
    """Turn off Ray Data's progress bars in this process; our own log lines say what is left."""
    logger, context = logging.getLogger("ray.data"), ray.data.DataContext.get_current()
    logger.setLevel(logging.ERROR)  # it warns about being turned off
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logger.setLevel(logging.WARNING)


def prepare_case(data: str, entry: CaseEntry, config: PreprocessConfig) -> tuple[SliceStack, ...]:
    """Load and preprocess one case in this process."""
    return preprocess(load_case(open_storage(data), entry.described_files), config)


def _to_rows(stack: SliceStack) -> dict[str, Any]:
    """A row a slice, so that the arrays stay fixed-shape tensors; what is the stack's stands in each row."""
    names = ("case_id", "plane", "origin", "shape", "spacing_mm", "label_voxels")
    count = len(stack.images)
    plain = {name: getattr(stack, name) for name in names}
    meta = json.dumps({**plain, "has_mask": stack.mask is not None, "num_slices": count})
    masks = (
        np.zeros((count, *stack.images.shape[2:]), np.uint8) if stack.mask is None else np.asarray(stack.mask)
    )
    return {
        "image": np.asarray(stack.images),
        "mask": masks,
        "index": np.arange(count),
        "meta": np.array([meta] * count),
    }


def _assemble(blocks: Iterable[dict[str, Any]]) -> Iterator[SliceStack]:
    """Stacks out of blocks of rows: Ray Data joins small outputs of a task into one block and cuts large ones."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for block in blocks:
        for text in dict.fromkeys(block["meta"].tolist()):
            rows = block["meta"] == text
            found = parts.setdefault(text, [])
            found.append({name: block[name][rows] for name in ("image", "mask", "index")})
            meta = json.loads(text)
            if sum(len(part["index"]) for part in found) < meta.pop("num_slices"):
                continue
            del parts[text]
            order = np.argsort(np.concatenate([part["index"] for part in found]))
            images, masks = (
                np.concatenate([part[name] for part in found])[order] for name in ("image", "mask")
            )
            has_mask = meta.pop("has_mask")
            plain: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in meta.items()
            }
            yield SliceStack(images=images, mask=masks if has_mask else None, **plain)


def _with_progress(rows: Any, total: int, verb: str) -> Iterator[Any]:
    stage, began = f"{verb} {total} cases", time.monotonic()
    for number, row in enumerate(rows, 1):
        yield row
        # The first one waits for processes to start, and says nothing of the others.
        if number > 1 or total == 1:
            log_progress(_log, stage, 1.0 if number == total else (number - 1) / total, began)
        else:
            began = time.monotonic()
