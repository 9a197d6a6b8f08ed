"""A super-resolution model as two files, `model.safetensors` and `model.json`: its PSNR generator and its GAN one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from glioray.engine.package import SPEC_FILE, WEIGHTS_FILE, encode_weights, parse_format, read_files
from glioray.errors import ModelError, UsageError
from glioray.nets.gan import build_generator
from glioray.serialization import from_dict, to_dict
from glioray.tasks.superres.config import GanConfig

FORMAT = "glioray-superres-1"

STAGES = ("psnr", "gan")
"""The generators that a model can hold: that of the pixel stage, and that of the adversarial one."""


@dataclass(frozen=True, kw_only=True)
class SuperResSpec:
    """What a super-resolution model is, beside its weights.

    Attributes:
        config: the run's whole config: generator, degradation, scale and normalisation among it.
        spacing_mm: median voxel size of the high resolution it was trained on, along X, Y, Z.
        manifest_hash: of the data it was trained on.
        train_patients: whose cases it has seen; none of them may judge it.
        stages: of `STAGES`, those whose weights it holds.
        metrics: figures of its last validation, the collapse score among them.
        collapse: of that validation: "healthy", "collapsed", or "unjudged" where no panel could be made.
        reason: the component that the score comes from.
        extractors: name and hash of what it was trained with ("loss") and judged by ("judge").
    """

    config: GanConfig
    spacing_mm: tuple[float, float, float]
    manifest_hash: str
    train_patients: tuple[str, ...] = ()
    stages: tuple[str, ...] = ("psnr",)
    metrics: dict[str, float] = field(default_factory=dict)
    collapse: str = "unjudged"
    reason: str = ""
    extractors: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of `model.json`."""
        values = {"format": FORMAT, **asdict(self), "config": to_dict(self.config)}
        return json.dumps(values, indent=1, sort_keys=True)

    def build(self) -> nn.Module:
        """A generator, untrained."""
        net = self.config.generator
        return build_generator(net.name, channels=self.config.num_channels, **net.options)


def parse_superres(text: str | bytes) -> SuperResSpec:
    """The spec of `to_json`'s text.

    Raises:
        ModelError: it is not JSON, not of this format, or lacks or adds a setting.
    """
    values = parse_format(
        text,
        FORMAT,
        f"super-resolution wants '{FORMAT}', so name a model that train_gan.py or tune_gan.py made",
    )
    try:
        spec = from_dict(SuperResSpec, values)
        if not spec.stages or not set(spec.stages) <= set(STAGES):
            raise UsageError(f"stages is {spec.stages!r}; expected {' and '.join(STAGES)}, or one of them")
        return spec
    except (UsageError, TypeError) as error:
        raise ModelError(
            f"{SPEC_FILE} does not fit this version of glioray ({error}); use the version that wrote it, or train "
            "the model again"
        ) from error


def stage_weights(generators: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The weights of a model's generators, by stage, as one table: `gan.trunk.0.weight`."""
    return {f"{stage}.{name}": t for stage, weights in generators.items() for name, t in weights.items()}


def write_superres(folder: Path, spec: SuperResSpec, generators: dict[str, dict[str, torch.Tensor]]) -> None:
    """Write a model's two files into a folder.

    Args:
        folder: is made where there is none.
        spec: its `stages` are those of `generators`.
        generators: state dict by stage.
    """
    assert set(spec.stages) == set(generators)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).write_bytes(encode_weights(stage_weights(generators)))
    (folder / SPEC_FILE).write_text(spec.to_json())


def read_superres(folder: Path) -> tuple[SuperResSpec, dict[str, nn.Module]]:
    """The spec and the generators by stage, in evaluation mode.

    Raises:
        ModelError: a file is missing or damaged, or the weights do not fit the generator.
    """
    spec, weights = read_files(folder, parse_superres)
    nets = {}
    for stage in spec.stages:
        prefix = f"{stage}."
        own = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
        try:
            net = spec.build()
            net.load_state_dict(own)
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise ModelError(
                f"the {stage} weights in '{folder}' do not fit generator '{spec.config.generator.name}': {reason}"
            ) from error
        nets[stage] = net.eval()
    return spec, nets
