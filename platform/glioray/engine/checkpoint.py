"""Checkpoints of a run: the model for inference, and the state to resume from.

    <run>/config.json                     the whole resolved config
    <run>/latest.json                     {"checkpoint": "checkpoints/step-…", ...}, written last
    <run>/checkpoints/step-0000000123/    model.safetensors, model.json   (inference)
                                          state.pt                        (training, of the latest alone)

A checkpoint is published by its pointer, one atomic write, after all its objects are written: after a crash in
between, the previous one is still the latest. The pointer also names the checkpoints that are kept. `state.pt` holds
tensors and plain values only and is read with `weights_only=True`.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glioray.engine.package import SPEC_FILE, WEIGHTS_FILE, encode_weights
from glioray.engine.task import Spec
from glioray.errors import ModelError
from glioray.storage import Storage, join_uri

LATEST = "latest.json"
STATE_FILE = "state.pt"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One checkpoint: the weights for inference, their description, and the state to resume from."""

    step: int
    spec: Spec
    weights: dict[str, torch.Tensor]
    state: dict[str, Any]


def save_checkpoint(storage: Storage, checkpoint: Checkpoint, keep: int = 1) -> str:
    """Publish a checkpoint, delete all but the newest `keep`, and return its URI.

    Older ones keep their model, for ensembles, but not the state that only training needs.
    """
    folder = f"checkpoints/step-{checkpoint.step:010d}"
    buffer = io.BytesIO()
    torch.save(checkpoint.state, buffer)
    storage.write(f"{folder}/{STATE_FILE}", buffer.getvalue())
    storage.write(f"{folder}/{WEIGHTS_FILE}", encode_weights(checkpoint.weights))
    storage.write(f"{folder}/{SPEC_FILE}", checkpoint.spec.to_json().encode())
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
    for item in list(storage.list("checkpoints/")):
        if item.key not in needed:
            storage.delete(item.key)
    return join_uri(storage.uri, folder)


def load_state(storage: Storage) -> dict[str, Any] | None:
    """Load the training state of the latest checkpoint onto the CPU; None if the run has none.

    Raises:
        ModelError: the file is damaged.
    """
    folder = latest_folder(storage)
    if folder is None:
        return None
    data = storage.read(f"{folder}/{STATE_FILE}")
    try:
        # torch would read anything but a zip archive as its legacy format.
        if not zipfile.is_zipfile(io.BytesIO(data)):
            raise ValueError("not an archive")
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        # torch's own message runs to a page and advises unsafe unpickling.
        raise ModelError(
            f"'{join_uri(storage.uri, folder, STATE_FILE)}' is damaged or not a checkpoint ({len(data)} bytes); delete "
            "the run's latest.json to start over, or choose another --run-name"
        ) from error
    return state


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
