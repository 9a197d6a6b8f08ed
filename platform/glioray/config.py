"""What a run is: frozen dataclasses that check themselves; `plain.py` brings them to plain dicts and back.

Standard library only. A `RunConfig` is what a recipe returns, what the flags of a job override, what a
checkpoint carries and what MLflow stores; `fingerprint` names it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from glioray.errors import UsageError
from glioray.serialization import fingerprint, from_dict, to_dict

C = TypeVar("C")

MODALITIES = ("t1", "t1c", "t2", "flair")
"""The fixed order of the modalities everywhere: arrays, checkpoints, requests."""

REGIONS = ("wt", "tc", "et")
"""Whole tumour, tumour core, enhancing tumour: the regions that BraTS is judged on, outermost first."""

PLANES = ("axial", "coronal", "sagittal")

OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop", "adagrad", "schedulefree")

SCHEDULES = ("constant", "cosine", "cyclic", "onecycle", "poly", "step")

NORMALIZATIONS = ("zscore", "unit", "none")


def check(condition: bool, name: str, value: object, expected: str) -> None:
    """Refuse a setting whose condition does not hold.

    Raises:
        UsageError: names the setting, its value and what is expected.
    """
    if not condition:
        raise UsageError(f"{name} is {value!r}; expected {expected}")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """The deterministic part between a file and a slice; its fingerprint keys the cache.

    Attributes:
        planes: of the slices; with several, one network sees them all and a prediction is their mean.
        size: (H, W) of a slice in pixels: the brain's box, centred, padded with 0 or cut.
        modalities: that the network is fed, in this order; cases may lack the others.
        skull_strip: remove what is not brain, for scans that still have a skull; it is found on T1 where that
            is among the modalities, or else on the first of them.
        n4: correct the coil's bias field (N4).
        spacing_mm: of the voxels along X, Y, Z that cases are resampled to; None leaves each as it is.
        percentiles: of the brain's intensities, (low, high), that they are cut at before normalising.
        normalize: "zscore" (per modality inside the brain), "unit" (to [0, 1], where 1 is its 99.9th percentile) or
            "none".
        clip: bounds of the z-scores, (low, high); keeps stray scanner maxima from swamping a batch.
        clahe: clip limit of contrast-limited adaptive histogram equalisation, in (0, 1]; 0 turns it off.
        brain_channel: feed the brain's mask as one further channel.
        neighbours: slices on each side that are fed as further channels (2.5-D); 0 for plain 2-D.
        neighbour_step: the distance between them, in slices.
    """

    planes: tuple[str, ...] = ("axial",)
    size: tuple[int, int] = (192, 160)
    modalities: tuple[str, ...] = MODALITIES
    skull_strip: bool = False
    n4: bool = False
    spacing_mm: tuple[float, float, float] | None = None
    percentiles: tuple[float, float] | None = None
    normalize: str = "zscore"
    clip: tuple[float, float] = (-20.0, 20.0)
    clahe: float = 0.0
    brain_channel: bool = False
    neighbours: int = 0
    neighbour_step: int = 1

    def __post_init__(self) -> None:
        known = set(self.planes) <= set(PLANES) and len(set(self.planes)) == len(self.planes) > 0
        check(known, "preprocess.planes", self.planes, f"some of {', '.join(PLANES)}")
        check(
            all(s >= 32 and s % 16 == 0 for s in self.size),
            "preprocess.size",
            self.size,
            "multiples of 16 from 32 on",
        )
        fed = (
            set(self.modalities) <= set(MODALITIES) and len(set(self.modalities)) == len(self.modalities) > 0
        )
        check(fed, "preprocess.modalities", self.modalities, f"some of {', '.join(MODALITIES)}")
        spacing, cut = self.spacing_mm, self.percentiles
        check(
            spacing is None or all(0.1 <= mm <= 10 for mm in spacing),
            "preprocess.spacing_mm",
            spacing,
            "None or three from 0.1 to 10",
        )
        check(
            cut is None or 0 <= cut[0] < cut[1] <= 100,
            "preprocess.percentiles",
            cut,
            "None or (low, high) from 0 to 100",
        )
        check(0 <= self.clahe <= 1, "preprocess.clahe", self.clahe, "0 (off) to 1")
        check(
            self.normalize in NORMALIZATIONS,
            "preprocess.normalize",
            self.normalize,
            f"one of {', '.join(NORMALIZATIONS)}",
        )
        check(self.clip[0] < self.clip[1], "preprocess.clip", self.clip, "(low, high) with low < high")
        check(0 <= self.neighbours <= 4, "preprocess.neighbours", self.neighbours, "0 to 4")
        check(1 <= self.neighbour_step <= 8, "preprocess.neighbour_step", self.neighbour_step, "1 to 8")

    @property
    def num_channels(self) -> int:
        """Channels that the network is fed: modalities (and the brain's mask) times slices."""
        return (len(self.modalities) + self.brain_channel) * (2 * self.neighbours + 1)

    @property
    def cache_key(self) -> str:
        """Names what is stored: neighbours are put together when a batch is drawn, so they do not count."""
        return fingerprint(dataclasses.replace(self, neighbours=0, neighbour_step=1))


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Which slices an epoch draws.

    Attributes:
        foreground_share: share of each batch that is drawn from slices with tumour, to one slice and at least
            one; None draws all alike.
        empty_share: share of the slices without tumour that is kept at all (evenly spaced along the axis).
        min_tumour_px: slices with some tumour, but less than so many pixels of it in the window, are left out.
        slice_split: shares (train, val, test) by which slices, rather than patients, are split; None for
            patients. Neighbouring slices of one patient then lie on both sides, so that figures flatter.
        balance_cases: draw each case equally often, however many of its slices there are.
        steps_per_epoch: optimiser steps an epoch; None for one pass over the kept slices.
    """

    foreground_share: float | None = None
    empty_share: float = 1.0
    min_tumour_px: int = 0
    slice_split: tuple[float, float, float] | None = None
    balance_cases: bool = False
    steps_per_epoch: int | None = None

    def __post_init__(self) -> None:
        share = self.foreground_share
        check(share is None or 0 <= share <= 1, "sample.foreground_share", share, "None or 0 to 1")
        check(0 <= self.empty_share <= 1, "sample.empty_share", self.empty_share, "0 to 1")
        check(self.min_tumour_px >= 0, "sample.min_tumour_px", self.min_tumour_px, "at least 0")
        parts = self.slice_split
        check(
            parts is None
            or (min(parts) >= 0 and parts[0] > 0 and parts[1] > 0 and abs(sum(parts) - 1) < 1e-6),
            "sample.slice_split",
            parts,
            "None or shares (train, val, test) that add up to 1, train and val above 0",
        )
        steps = self.steps_per_epoch
        check(steps is None or steps > 0, "sample.steps_per_epoch", steps, "None or at least 1")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation on batches, on the training device, after the deterministic part.

    Probabilities (`*_p`, `flip`) are per sample; the ranges of all else are multiplied by `strength`, and 0
    turns everything off. Intensities are z-scores.

    Attributes:
        flip: probability of mirroring rows and columns; columns only where they run from left to right.
        affine_p: of rotation, scaling, stretching and shifting.
        rotate_deg: largest angle.
        scale: largest log factor of the size.
        stretch: largest log factor of rows against columns.
        shift: largest shift, as a share of the size.
        intensity_p: of contrast, brightness and tone curve, each per channel.
        contrast: largest log factor.
        brightness: largest offset.
        curve: height of the steps that a smooth random tone curve is made of.
        gamma_p: of a power law over each channel's range.
        gamma: largest log exponent.
        bias: standard deviation of a smooth additive field, as coils leave behind.
        noise_p: of white noise.
        noise_std: its largest standard deviation.
        blur_p: of a 3 x 3 mean, as thick slices leave behind.
        drop_p: of blanking a whole modality, per channel.
        elastic_p: of a smooth random deformation.
        elastic_px: standard deviation of its displacements on a coarse 3 x 3 grid, in pixels.
        lowres_p: of being sampled down and up again.
        lowres: the largest factor of that.
        ghost_p: of ghosts, as periodic motion leaves along one axis.
        ghost: their largest share of the image.
        motion_p: of a head that moved in the midst of the scan.
        motion_px: its largest shift, in pixels.
    """

    strength: float = 1.0
    flip: tuple[float, float] = (0.0, 0.5)
    affine_p: float = 0.3
    rotate_deg: float = 15.0
    scale: float = 0.15
    stretch: float = 0.0
    shift: float = 0.0
    intensity_p: float = 0.5
    contrast: float = 0.15
    brightness: float = 0.1
    curve: float = 0.0
    gamma_p: float = 0.15
    gamma: float = 0.3
    bias: float = 0.0
    noise_p: float = 0.15
    noise_std: float = 0.1
    blur_p: float = 0.0
    drop_p: float = 0.0
    elastic_p: float = 0.0
    elastic_px: float = 10.0
    lowres_p: float = 0.0
    lowres: float = 2.0
    ghost_p: float = 0.0
    ghost: float = 0.4
    motion_p: float = 0.0
    motion_px: float = 6.0

    def __post_init__(self) -> None:
        check(0 <= self.strength <= 3, "augment.strength", self.strength, "0 to 3")
        for name in [f.name for f in dataclasses.fields(self) if f.name.endswith("_p")]:
            check(0 <= getattr(self, name) <= 1, f"augment.{name}", getattr(self, name), "0 to 1")
        check(all(0 <= p <= 1 for p in self.flip), "augment.flip", self.flip, "two from 0 to 1")
        check(self.lowres >= 1, "augment.lowres", self.lowres, "at least 1")
        check(0 <= self.ghost <= 1, "augment.ghost", self.ghost, "0 to 1")


@dataclass(frozen=True, kw_only=True)
class NetConfig:
    """A network by its name in `glioray.nets`, and its keyword arguments."""

    name: str = "unet"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser, schedule, clipping and averaging of the weights.

    Attributes:
        name: one of `OPTIMIZERS`.
        lr: the largest learning rate.
        weight_decay: of weights; biases and norms are not decayed.
        momentum: of sgd (Nesterov's) and rmsprop.
        betas: of adam and adamw.
        schedule: one of `SCHEDULES`, as `training.optim.learning_rate` has them; schedulefree wants constant.
        warmup: share of the run in which the rate rises.
        floor: share of `lr` that cosine, cyclic, onecycle and poly end on.
        power: of poly.
        cycles: of cyclic.
        milestones: of step: shares of what comes after the warm-up, at each of which the rate falls.
        drop: of step: to this share of what it was.
        grad_clip: largest norm of the gradient; 0 turns it off.
        ema: decay of the weights' moving average; 0 turns it off, as schedulefree wants it.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "cosine"
    warmup: float = 0.05
    floor: float = 0.01
    power: float = 0.9
    cycles: int = 4
    milestones: tuple[float, ...] = (0.125, 0.25, 0.5, 0.75)
    drop: float = 0.5
    grad_clip: float = 1.0
    ema: float = 0.99

    def __post_init__(self) -> None:
        check(self.name in OPTIMIZERS, "optim.name", self.name, f"one of {', '.join(OPTIMIZERS)}")
        check(0 < self.lr <= 10, "optim.lr", self.lr, "above 0, at most 10")
        check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "at least 0")
        check(0 <= self.momentum < 1, "optim.momentum", self.momentum, "0 to below 1")
        check(self.schedule in SCHEDULES, "optim.schedule", self.schedule, f"one of {', '.join(SCHEDULES)}")
        check(
            self.name != "schedulefree" or self.schedule == "constant",
            "optim.schedule",
            self.schedule,
            "constant with schedulefree, which replaces the schedule",
        )
        check(0 <= self.warmup < 1, "optim.warmup", self.warmup, "0 to below 1")
        check(0 <= self.floor <= 1, "optim.floor", self.floor, "0 to 1")
        check(self.power > 0, "optim.power", self.power, "above 0")
        check(self.cycles >= 1, "optim.cycles", self.cycles, "at least 1")
        check(all(0 <= beta < 1 for beta in self.betas), "optim.betas", self.betas, "two from 0 to below 1")
        check(
            all(0 < share < 1 for share in self.milestones),
            "optim.milestones",
            self.milestones,
            "shares between 0 and 1",
        )
        check(0 < self.drop <= 1, "optim.drop", self.drop, "above 0, at most 1")
        check(0 <= self.ema < 1, "optim.ema", self.ema, "0 to below 1")
        check(
            self.name != "schedulefree" or self.ema == 0,
            "optim.ema",
            self.ema,
            "0 with schedulefree, which averages the weights itself",
        )
        check(self.grad_clip >= 0, "optim.grad_clip", self.grad_clip, "0 (off) or more")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how wide and from which seed.

    Attributes:
        batch_size: the global batch, over all workers.
        max_epochs: the run ends after so many.
        minutes: and after so many minutes of training; the schedule follows whichever ends first.
        precision: "auto" (bf16 where the device gains by it), "bf16" or "fp32".
        num_validations: evenly over the run, each with a checkpoint, at the ends of epochs; the last one always.
        num_kept: checkpoints that are kept; several can be put together to an ensemble.
        num_workers: ranks.
    """

    batch_size: int = 16
    max_epochs: int = 50
    minutes: float | None = None
    precision: str = "auto"
    num_validations: int = 10
    num_kept: int = 1
    num_workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.batch_size >= 1, "train.batch_size", self.batch_size, "at least 1")
        check(self.max_epochs >= 1, "train.max_epochs", self.max_epochs, "at least 1")
        check(self.minutes is None or self.minutes > 0, "train.minutes", self.minutes, "above 0")
        check(
            self.precision in ("auto", "bf16", "fp32"),
            "train.precision",
            self.precision,
            "auto, bf16 or fp32",
        )
        check(self.num_validations >= 1, "train.num_validations", self.num_validations, "at least 1")
        check(self.num_kept >= 1, "train.num_kept", self.num_kept, "at least 1")
        check(self.num_workers >= 1, "train.num_workers", self.num_workers, "at least 1")
        check(self.seed >= 0, "train.seed", self.seed, "at least 0")
        check(
            self.batch_size % self.num_workers == 0,
            "train.batch_size",
            self.batch_size,
            f"a multiple of the {self.num_workers} workers",
        )


def override(config: C, **settings: Any) -> C:
    """`with_settings`, where a None value keeps what is there: `override(c, **{"train.seed": 3})`."""
    return with_settings(config, {path: value for path, value in settings.items() if value is not None})


def with_settings(config: C, settings: Mapping[str, Any]) -> C:
    """A copy with dotted settings replaced, all at once: some are only possible together.

    Raises:
        UsageError: a name that is not a setting, or a value that cannot be.
    """
    values = to_dict(config)
    for path, value in settings.items():
        *parents, last = path.split(".")
        node = values
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise UsageError(f"'{path}' is not a setting; '{name}' is {node!r} and has none below it")
        node[last] = value
    return from_dict(type(config), values)
