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
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

import requests
import torch
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from safetensors import SafetensorError, safe_open

from glioray.engine.on_mlflow.client import connect, first_line, is_outage, shown, wrap_errors
from glioray.engine.on_mlflow.export import save_export
from glioray.engine.on_mlflow.files_model import add_files_model
from glioray.engine.on_mlflow.provenance import COMMIT_KEY, HASH_KEY
from glioray.engine.on_mlflow.runs import NOTE_TAG, RunLogger
from glioray.engine.portable import check_hash, check_web, fetch_portable, is_portable, split_hash
from glioray.engine.task import FilesModel
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
_MODEL_TAG = "glioray.model_id"
_FORMS = (
    "starter, models:/NAME@alias, models:/NAME/VERSION, runs:/RUN_ID/model, a checkpoint's folder, a zip file of "
    "jobs/share.py or its https address"
)
_LOGGED_URI = re.compile(r"models:/+(m-[0-9a-f]{32})/*")


def log_model(
    logger: RunLogger,
    package: Path,
    net: torch.nn.Module | None,
    example: torch.Tensor,
    *,
    files: FilesModel | None = None,
    name: str = "model",
    kind: str | None = None,
    step: int = 0,
    metrics: Mapping[str, float] | None = None,
    dataset: tuple[str, str] | None = None,
    card: str = "",
) -> str:
    """Log a model with its run, as a package and as an export (see `save_export`); return its URI.

    It is one of MLflow's logged models: `runs:/RUN_ID/NAME`, or `models:/MODEL_ID`. Logging the same package again
    changes nothing. A different one under the same name, of a resumed run, gets its own name, since a registered
    version may point at the first.

    Args:
        logger: the run.
        package: the folder of `model.safetensors` and `model.json`.
        net: the network with the package's weights; (B, C, H, W) to (B, K, H, W). None to leave out the export, where
            `files` is given.
        example: an input (B, C, H, W) of the size that the model is for; its values do not matter.
        files: how its python_function answers files; None where it takes arrays, as the network does.
        name: of the logged model.
        kind: of the model, such as its task.
        step: of the run's metrics, at which it was saved.
        metrics: of the model, at that step.
        dataset: name and digest of the data set that they were measured on.
        card: a description in Markdown.

    Raises:
        ModelError: the package is incomplete, the network cannot be exported, or there is neither a network nor files.
        StorageError: MLflow cannot be written to; models are not queued as metrics are.
    """
    if net is None and files is None:
        raise ModelError(
            f"'{package}' is logged without net and files, and MLflow could not load it; give one of them"
        )
    _check_package(package, str(package))
    digest = _digest(package)
    client = logger.client
    with wrap_errors(f"read the run {logger.run_id}", client):
        run = client.get_run(logger.run_id)
        models = _logged_models(client, run)
    # Runs of before there were logged models have them as files.
    earlier = {run.data.tags[_DIGEST_TAG]: run.data.tags[_PATH_TAG]} if _PATH_TAG in run.data.tags else {}
    earlier |= {model.tags.get(_DIGEST_TAG, ""): model.name for model in models}
    if digest in earlier:
        return f"runs:/{logger.run_id}/{earlier[digest]}"
    path = f"{name}-{digest}" if name in earlier.values() else name
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        axes = "" if net is None else ", ".join(save_export(net, example, folder, run_id=logger.run_id))
        (folder / _SUBFOLDER).mkdir(parents=True)
        for file in PACKAGE_FILES:
            shutil.copyfile(package / file, folder / _SUBFOLDER / file)
        if files is not None:
            add_files_model(folder, files, _SUBFOLDER)
        with wrap_errors(f"store the model of run {logger.run_id}", client):
            tags = {_DIGEST_TAG: digest, _AXES_TAG: axes} | ({NOTE_TAG: card} if card else {})
            model = client.create_logged_model(
                logger.experiment_id, path, logger.run_id, tags=tags, params=run.data.params, model_type=kind
            )
            _set_identity(folder, model)
            client.log_model_artifacts(model.model_id, str(folder))
            client.log_outputs(logger.run_id, [LoggedModelOutput(model.model_id, step)])
            _link_metrics(logger, model.model_id, metrics or {}, step, dataset)
            # Last, so that an incomplete upload never counts as a model.
            client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
            for tag, value in {_AXES_TAG: axes, _PATH_TAG: path, _DIGEST_TAG: digest}.items():
                client.set_tag(logger.run_id, tag, value)
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
        tags: of the version, such as recipe, manifest hash and Dice; the run's id, the commit and hash of
            its code and the package's digest are added.
        description: of the version; by default the model's card, or else the tags in a sentence.
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
        **{key: run.data.tags.get(key, "unknown") for key in (COMMIT_KEY, HASH_KEY)},
        _DIGEST_TAG: digest,
        _AXES_TAG: run.data.tags.get(_AXES_TAG, ""),
    }
    facts = ", ".join(f"{key} {value}" for key, value in tags.items())
    sentence = f"From the run '{run.info.run_name}'{': ' if facts else ''}{facts}. Research use only."
    with wrap_errors(f"register the model '{name}'", client):
        model = next((m for m in _logged_models(client, run) if m.tags.get(_DIGEST_TAG) == digest), None)
        if model is not None:
            # MLflow takes the id of a version's model and does not give it back.
            all_tags[_MODEL_TAG] = model.model_id
        text = description or (model.tags.get(NOTE_TAG) if model is not None else None) or sentence
        _make_registered_model(client, name, purpose)
        same = client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
        version = next((v for v in same if v.tags.get(_DIGEST_TAG) == digest), None)
        if version is None:
            source = f"{run.info.artifact_uri}/{run.data.tags[_PATH_TAG]}"
            version = client.create_model_version(
                name,
                source if model is None else model.artifact_location,
                run_id,
                tags=all_tags,
                description=text,
                await_creation_for=0,
                model_id=None if model is None else model.model_id,
            )
        else:
            for key, value in all_tags.items():
                client.set_model_version_tag(name, version.version, key, value)
            if description or not version.description:
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
    if not uri.startswith("models:") or _LOGGED_URI.fullmatch(uri):
        return uri
    version = _version(connect(tracking_uri), uri)
    return f"models:/{version.name}/{version.version}"


