"""Ray Data: cases found, checked and described across the cluster."""

from __future__ import annotations

import json
import logging
import math
import pickle
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import ray
import ray.data

from glioray.cases.layouts import RECOGNISED, CaseFiles, Problem, discover_cases
from glioray.cases.manifest import CaseEntry, Manifest, build_manifest, examine_case, load_manifest
from glioray.cases.statistics import CaseStatistics, describe_case
from glioray.engine.on_ray.away import outlast
from glioray.engine.on_ray.resources import TASK_CPUS
from glioray.errors import DataError
from glioray.progress import with_progress
from glioray.serialization import fingerprint, from_dict, to_dict
from glioray.storage import Unlisted, join_uri, open_storage

_log = logging.getLogger(__name__)

# A process takes seconds to start, as long as several cases take.
_CASES_PER_PROCESS = 4

# Increased when manifests state more, so that those of older versions are not reused.
_INDEX_VERSION = 2


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
        storage = open_storage(data)
        entry, problems, case = outlast(lambda: examine_case(storage, files, is_stated=is_stated))
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
    processes = ray.data.TaskPoolStrategy(math.ceil(len(items) / _CASES_PER_PROCESS))
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
        examine, num_cpus=TASK_CPUS, compute=processes
    )
    for row in with_progress(_log, dataset.iter_rows(), len(items), "checking"):
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


def quiet_data() -> None:
    """Turn off Ray Data's progress bars in this process; our own log lines say what is left."""
    logger, context = logging.getLogger("ray.data"), ray.data.DataContext.get_current()
    logger.setLevel(logging.ERROR)  # it warns about being turned off
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logger.setLevel(logging.WARNING)
