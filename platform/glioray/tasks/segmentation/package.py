"""The package of a segmentation model, and ensembles of several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from glioray.cases.fingerprint import Ranges, join_ranges
from glioray.config import REGIONS
from glioray.engine.package import SPEC_FILE, WEIGHTS_FILE, encode_weights, parse_format, read_files
from glioray.errors import ModelError, UsageError
from glioray.nets import build_net
from glioray.nets.ensemble import Ensemble
from glioray.serialization import from_dict, to_dict
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.objective import Sizes

FORMAT = "glioray-segmentation-2"


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything about a model but its weights.

    Attributes:
        config: of the run, including network, preprocessing and postprocessing.
        out_channels: of the network: 3 for regions, else the number of classes with background.
        spacing_mm: median voxel size of the training cases, along X, Y, Z.
        manifest_hash: of the data it was trained on.
        train_patients: patients used for training or to fit thresholds; they must not evaluate the model.
        train_images: digests of their images, which must not evaluate the model under other names either.
        metrics: of its last validation.
        val_cases: Dice of each region at that validation, by case id.
        val_sizes: volumes of each region at that validation, by case id; older packages have none.
        regions: those of WT, TC and ET that some training mask labels; the model predicts no others.
        train_ranges: fingerprints of the training cases (`cases.fingerprint`); empty for fewer than eight, and in older
            packages.
        num_members: networks whose probabilities are averaged (`Ensemble`), equal but for their weights.
    """

    config: RunConfig
    out_channels: int
    spacing_mm: tuple[float, float, float]
    manifest_hash: str
    train_patients: tuple[str, ...] = ()
    train_images: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    val_cases: dict[str, dict[str, float]] = field(default_factory=dict)
    val_sizes: dict[str, dict[str, Sizes]] = field(default_factory=dict)
    regions: tuple[str, ...] = REGIONS
    train_ranges: Ranges = field(default_factory=dict)
    num_members: int = 1

    def to_json(self) -> str:
        """Return the text of `model.json`."""
        return json.dumps({"format": FORMAT, **to_dict(self)}, indent=1, sort_keys=True)

    def build(self, *, pretrained: bool = False) -> nn.Module:
        """Build the untrained network, or ensemble of networks.

        With `pretrained`, weights are read from the file that the network's option `weights` names, if set, to start
        a training. A trained model has its own weights and does not need that file.
        """
        if self.num_members > 1:
            return Ensemble(
                [self._build_one(False) for _ in range(self.num_members)], self.config.loss.target
            )
        return self._build_one(pretrained)

    def _build_one(self, pretrained: bool) -> nn.Module:
        net = self.config.net
        options = {key: value for key, value in net.options.items() if pretrained or key != "weights"}
        channels = self.config.preprocess.num_channels
        return build_net(net.name, in_channels=channels, out_channels=self.out_channels, **options)


def parse_spec(text: str | bytes) -> ModelSpec:
    """Parse the text of `to_json`.

    Raises:
        ModelError: not JSON, another format, or a missing or unknown setting.
    """
    values = parse_format(text, FORMAT, f"this version of glioray reads '{FORMAT}'")
    try:
        return from_dict(ModelSpec, values)
    except UsageError as error:
        raise ModelError(
            f"{SPEC_FILE} does not fit this version of glioray ({error}); use the version that wrote it, or export "
            "the model again"
        ) from error


def write_package(folder: Path, spec: ModelSpec, weights: dict[str, torch.Tensor]) -> None:
    """Write a model's two files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).write_bytes(encode_weights(weights))
    (folder / SPEC_FILE).write_text(spec.to_json())


def read_package(folder: Path) -> tuple[ModelSpec, nn.Module]:
    """Read the spec and the network with its weights, in evaluation mode.

    Raises:
        ModelError: a file is missing or damaged, or the weights do not fit the network.
    """
    spec, weights = read_files(folder, parse_spec)
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


def join_packages(folders: Sequence[Path], folder: Path) -> ModelSpec:
    """Write the ensemble of several models into a folder, and return its spec.

    Members of an ensemble join individually. Its training patients are the union over members, so that none of them
    evaluates it. It has no metrics, since members were validated separately. If region thresholds differ
    (`fit_thresholds`), it uses their mean.

    Args:
        folders: packages of the models.
        folder: created if missing.

    Raises:
        UsageError: fewer than two networks.
        ModelError: a package cannot be read, or the models differ in a setting that an ensemble shares.
    """
    specs: list[ModelSpec] = []
    nets: list[nn.Module] = []
    for path in folders:
        spec, net = read_package(path)
        specs.append(spec)
        nets.extend(net.members if isinstance(net, Ensemble) else [net])
    if len(nets) < 2:
        raise UsageError(f"an ensemble of {len(nets)} network(s); give at least two models")
    first = specs[0]
    for number, spec in enumerate(specs[1:], 2):
        there = _shared_settings(spec)
        for name, value in _shared_settings(first).items():
            if there[name] != value:
                raise ModelError(
                    f"model {number} has {name} {there[name]} but the first has {value}; join models that are alike "
                    "but for their weights"
                )
    config = first.config
    thresholds = np.mean([spec.config.postprocess.thresholds for spec in specs], axis=0)
    rules = config.postprocess.replace(thresholds=_three(thresholds))
    joined = ModelSpec(
        config=config.replace(postprocess=rules),
        out_channels=first.out_channels,
        spacing_mm=_three(np.mean([spec.spacing_mm for spec in specs], axis=0)),
        manifest_hash="+".join(sorted({spec.manifest_hash for spec in specs})),
        train_patients=tuple(sorted({patient for spec in specs for patient in spec.train_patients})),
        train_images=tuple(sorted({digest for spec in specs for digest in spec.train_images})),
        regions=first.regions,
        train_ranges=join_ranges([spec.train_ranges for spec in specs]),
        num_members=len(nets),
    )
    write_package(folder, joined, Ensemble(nets, config.loss.target).state_dict())
    return joined


def _shared_settings(spec: ModelSpec) -> dict[str, Any]:
    """Collect the settings that members of an ensemble must share, by name."""
    config = spec.config
    rules = to_dict(config.postprocess)
    return {
        **{f"net.{name}": value for name, value in to_dict(config.net).items()},
        "out_channels": spec.out_channels,
        "regions": spec.regions,
        "loss.target": config.loss.target,
        **{f"preprocess.{name}": value for name, value in to_dict(config.preprocess).items()},
        # Members may have fitted their thresholds or not.
        **{f"postprocess.{name}": value for name, value in rules.items() if "thresholds" not in name},
    }


def _three(values: Any) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
