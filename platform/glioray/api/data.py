"""The data of a request: its manifest, its cases, and whether they fit a config."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

from glioray.cases.casefiles import CaseFiles, Problem
from glioray.cases.layouts import RECOGNISED, discover_cases
from glioray.cases.manifest import MANIFEST, Manifest, check_conventions, load_manifest
from glioray.config import MODALITIES
from glioray.engine.on_ray.data import index_data
from glioray.errors import DataError, StorageError, UsageError
from glioray.storage import join_uri, open_storage

_log = logging.getLogger(__name__)


def open_data(
    uri: str,
    storage: str,
    *,
    seed: int = 0,
    fold: int | str | None = None,
    labels: str | None = None,
    may_miss: bool = False,
) -> Manifest:
    """The manifest of a data set: one that `prepare` wrote, or one made now (Ray must be up).

    Problems are logged and the good cases are used.

    Args:
        uri: of a folder of cases, or of a manifest.
        storage: manifests that are made now are kept below it.
        seed: of their folds.
        fold: to validate on; "all" trains on every labelled case.
        labels: the label convention of all masks, if the user states it.
        may_miss: whether files of some cases of a manifest may be gone; a training decides on those when it starts.

    Raises:
        DataError: no case can be used, or cases of a manifest are gone.
        UsageError: no such fold, masks that several label conventions fit, or a manifest that reads them otherwise.
    """
    if fold is not None and fold != "all" and not str(fold).isdigit():
        raise UsageError(f"--fold is '{fold}'; use the number of a fold, from 0 on, or all")
    if uri.endswith(".json") or open_storage(uri).exists(MANIFEST):
        manifest = load_manifest(uri)
        _check_present(manifest, uri, may_miss=may_miss)
        check_conventions(manifest, labels)
    else:
        manifest = index_data(uri, join_uri(storage, "manifests"), seed=seed, labels=labels)
    for problem in manifest.problems:
        _log.warning("left out: %s", problem)
    if not manifest.cases:
        raise DataError(f"none of the cases in '{uri}' can be used; the problems are listed above")
    for note in manifest.notes:
        _log.warning("note: %s", note)
    if fold is None:
        return manifest
    if fold == "all":
        every = tuple(entry.case_id for entry in manifest.select("labelled"))
        return dataclasses.replace(manifest, splits={"train": every, "val": (), "test": ()})
    return manifest.with_fold(int(fold))


def _check_present(manifest: Manifest, uri: str, *, may_miss: bool) -> None:
    """Refuse a manifest whose cases have moved, before a worker looks for them.

    Raises:
        DataError: files of some case, or with `may_miss` of all cases, are not there.
        StorageError: the place itself cannot be listed.
    """
    try:
        there = {item.key for item in open_storage(manifest.data).list()}
    except StorageError as error:
        raise StorageError(
            f"the cases of the manifest '{uri}' lie in '{manifest.data}', which is gone: {error}"
        ) from error
    moved = [entry.case_id for entry in manifest.cases if not there.issuperset(entry.files.keys())]
    if moved and not (may_miss and len(moved) < len(manifest.cases)):
        raise DataError(
            f"{len(moved)} of the {len(manifest.cases)} cases of the manifest '{uri}', {moved[0]} the first, are no longer "
            f"in '{manifest.data}'; bring them back, or prepare the data again where they are now"
        )


def find_cases(uri: str, *, labels: str | None = None) -> tuple[str, list[CaseFiles], list[Problem]]:
    """The cases of a data set, with or without masks: the URI that they lie below, their files, and problems.

    The cases of a manifest where one is given, or where one lies in a folder without cases; their masks are then
    read by the conventions that it states.

    Args:
        uri: of a folder of cases, or of a manifest.
        labels: the label convention of all masks, if the user states it.

    Raises:
        DataError: there is no case.
        UsageError: a dataset.json or a manifest that does not tell what the labels mark, and no convention stated.
    """
    if not uri.endswith(".json"):
        storage = open_storage(uri)
        cases, problems = discover_cases(storage, labels=labels)
        if cases:
            return uri, cases, problems
        if not storage.exists(MANIFEST):
            raise DataError(f"'{uri}' holds no case; {problems[0] if problems else RECOGNISED}")
    manifest = load_manifest(uri)
    if not manifest.cases:
        raise DataError(
            f"the manifest '{uri}' names no case that can be used; see its problems, or give the data instead"
        )
    if labels is None:
        check_conventions(manifest, None)
    return manifest.data, [entry.described_files for entry in manifest.cases], list(manifest.problems)


def check_modalities(manifest: Manifest, config: Any) -> None:
    """Raises: UsageError for labelled cases that lack a modality which the config wants."""
    entries, wanted = manifest.select("labelled"), config.preprocess.modalities
    lacking = [entry for entry in entries if not set(wanted) <= set(entry.modalities)]
    if not lacking:
        return
    common = [m for m in MODALITIES if all(m in entry.modalities for entry in entries)]
    advice = f"give --set 'preprocess.modalities={json.dumps(common)}'" if common else ""
    if len(lacking) < len(entries):
        advice += f"{', or ' if advice else ''}leave those cases out"
    raise UsageError(
        f"{len(lacking)} of {len(entries)} labelled cases, {lacking[0].case_id} the first, have only "
        f"{', '.join(lacking[0].modalities)}; the recipe wants {', '.join(wanted)}; {advice}"
    )


def check_labelled_regions(manifest: Manifest) -> None:
    """Raises: UsageError where training masks define different regions: a model would learn some as empty."""
    train = manifest.select("train")
    known = {entry.labelled_regions for entry in train}
    if len(known) < 2:
        return
    most = max(known, key=len)
    partial = [entry for entry in train if entry.labelled_regions != most]
    raise UsageError(
        f"{len(partial)} of {len(train)} training masks, that of {partial[0].case_id} the first, define only "
        f"{', '.join(partial[0].labelled_regions)}, the others {', '.join(most)}, which a model would learn as absent "
        "there; leave those cases out, or train on them alone"
    )