def logged_model_id(uri: str, *, tracking_uri: str | None = None) -> str | None:
    """Return MLflow's id of a logged model; None for a folder, and for models of before there were such ids.

    Raises:
        ModelError: no such model.
        UsageError: a malformed URI.
    """
    if logged := _LOGGED_URI.fullmatch(uri):
        return logged[1]
    if not uri.startswith(("models:", "runs:")):
        return None
    client = connect(tracking_uri)
    if uri.startswith("models:"):
        return _version(client, uri).tags.get(_MODEL_TAG)
    model = _model_of_run(client, uri)[1]
    return None if model is None else model.model_id


def champion(name: str, *, tracking_uri: str | None = None) -> str | None:
    """Return the version with the alias `champion`; None without one, or without such a model."""
    client = connect(tracking_uri)
    try:
        version = client.get_registered_model(name).aliases.get(CHAMPION)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise StorageError(
            f"MLflow could not look up the model '{name}' ({first_line(error)}); check the server",
            is_outage(error),
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


def add_to_card(name: str, version: str, head: str, text: str, *, tracking_uri: str | None = None) -> None:
    """Add a section to the description of a registered version, or replace the one of that head.

    Args:
        name: of the registered model.
        version: its number.
        head: of the section.
        text: of the section, in Markdown.
        tracking_uri: the server; by default MLFLOW_TRACKING_URI.

    Raises:
        ModelError: no such version.
        StorageError: MLflow cannot be reached or refuses.
    """
    client = connect(tracking_uri)
    present = _version(client, f"models:/{name}/{version}").description or ""
    first, *sections = re.split(r"^## ", present, flags=re.MULTILINE)
    kept = [section for section in sections if section.partition("\n")[0].strip() != head]
    parts = [first, *(f"## {section}" for section in kept), f"## {head}\n\n{text}"]
    card = "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"
    with wrap_errors(f"describe version {version} of '{name}'", client):
        client.update_model_version(name, version, description=card)


def _version(client: MlflowClient, uri: str) -> ModelVersion:
    match = re.fullmatch(r"models:/+([^/@]+)(?:@([\w\-]+)|/(\d+))", uri)
    if match is None:
        raise UsageError(f"'{uri}' is not a model URI; use {_FORMS}")
    name, alias, number = match.groups()
    if alias is not None:
        return _found(client, f"'{uri}'", lambda: client.get_model_version_by_alias(name, alias))
    return _found(client, f"'{uri}'", lambda: client.get_model_version(name, number))


def _model_of_run(client: MlflowClient, uri: str) -> tuple[str, LoggedModel | None]:
    """Where the model of a `runs:/` URI lies, and the logged model; None where it is files of the run.

    Runs of before there were logged models have them as files.
    """
    match = re.fullmatch(r"runs:/+([^/]+)/(.+?)/*", uri)
    if match is None:
        raise UsageError(f"'{uri}' is not a model URI; use {_FORMS}")
    run_id, path = match.groups()
    run = _found(client, f"the run {run_id}", lambda: client.get_run(run_id))
    models = _found(client, f"models of the run {run_id}", lambda: _logged_models(client, run))
    model = next((model for model in models if model.name == path), None)
    return f"{run.info.artifact_uri}/{path}" if model is None else model.artifact_location, model


def _logged_models(client: MlflowClient, run: Run) -> list[LoggedModel]:
    """The models that a run has logged completely, the oldest first."""
    found = client.search_logged_models(
        [run.info.experiment_id],
        filter_string=f"source_run_id = '{run.info.run_id}'",
        order_by=[{"field_name": "creation_timestamp", "ascending": True}],
    )
    return [model for model in found if model.status == LoggedModelStatus.READY]


def _set_identity(folder: Path, model: LoggedModel) -> None:
    """Write a logged model's id and place into its MLmodel file."""
    described = Model.load(folder)
    described.model_id = described.model_uuid = model.model_id
    described.artifact_path, described.run_id = model.artifact_location, model.source_run_id
    described.save(folder / "MLmodel")


def _link_metrics(
    logger: RunLogger,
    model_id: str,
    metrics: Mapping[str, float],
    step: int,
    dataset: tuple[str, str] | None,
) -> None:
    """Say which model and which data set the run's metrics of a step belong to."""
    client, (name, data_digest) = logger.client, dataset or (None, None)
    linked = []
    for key, value in metrics.items():
        # With the time of the run's own value, MLflow sees that it is the same one.
        history = client.get_metric_history(logger.run_id, key)
        times = [metric.timestamp for metric in history if metric.step == step]
        time_ms = times[-1] if times else time.time_ns() // 1_000_000
        linked.append(
            Metric(
                key, value, time_ms, step, model_id=model_id, dataset_name=name, dataset_digest=data_digest
            )
        )
    if linked:
        client.log_batch(logger.run_id, metrics=linked)


def _found(client: MlflowClient, what: str, look_up: Callable[[], T]) -> T:
    try:
        return look_up()
    except (MlflowException, requests.RequestException) as error:
        if is_outage(error):
            raise StorageError(
                f"MLflow could not look up {what} ({first_line(error)}); check the server", True
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
    if logged := _LOGGED_URI.fullmatch(uri):
        source = _found(client, f"'{uri}'", lambda: client.get_logged_model(logged[1])).artifact_location
    elif uri.startswith("models:"):
        source = str(_version(client, uri).source)
    else:
        source, _ = _model_of_run(client, uri)
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
