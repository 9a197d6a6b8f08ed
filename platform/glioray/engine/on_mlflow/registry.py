"""Models in MLflow: logged with a run, registered under a name, promoted by an alias, fetched again.

The source of truth is a package of two files, `model.safetensors` (weights) and `model.json` (their description;
see `engine.package`). In MLflow it is the subfolder `glioray/` of a model folder whose other files are the export
that plain MLflow loads.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

import requests
import torch
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from safetensors import SafetensorError, safe_open

from glioray.engine.on_mlflow.client import connect, first_line, is_outage, shown, wrap_errors
from glioray.engine.on_mlflow.export import save_export
from glioray.engine.on_mlflow.runs import RunLogger
from glioray.engine.portable import check_hash, check_web, fetch_portable, is_portable, split_hash
from glioray.errors import ModelError, StorageError, UsageError
from glioray.storage import Storage, open_storage

T = TypeVar("T")

CHAMPION = "champion"
PACKAGE_FILES = ("model.safetensors", "model.json")
_SUBFOLDER = "glioray"
_PATH_TAG, _DIGEST_TAG, _AXES_TAG = (
    "glioray.model_path",
    "glioray.model_digest",
    "glioray.export_dynamic_axes",
)
_FORMS = (
    "starter, models:/NAME@alias, models:/NAME/VERSION, runs:/RUN_ID/model, a checkpoint's folder, a zip file of "
    "jobs/share.py or its https address"
)


def log_model(logger: RunLogger, package: Path, net: torch.nn.Module, example: torch.Tensor) -> str:
    """Log a model with its run, as a package and as an export (see `save_export`); return its URI.

    The first model of a run is `runs:/RUN_ID/model`. Logging the same package again changes nothing. A different
    one, of a resumed run, gets its own path, since a registered version may point at the first.

    Args:
        logger: the run.
        package: the folder of `model.safetensors` and `model.json`.
        net: the network with the package's weights; (B, C, H, W) to (B, K, H, W).
        example: an input (B, C, H, W) of the size that the model is for; its values do not matter.

    Raises:
        ModelError: the package is incomplete, or the network cannot be exported.
        StorageError: MLflow cannot be written to; models are not queued as metrics are.
    """
    _check_package(package, str(package))
    digest = _digest(package)
    with wrap_errors(f"read the run {logger.run_id}", logger.client):
        tags = logger.client.get_run(logger.run_id).data.tags
    if tags.get(_DIGEST_TAG) == digest:
        return f"runs:/{logger.run_id}/{tags[_PATH_TAG]}"
    path = f"model-{digest}" if _PATH_TAG in tags else "model"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        axes = save_export(net, example, folder, run_id=logger.run_id)
        (folder / _SUBFOLDER).mkdir()
        for name in PACKAGE_FILES:
            shutil.copyfile(package / name, folder / _SUBFOLDER / name)
        with wrap_errors(f"store the model of run {logger.run_id}", logger.client):
            logger.client.log_artifacts(logger.run_id, str(folder), path)
            # Last, so that an incomplete upload never counts as a model.
            for name, value in {_AXES_TAG: ", ".join(axes), _PATH_TAG: path, _DIGEST_TAG: digest}.items():
                logger.client.set_tag(logger.run_id, name, value)
    return f"runs:/{logger.run_id}/{path}"


def register_model(
    name: str,
    run_id: str,
    tags: Mapping[str, str],
    *,
    description: str = "",
    purpose: str = "Model",
    tracking_uri: str | None = None,
) -> str:
    """Register the model that a run logged last; return `models:/NAME/VERSION`.

    The same model of the same run keeps its version, with updated tags and description.

    Args:
        name: the registered model; created if missing.
        run_id: a run with a model by `log_model`.
        tags: of the version, such as recipe, manifest hash and Dice; the run's id, the commit and the
            package's digest are added.
        description: of the version; by default the tags in a sentence.
        purpose: description of a registered model that is created now, such as `Task.purpose`.
        tracking_uri: the server; by default MLFLOW_TRACKING_URI.

    Raises:
        UsageError: the name cannot be in a `models:/` URI.
        ModelError: the run logged no model.
        StorageError: MLflow cannot be reached or refuses.
    """
    if re.fullmatch(r"[\w\-. ]+", name) is None:
        raise UsageError(f"'{name}' is not a valid model name; use letters, digits, spaces and . _ -")
    client = connect(tracking_uri)
    run = _found(client, f"the run {run_id}", lambda: client.get_run(run_id))
    if _PATH_TAG not in run.data.tags:
        raise ModelError(f"the run {run_id} has logged no model; register a run that finished")
    digest = run.data.tags[_DIGEST_TAG]
    all_tags = {
        **{key: str(value) for key, value in tags.items()},
        "glioray.run_id": run_id,
        "glioray.git_commit": run.data.tags.get("glioray.git_commit", "unknown"),
        _DIGEST_TAG: digest,
        _AXES_TAG: run.data.tags.get(_AXES_TAG, ""),
    }
    facts = ", ".join(f"{key} {value}" for key, value in tags.items())
    text = (
        description or f"From the run '{run.info.run_name}'{': ' if facts else ''}{facts}. Research use only."
    )
    with wrap_errors(f"register the model '{name}'", client):
        _make_registered_model(client, name, purpose)
        same = client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
        version = next((v for v in same if v.tags.get(_DIGEST_TAG) == digest), None)
        if version is None:
            source = f"{run.info.artifact_uri}/{run.data.tags[_PATH_TAG]}"
            version = client.create_model_version(
                name, source, run_id, tags=all_tags, description=text, await_creation_for=0
            )
        else:
            for key, value in all_tags.items():
                client.set_model_version_tag(name, version.version, key, value)
            client.update_model_version(name, version.version, description=text)
    return f"models:/{name}/{version.version}"


def fetch_package(uri: str, folder: Path, *, tracking_uri: str | None = None) -> Path:
    """Download a model's package into a local folder and return the folder.

    Args:
        uri: `models:/NAME@alias`, `models:/NAME/VERSION`, `runs:/RUN_ID/model`, a folder or `s3://` URI that holds a
            package or a `latest.json` that names the checkpoint with it, or one of `portable.is_portable`; with
            `#sha256=HEX` its hash is checked.
        folder: created if missing; a package in it is replaced.
        tracking_uri: the server; by default MLFLOW_TRACKING_URI.

    Raises:
        ModelError: no such model, an incomplete package, or another hash.
        StorageError: the server or the storage cannot be read.
        UsageError: the URI has another form, or is a web address without a hash.
    """
    source, digest = split_hash(uri)
    check_web(source, digest)
    with tempfile.TemporaryDirectory() as temporary:
        fresh = Path(temporary)
        if source.startswith(("models:", "runs:")):
            _download(connect(tracking_uri), source, fresh)
        elif is_portable(source):
            fetch_portable(source, fresh)
        else:
            _copy_from_storage(source, fresh)
        _check_package(fresh, source)
        check_hash(fresh, digest, source)
        folder.mkdir(parents=True, exist_ok=True)
        for name in PACKAGE_FILES:
            shutil.copyfile(fresh / name, folder / f".{name}.tmp")
        for name in PACKAGE_FILES:
            (folder / f".{name}.tmp").replace(folder / name)
    return folder


def resolve_version(uri: str, *, tracking_uri: str | None = None) -> str:
    """Resolve a `models:/` URI to `models:/NAME/VERSION`; return other URIs unchanged.

    Raises:
        ModelError: no such model, version or alias.
        UsageError: a malformed `models:/` URI.
    """
    if not uri.startswith("models:"):
        return uri
    version = _version(connect(tracking_uri), uri)
    return f"models:/{version.name}/{version.version}"


def champion(name: str, *, tracking_uri: str | None = None) -> str | None:
    """Return the version with the alias `champion`; None without one, or without such a model."""
    client = connect(tracking_uri)
    try:
        version = client.get_registered_model(name).aliases.get(CHAMPION)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise StorageError(
            f"MLflow could not look up the model '{name}' ({first_line(error)}); check the server"
        ) from error
    return None if version is None else str(version)


def set_champion(name: str, version: str | int, *, tracking_uri: str | None = None) -> None:
    """Move the alias `champion` to a version.

    Raises:
        ModelError: no such version.
    """
    client = connect(tracking_uri)
    _version(client, f"models:/{name}/{version}")
    with wrap_errors(f"set the alias '{CHAMPION}' of '{name}'", client):
        client.set_registered_model_alias(name, CHAMPION, str(version))


def _version(client: MlflowClient, uri: str) -> ModelVersion:
    match = re.fullmatch(r"models:/+([^/@]+)(?:@([\w\-]+)|/(\d+))", uri)
    if match is None:
        raise UsageError(f"'{uri}' is not a model URI; use {_FORMS}")
    name, alias, number = match.groups()
    if alias is not None:
        return _found(client, f"'{uri}'", lambda: client.get_model_version_by_alias(name, alias))
    return _found(client, f"'{uri}'", lambda: client.get_model_version(name, number))


def _found(client: MlflowClient, what: str, look_up: Callable[[], T]) -> T:
    try:
        return look_up()
    except (MlflowException, requests.RequestException) as error:
        if is_outage(error):
            raise StorageError(
                f"MLflow could not look up {what} ({first_line(error)}); check the server"
            ) from error
        raise ModelError(
            f"MLflow at {shown(client.tracking_uri)} has no {what.removeprefix('the ')} ({first_line(error)}); "
            "check the name, and that it was registered on this server"
        ) from error


def _make_registered_model(client: MlflowClient, name: str, purpose: str) -> None:
    try:
        client.create_registered_model(name, description=f"{purpose} by glioray. Research use only.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _download(client: MlflowClient, uri: str, folder: Path) -> None:
    if uri.startswith("models:"):
        source = str(_version(client, uri).source)
    else:
        match = re.fullmatch(r"runs:/+([^/]+)/(.+?)/*", uri)
        if match is None:
            raise UsageError(f"'{uri}' is not a model URI; use {_FORMS}")
        run_id, path = match.groups()
        run = _found(client, f"the run {run_id}", lambda: client.get_run(run_id))
        source = f"{run.info.artifact_uri}/{path}"
    repository = get_artifact_repository(source, tracking_uri=client.tracking_uri)
    with wrap_errors(f"download the model {uri}", client):
        there = {PurePosixPath(item.path).name for item in repository.list_artifacts(_SUBFOLDER)}
        if not there.issuperset(PACKAGE_FILES):
            raise ModelError(
                f"'{uri}' holds no {' and '.join(PACKAGE_FILES)} under {_SUBFOLDER}/; use a model logged by glioray"
            )
        for name in PACKAGE_FILES:
            repository.download_artifacts(f"{_SUBFOLDER}/{name}", str(folder))
            (folder / _SUBFOLDER / name).replace(folder / name)


def _copy_from_storage(uri: str, folder: Path) -> None:
    storage = open_storage(uri)
    prefix = "" if storage.exists(PACKAGE_FILES[1]) else _latest_checkpoint(storage)
    for name in PACKAGE_FILES:
        if not storage.exists(f"{prefix}{name}"):
            raise ModelError(f"'{uri}' holds no {prefix}{name}; use {_FORMS}")
        storage.download(f"{prefix}{name}", folder / name)


def _latest_checkpoint(storage: Storage) -> str:
    if not storage.exists("latest.json"):
        raise ModelError(f"'{storage.uri}' holds neither model.json nor latest.json; use {_FORMS}")
    try:
        return f"{json.loads(storage.read('latest.json'))['checkpoint'].strip('/')}/"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f'\'{storage.uri}/latest.json\' names no checkpoint; expected {{"checkpoint": "checkpoints/…"}}, '
            "give the checkpoint's own folder"
        ) from error


def _check_package(folder: Path, uri: str) -> None:
    try:
        spec = json.loads((folder / "model.json").read_bytes())
        with safe_open(folder / "model.safetensors", framework="np") as weights:
            num_tensors = len(weights.keys())
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"the model package of '{uri}' is broken ({first_line(error)}); log or save it again"
        ) from error
    if not isinstance(spec, dict) or num_tensors == 0:
        raise ModelError(
            f"the model package of '{uri}' is empty; expected an object in model.json and weights beside it"
        )


def _digest(package: Path) -> str:
    total = hashlib.sha256()
    for name in PACKAGE_FILES:
        total.update(hashlib.sha256((package / name).read_bytes()).digest())
    return total.hexdigest()[:12]
