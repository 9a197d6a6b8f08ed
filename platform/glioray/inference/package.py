"""A model as two files: `model.safetensors` and `model.json`. No pickle, so nothing runs on loading."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from glioray.config import RunConfig, from_dict, to_dict
from glioray.errors import ModelError, UsageError
from glioray.nets import build_net

WEIGHTS_FILE = "model.safetensors"
SPEC_FILE = "model.json"
FORMAT = "glioray-segmentation-1"


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a model is, beside its weights.

    Attributes:
        config: the run's whole config: network, preprocessing and postprocessing among it.
        out_channels: of the network: 3 for regions, classes with background else.
        spacing_mm: median voxel size of the cases it was trained on, along X, Y, Z.
        manifest_hash: of the data it was trained on.
        train_patients: whose cases it has seen; none of them may judge it.
        metrics: figures of its last validation.
        val_cases: per case id, the Dice of each region at that validation.
    """

    config: RunConfig
    out_channels: int
    spacing_mm: tuple[float, float, float]
    manifest_hash: str
    train_patients: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    val_cases: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of `model.json`."""
        return json.dumps(
            {"format": FORMAT, **asdict(self), "config": to_dict(self.config)}, indent=1, sort_keys=True
        )

    def build(self) -> nn.Module:
        """The network, untrained."""
        net = self.config.net
        channels = self.config.preprocess.num_channels
        return build_net(net.name, in_channels=channels, out_channels=self.out_channels, **net.options)


def parse_spec(text: str | bytes) -> ModelSpec:
    """The spec of `to_json`'s text.

    Raises:
        ModelError: it is not JSON, not of this format, or lacks or adds a setting.
    """
    try:
        values: dict[str, Any] = json.loads(text)
        found = values.pop("format")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{SPEC_FILE} is not a model's description ({error}); export the model again"
        ) from error
    if found != FORMAT:
        raise ModelError(f"{SPEC_FILE} has the format '{found}'; this version of glioray reads '{FORMAT}'")
    try:
        return from_dict(ModelSpec, values)
    except (UsageError, TypeError) as error:
        raise ModelError(
            f"{SPEC_FILE} does not fit this version of glioray ({error}); use the version that wrote it, or export "
            "the model again"
        ) from error


def write_package(folder: Path, spec: ModelSpec, weights: dict[str, torch.Tensor]) -> None:
    """Write a model's two files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).write_bytes(encode_weights(weights))
    (folder / SPEC_FILE).write_text(spec.to_json())


def encode_weights(weights: dict[str, torch.Tensor]) -> bytes:
    """Tensors as safetensors bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    data: bytes = safetensors.torch.save(plain)
    return data


def read_package(folder: Path) -> tuple[ModelSpec, nn.Module]:
    """The spec and the network with its weights, in evaluation mode.

    Raises:
        ModelError: a file is missing or damaged, or the weights do not fit the network.
    """
    try:
        spec = parse_spec((folder / SPEC_FILE).read_bytes())
        weights = safetensors.torch.load((folder / WEIGHTS_FILE).read_bytes())
    except OSError as error:
        raise ModelError(
            f"'{folder}' holds no {WEIGHTS_FILE} and {SPEC_FILE} ({error.strerror}); check the URI"
        ) from error
    except SafetensorError as error:
        raise ModelError(
            f"'{folder / WEIGHTS_FILE}' is damaged ({error}); fetch or export the model again"
        ) from error
    try:
        net = spec.build()
    except ValueError as error:
        raise ModelError(
            f"the model in '{folder}' cannot be built ({error}); use the version of glioray that wrote it"
        ) from error
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ModelError(
            f"the weights in '{folder}' do not fit network '{spec.config.net.name}': {reason}"
        ) from error
    return spec, net.eval()
