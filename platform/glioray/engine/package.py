"""A model as two files, `model.safetensors` and `model.json`. No pickle, so loading one runs no code of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError

from glioray.cases.formats import POINTERS, identify
from glioray.errors import ModelError

WEIGHTS_FILE = "model.safetensors"


SPEC_FILE = "model.json"


Spec = TypeVar("Spec")


def parse_format(text: str | bytes, name: str, expected: str) -> dict[str, Any]:
    """Parse a `model.json`, checking its format.

    Args:
        text: of the file.
        name: the expected format.
        expected: end of the error message for another format.

    Returns: its values, without the format.

    Raises:
        ModelError: not JSON, or another format.
    """
    try:
        values: dict[str, Any] = json.loads(text)
        found = values.pop("format")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{SPEC_FILE} is not a model's description ({error}); export the model again"
        ) from error
    if found != name:
        raise ModelError(f"{SPEC_FILE} has the format '{found}'; {expected}")
    return values


def digest_package(folder: Path) -> str:
    """The sha256 of a package's two files."""
    digest = hashlib.sha256()
    for name in (WEIGHTS_FILE, SPEC_FILE):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def encode_weights(weights: dict[str, torch.Tensor]) -> bytes:
    """Encode tensors as safetensors bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    data: bytes = safetensors.torch.save(plain)
    return data


def halve_weights(folder: Path) -> None:
    """Store the weights of a package as 16-bit floats; biases and statistics of norms, which are few, stay as they are."""
    path = folder / WEIGHTS_FILE
    weights = safetensors.torch.load(path.read_bytes())
    path.write_bytes(
        encode_weights(
            {name: t.half() if t.is_floating_point() and t.ndim > 1 else t for name, t in weights.items()}
        )
    )


def read_files(folder: Path, parse: Callable[[bytes], Spec]) -> tuple[Spec, dict[str, torch.Tensor]]:
    """Read a model's two files: its description, by `parse`, and its weights by name.

    Raises:
        ModelError: a file is missing or damaged.
    """
    try:
        spec = parse(_read(folder / SPEC_FILE))
        return spec, safetensors.torch.load(_read(folder / WEIGHTS_FILE))
    except OSError as error:
        raise ModelError(
            f"'{folder}' holds no {WEIGHTS_FILE} and {SPEC_FILE} ({error.strerror}); check the URI"
        ) from error
    except SafetensorError as error:
        raise ModelError(
            f"'{folder / WEIGHTS_FILE}' is damaged ({error}); fetch or export the model again"
        ) from error


def _read(path: Path) -> bytes:
    data = path.read_bytes()
    if (kind := identify(data)) is not None and kind in POINTERS:
        raise ModelError(f"'{path}' is {kind.name}; {kind.advice}")
    return data
