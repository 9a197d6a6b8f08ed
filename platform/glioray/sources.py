"""What a job is pointed at: data, models, the cases to judge by, and the plan of a training run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from glioray.cases.casefiles import CaseFiles, Problem
from glioray.cases.layouts import RECOGNISED, discover_cases
from glioray.cases.manifest import MANIFEST, Manifest, load_manifest
from glioray.cases.notes import collection_notes
from glioray.cli.old import data_uri, default_run_name, storage_uri, tracking_address
from glioray.config import MODALITIES
from glioray.engine.checkpoint import kept_folders
from glioray.engine.on_mlflow.registry import register_model, resolve_version
from glioray.engine.on_mlflow.runs import Kind
from glioray.engine.on_ray.connect import check_shared, connect, log_to_stderr
from glioray.engine.on_ray.data import index_data
from glioray.engine.run import RunPlan
from glioray.engine.task import ModelPackage
from glioray.errors import DataError, ModelError, UsageError
from glioray.storage import join_uri, open_storage
from glioray.tasks import load_task, open_labelling, open_package
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.superres.config import GanConfig


def plan_run(args: argparse.Namespace, config: RunConfig | GanConfig, kind: Kind) -> RunPlan:
    """The plan of a training or a search by its flags; joins the cluster and checks the data on the way."""
    log_to_stderr()
    data, storage = data_uri(args), storage_uri(args)
    tracking_uri = tracking_address(storage)
    name = default_run_name(args, config)
    connect()
    check_shared(storage, "--storage")
    manifest = open_data(data, storage, seed=config.train.seed, fold=args.fold)
    check_modalities(manifest, config)
    return RunPlan(
        task=load_task(config.task),
        config=config,
        manifest=manifest,
        storage=join_uri(storage, name),
        run_name=name,
        tracking_uri=tracking_uri,
        experiment=args.experiment,
        kind=kind,
    )


def open_data(uri: str, storage: str, *, seed: int = 0, fold: str | None = None) -> Manifest:
    """The manifest of `--data`: one that prepare.py wrote, or one made now (Ray must be up).

    Problems are told and the good cases go on.

    Raises:
        DataError: no case can be used.
    """
    if uri.endswith(".json") or open_storage(uri).exists(MANIFEST):
        manifest = load_manifest(uri)
    else:
        manifest = index_data(uri, join_uri(storage, "manifests"), seed=seed)
    for problem in manifest.problems:
        print(f"left out: {problem}", file=sys.stderr)
    if not manifest.cases:
        raise DataError(f"none of the cases in '{uri}' can be used; the problems are listed above")
    for note in collection_notes(manifest.cases):
        print(f"note: {note}", file=sys.stderr)
    if fold is None:
        return manifest
    if fold == "all":
        every = tuple(entry.case_id for entry in manifest.select("labelled"))
        return dataclasses.replace(manifest, splits={"train": every, "val": (), "test": ()})
    if not fold.isdigit():
        raise UsageError(f"--fold is '{fold}'; use a number from 0 to {len(manifest.folds) - 1}, or all")
    return manifest.with_fold(int(fold))


def find_cases(uri: str) -> tuple[str, list[CaseFiles], list[Problem]]:
    """The cases of `--data`, with or without masks: the URI that they lie below, their files, and what is wrong.

    Those of a manifest where that is named, or where it lies in a folder without cases; their masks are then read
    by the conventions that it states.

    Raises:
        DataError: there is none.
    """
    if not uri.endswith(".json"):
        storage = open_storage(uri)
        cases, problems = discover_cases(storage)
        if cases:
            return uri, cases, problems
        if not storage.exists(MANIFEST):
            raise DataError(f"'{uri}' holds no case; {RECOGNISED}")
    manifest = load_manifest(uri)
    if not manifest.cases:
        raise DataError(
            f"the manifest '{uri}' names no case that can be used; see its problems, or name the data"
        )
    files = [
        dataclasses.replace(entry.files, declared=entry.files.declared or entry.convention)
        for entry in manifest.cases
    ]
    return manifest.data, files, list(manifest.problems)


def check_modalities(manifest: Manifest, config: RunConfig | GanConfig) -> None:
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
        f"{len(lacking)} of {len(entries)} labelled cases, {lacking[0].case_id} the first, have "
        f"{', '.join(lacking[0].modalities)} alone; the recipe wants {', '.join(wanted)}; {advice}"
    )


def open_model(args: argparse.Namespace, folder: Path) -> ModelPackage:
    """The package of `--model`, of a segmentation; its `uri` is what `--model` stands for now.

    Raises:
        UsageError: it is not given.
        ModelError: there is no such model, or it is one of super-resolution.
    """
    return open_labelling(named_model(args), folder)


def named_model(args: argparse.Namespace) -> str:
    """What the URI of `--model` stands for now.

    Raises:
        UsageError: it is not given.
        ModelError: there is no such model.
    """
    if not args.model:
        raise UsageError(
            "no model was named; give --model, such as models:/glioray-unet@champion or a run's folder"
        )
    return resolve_version(args.model)


def member_uris(models: Sequence[str], *, checkpoints: bool) -> list[str]:
    """What the members of an ensemble stand for now.

    Args:
        models: their URIs.
        checkpoints: the URIs are runs' folders, of which every checkpoint that was kept is a member.

    Raises:
        UsageError: none is given, one is given twice, or one is no run's folder where that is asked for.
        ModelError: there is no such model, or a run has no checkpoint.
    """
    if not models:
        raise UsageError("no model was named; give --model once for each member, such as a run's folder")
    # One folder has many spellings, and its model would count twice.
    members = [
        resolve_version(uri) if uri.startswith(("models:", "runs:")) else open_storage(uri).uri
        for uri in models
    ]
    if checkpoints:
        members = [uri for run in members for uri in _kept_checkpoints(run)]
    twice = [uri for uri in members if members.count(uri) > 1]
    if twice:
        raise UsageError(f"'{twice[0]}' is named twice; give each member once")
    return members


def _kept_checkpoints(run: str) -> list[str]:
    if run.startswith(("models:", "runs:")):
        raise UsageError(
            f"'{run}' is no run's folder, where checkpoints lie; give that, or leave out --checkpoints"
        )
    storage = open_storage(run)
    kept = kept_folders(storage)
    if not kept:
        raise ModelError(f"'{storage.uri}' holds no checkpoint; give the folder of a run that saved some")
    return [join_uri(storage.uri, folder) for folder in kept]


def registered_version(args: argparse.Namespace) -> tuple[str, str]:
    """Name and version of `--model`; a run's model is registered under `--name`, or its kind's own name, first.

    Raises:
        UsageError: it is a folder: what no run made cannot be registered.
        ModelError: there is no such model, or a run's model has collapsed or was not judged.
    """
    if not args.model:
        raise UsageError("no model was named; give --model, such as models:/glioray-unet/3 or runs:/ID/model")
    uri = args.model
    if uri.startswith("runs:/"):
        uri = _registered_run(uri, args.name)
    if not uri.startswith("models:/"):
        raise UsageError(f"'{uri}' is no registered model; give models:/NAME/VERSION or runs:/ID/model")
    name, _, version = resolve_version(uri).removeprefix("models:/").rpartition("/")
    return name, version


def _registered_run(uri: str, name: str | None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        package = open_package(uri, Path(folder))
    task, run_id = package.task, uri.removeprefix("runs:/").split("/")[0]
    tags = task.check_promotable(package.spec, uri)
    return register_model(name or task.registered_name, run_id, tags, purpose=task.purpose)
