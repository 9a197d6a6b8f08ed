"""The package of a super-resolution model: its PSNR generator and its GAN generator."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
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
    """Everything about a super-resolution model but its weights.

    Attributes:
        config: of the run, including generator, degradation, scale and normalisation.
        spacing_mm: median voxel size of the high-resolution training cases, along X, Y, Z.
        manifest_hash: of the data it was trained on.
        train_patients: patients used for training; they must not evaluate the model.
        train_images: digests of their images, which must not evaluate the model under other names either.
        stages: those of `STAGES` whose weights it contains.
        metrics: of its last validation, including the collapse score.
        collapse: verdict of that validation: "healthy", "collapsed", "dead", or "unjudged" without a panel.
        reason: the component behind the score.
        extractors: name and hash of the extractors of the loss ("loss") and of evaluation ("judge").
    """

    config: GanConfig
    spacing_mm: tuple[float, float, float]
    manifest_hash: str
    train_patients: tuple[str, ...] = ()
    train_images: tuple[str, ...] = ()
    stages: tuple[str, ...] = ("psnr",)
    metrics: dict[str, float] = field(default_factory=dict)
    collapse: str = "unjudged"
    reason: str = ""
    extractors: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the text of `model.json`."""
        return json.dumps({"format": FORMAT, **to_dict(self)}, indent=1, sort_keys=True)

    def build(self) -> nn.Module:
        """Build an untrained generator."""
        net = self.config.generator
        return build_generator(net.name, channels=self.config.num_channels, **net.options)


def parse_superres(text: str | bytes) -> SuperResSpec:
    """Parse the text of `to_json`.

    Raises:
        ModelError: not JSON, another format, or a missing or unknown setting.
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
    except UsageError as error:
        raise ModelError(
            f"{SPEC_FILE} does not fit this version of glioray ({error}); use the version that wrote it, or train "
            "the model again"
        ) from error


def stage_weights(generators: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Merge the weights of the generators into one dict, prefixed by stage: `gan.trunk.0.weight`."""
    return {f"{stage}.{name}": t for stage, weights in generators.items() for name, t in weights.items()}


def write_superres(folder: Path, spec: SuperResSpec, generators: dict[str, dict[str, torch.Tensor]]) -> None:
    """Write a model's two files into a folder.

    Args:
        folder: created if missing.
        spec: with the `stages` of `generators`.
        generators: state dicts by stage.
    """
    assert set(spec.stages) == set(generators)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).write_bytes(encode_weights(stage_weights(generators)))
    (folder / SPEC_FILE).write_text(spec.to_json())


def read_superres(folder: Path) -> tuple[SuperResSpec, dict[str, nn.Module]]:
    """Read the spec and the generators by stage, in evaluation mode.

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
