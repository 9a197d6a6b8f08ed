"""Checkpoints of a run: the model for inference, and the state to resume from.

    <run>/config.json                     the whole resolved config
    <run>/latest.json                     {"checkpoint": "checkpoints/step-…", ...}, written last
    <run>/checkpoints/step-0000000123/    model.safetensors, model.json   (inference)
                                          state.pt                        (training, of the latest alone)
    <run>/progress.json                   {"state": "progress/step-….pt", "step": …}, written last
    <run>/progress/step-0000000130.pt     the training state between two checkpoints

A checkpoint is published by its pointer, one atomic write, after all its objects are written: after a crash in
between, the previous one is still the latest. The pointer also names the checkpoints that are kept. Between two
checkpoints, which come with a validation, the training state alone is saved every few minutes; a run resumes from
whichever is newer. States hold tensors and plain values only and are read with `weights_only=True`.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glioray.engine.package import SPEC_FILE, WEIGHTS_FILE, encode_weights
from glioray.engine.task import Spec
from glioray.errors import ModelError
from glioray.storage import Storage, join_uri

LATEST = "latest.json"
PROGRESS = "progress.json"
STATE_FILE = "state.pt"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One checkpoint: the weights for inference, their description, and the state to resume from."""

    step: int
    spec: Spec
    weights: dict[str, torch.Tensor]
    state: dict[str, Any]


class Saver:
    """Writes what a run saves beside its training, one save after the other.

    What is to be saved is encoded at once, since the next step changes it; only the storage is written behind.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._last: Future[object] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the last save is still being written."""
        return self._last is not None and not self._last.done()

    def save_checkpoint(self, checkpoint: Checkpoint, keep: int) -> None:
        """Begin to publish a checkpoint, after the last save is written.

        Raises: StorageError if the last save could not be written.
        """
        objects = _encode(checkpoint)
        self._begin(lambda: _publish(self.storage, checkpoint, objects, keep))

    def save_progress(self, step: int, state: dict[str, Any]) -> None:
        """Begin to publish the training state between two checkpoints, after the last save is written.

        Raises: StorageError if the last save could not be written.
        """
        data = _encode_state(state)
        self._begin(lambda: _publish_progress(self.storage, step, data))

    def wait(self) -> None:
        """Wait until everything is written.

        Raises: StorageError if the last save could not be written.
        """
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        """End the thread, after what it writes."""
        self._pool.shutdown()

    def _begin(self, write: Callable[[], object]) -> None:
        self.wait()
        self._last = self._pool.submit(write)


def save_checkpoint(storage: Storage, checkpoint: Checkpoint, keep: int = 1) -> str:
    """Publish a checkpoint, delete all but the newest `keep`, and return its URI.

    Older ones keep their model, for ensembles, but not the state that only training needs.
    """
    return _publish(storage, checkpoint, _encode(checkpoint), keep)


def load_state(storage: Storage) -> dict[str, Any] | None:
    """Load the newest training state of a run onto the CPU; None if it has none.

    Raises:
        ModelError: the file is damaged.
    """
    saved = [json.loads(storage.read(name)) for name in (LATEST, PROGRESS) if storage.exists(name)]
    if not saved:
        return None
    # The checkpoint where both are of one step: it has been validated.
    newest = max(saved, key=lambda pointer: int(pointer["step"]))
    key = newest["state"] if "state" in newest else f"{newest['checkpoint']}/{STATE_FILE}"
    data = storage.read(key)
    try:
        # torch would read anything but a zip archive as its legacy format.
        if not zipfile.is_zipfile(io.BytesIO(data)):
            raise ValueError("not an archive")
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        # torch's own message runs to a page and advises unsafe unpickling.
        raise ModelError(
            f"'{join_uri(storage.uri, key)}' is damaged or not a checkpoint ({len(data)} bytes); delete "
            f"the run's {LATEST} and {PROGRESS} to start over, or choose another --run-name"
        ) from error
    return state


def _encode_state(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _encode(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The objects of a checkpoint, in the order in which they are written."""
    return {
        STATE_FILE: _encode_state(checkpoint.state),
        WEIGHTS_FILE: encode_weights(checkpoint.weights),
        SPEC_FILE: checkpoint.spec.to_json().encode(),
    }


def _publish(storage: Storage, checkpoint: Checkpoint, objects: Mapping[str, bytes], keep: int) -> str:
    folder = f"checkpoints/step-{checkpoint.step:010d}"
    for name, data in objects.items():
        storage.write(f"{folder}/{name}", data)
    # Only folders that a pointer named count as kept: a crash may have left partial ones.
    kept = [*(before for before in kept_folders(storage) if before != folder), folder][-keep:]
    pointer = {
        "checkpoint": folder,
        "step": checkpoint.step,
        "metrics": checkpoint.spec.metrics,
        "kept": kept,
    }
    storage.write(LATEST, json.dumps(pointer).encode())
    needed = {f"{before}/{name}" for before in kept for name in (WEIGHTS_FILE, SPEC_FILE)}
    needed.add(f"{folder}/{STATE_FILE}")
    storage.delete(PROGRESS)
    _delete_others(storage, "checkpoints/", needed)
    _delete_others(storage, "progress/", set())
    return join_uri(storage.uri, folder)


def _publish_progress(storage: Storage, step: int, data: bytes) -> None:
    key = f"progress/step-{step:010d}.pt"
    storage.write(key, data)
    storage.write(PROGRESS, json.dumps({"state": key, "step": step}).encode())
    _delete_others(storage, "progress/", {key})


def _delete_others(storage: Storage, prefix: str, needed: Collection[str]) -> None:
    for item in list(storage.list(prefix)):
        if item.key not in needed:
            storage.delete(item.key)


def latest_folder(storage: Storage) -> str | None:
    """Return the key of the folder that `latest.json` names; None if the run has no checkpoint."""
    if not storage.exists(LATEST):
        return None
    folder: str = json.loads(storage.read(LATEST))["checkpoint"]
    return folder


def kept_folders(storage: Storage) -> list[str]:
    """Return the keys of the folders of the kept checkpoints, oldest first."""
    if not storage.exists(LATEST):
        return []
    pointer = json.loads(storage.read(LATEST))
    # Older pointers name a single checkpoint.
    kept: list[str] = pointer.get("kept", [pointer["checkpoint"]])
    return kept


def fetch_model(storage: Storage, folder: Path, source: str | None = None) -> Path:
    """Copy the model of a checkpoint into a local folder, and return the folder.

    Args:
        storage: of the run.
        folder: local.
        source: key of the checkpoint's folder; by default the latest one's.

    Raises:
        ModelError: the run has no checkpoint.
    """
    source = source or latest_folder(storage)
    if source is None:
        raise ModelError(
            f"'{storage.uri}' has no {LATEST}: the run saved no checkpoint; look at its log, or run it again"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS_FILE, SPEC_FILE):
        storage.download(f"{source}/{name}", folder / name)
    return folder
