"""The configs of runs: frozen pydantic models that validate themselves. The parts that every task has are here.

A task's own config derives from `TaskConfig`. It is what a recipe returns, what the flags of a job override, what a
checkpoint carries and what MLflow stores; `fingerprint` names it. Ranges, allowed words, defaults and descriptions
are data: `list_settings` and `serialization.json_schema` give them to the documentation, the flags and the search.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from glioray.errors import UsageError
from glioray.serialization import RULE, describe, explain, fingerprint, from_dict, json_schema, to_dict

C = TypeVar("C", bound="Config")
Item = TypeVar("Item")

Modality = Literal["t1", "t1c", "t2", "flair"]

MODALITIES: tuple[str, ...] = get_args(Modality)
"""The fixed order of the modalities everywhere: arrays, checkpoints, requests."""

REGIONS = ("wt", "tc", "et")
"""Whole tumour, tumour core, enhancing tumour: the regions that BraTS is evaluated on, outermost first."""

Plane = Literal["axial", "coronal", "sagittal"]

PLANES: tuple[Plane, ...] = get_args(Plane)

Optimizer = Literal["adam", "adamw", "sgd", "rmsprop", "adagrad", "schedulefree"]

OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)

Schedule = Literal["constant", "cosine", "cyclic", "onecycle", "poly", "step"]

SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def _check_distinct(values: tuple[Item, ...]) -> tuple[Item, ...]:
    if len(set(values)) < len(values):
        raise ValueError("each value once")
    return values


def _check_rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] < bounds[1]:
        raise ValueError("(low, high) with low < high")
    return bounds


Distinct = Annotated[
    tuple[Item, ...],
    Field(min_length=1, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_check_distinct),
]
"""At least one value, none twice."""

Interval = Annotated[tuple[float, float], AfterValidator(_check_rising)]
"""(low, high) with low < high."""

Fraction = Annotated[float, Field(ge=0, le=1)]
"""A share or a probability."""

FractionBelowOne = Annotated[float, Field(ge=0, lt=1)]

_Percent = Annotated[float, Field(ge=0, le=100)]
_Millimetres = Annotated[float, Field(ge=0.1, le=10)]
_Pixels = Annotated[int, Field(ge=32, multiple_of=16)]


class Config(BaseModel):
    """A frozen group of settings. Values are never converted, but for an int that stands for a float.

    Raises:
        UsageError: a setting that does not exist, or a value that is not allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise UsageError(explain(error, type(self), where=type(self).__name__)) from None

    # Pydantic then builds nested parts without calling `__init__`, so that their errors keep the full path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def replace(self, **changes: Any) -> Self:
        """A validated copy with some of its own settings replaced; `with_settings` takes dotted names.

        Raises:
            UsageError: a setting that does not exist, or a value that is not allowed.
        """
        # A setting that was never given keeps its default, which may follow from what is changed.
        stated = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**stated, **changes})

    def _expect(self, condition: bool, setting: str, expected: str) -> None:
        """In a model validator: refuse a value that other settings do not allow.

        Args:
            condition: what must hold.
            setting: the dotted name of the setting at fault, below this object.
            expected: what it may be, and why.
        """
        if not condition:
            found = reduce(getattr, setting.split("."), self)
            context = {"setting": setting, "found": found, "expected": expected}
            raise PydanticCustomError(RULE, "{setting} is {found}; expected {expected}", context)


class PreprocessConfig(Config):
    """How a case becomes slices. Slices are cached under `cache_key`."""

    planes: Distinct[Plane] = Field(
        ("axial",),
        description="Planes to cut slices along; with several, one network learns all and averages its predictions.",
    )
    size: tuple[_Pixels, _Pixels] = Field(
        (192, 160),
        description="Height and width of a slice in pixels: the brain's box, centred, zero-padded or cropped.",
    )
    modalities: Distinct[Modality] = Field(
        get_args(Modality),
        description="Modalities that the network sees, in this order; cases may lack the others.",
    )
    skull_strip: bool = Field(
        False,
        description="Remove what is not brain; it is found on T1, or on the first modality where T1 is not used.",
    )
    n4: bool = Field(False, description="Correct the coil's bias field (N4).")
    spacing_mm: tuple[_Millimetres, _Millimetres, _Millimetres] | None = Field(
        None, description="Voxel size along X, Y, Z in mm to resample cases to; None keeps each case's own."
    )
    percentiles: Annotated[tuple[_Percent, _Percent], AfterValidator(_check_rising)] | None = Field(
        None,
        description="Percentiles (low, high) of the brain's intensities to clip to before normalising; None: no clipping.",
    )
    normalize: Literal["zscore", "unit", "none"] = Field(
        "zscore",
        description="Intensities: 'zscore' per modality inside the brain, 'unit' to 0..1 (1 is the 99.9th percentile), "
        "or 'none'.",
    )
    clip: Interval = Field(
        (-20.0, 20.0),
        description="Lowest and highest z-score; keeps stray scanner maxima from dominating a batch.",
    )
    clahe: Fraction = Field(
        0.0, description="Clip limit of contrast-limited adaptive histogram equalisation; 0: off."
    )
    brain_channel: bool = Field(False, description="Add the brain's mask as an input channel.")
    neighbours: int = Field(
        0,
        ge=0,
        le=4,
        description="Slices on each side that are added as input channels (2.5-D); 0: plain 2-D.",
    )
    neighbour_step: int = Field(
        1, ge=1, le=8, description="Distance between neighbouring input slices, in slices."
    )

    @property
    def num_channels(self) -> int:
        """Input channels of the network: modalities (and the brain's mask) times slices."""
        return (len(self.modalities) + self.brain_channel) * (2 * self.neighbours + 1)

    @property
    def cache_key(self) -> str:
        """The name of the cached slices. Neighbours are joined when a batch is drawn, so they do not count."""
        return fingerprint(self.replace(neighbours=0, neighbour_step=1))


class SampleConfig(Config):
    """Which slices an epoch draws."""

    foreground_share: Fraction | None = Field(
        None,
        description="Share of each batch drawn from slices with tumour, to the nearest slice and at least one; None: "
        "all slices alike.",
    )
    empty_share: Fraction = Field(
        1.0,
        description="Share of the slices without tumour that is used at all, evenly spaced along the axis.",
    )
    min_tumour_px: int = Field(
        0, ge=0, description="Slices with some tumour but fewer pixels of it than this are left out."
    )
    slice_split: tuple[Fraction, Fraction, Fraction] | None = Field(
        None,
        description="Shares (train, val, test), adding up to 1, to split slices by; None splits patients. Neighbouring "
        "slices of a patient then lie on both sides, which inflates scores.",
    )
    balance_cases: bool = Field(
        False, description="Draw every case equally often, however many of its slices there are."
    )
    steps_per_epoch: int | None = Field(
        None, ge=1, description="Optimiser steps in an epoch; None: one pass over the slices."
    )

    @model_validator(mode="after")
    def _check_slice_split(self) -> Self:
        parts = self.slice_split
        self._expect(
            parts is None or (parts[0] > 0 and parts[1] > 0 and abs(sum(parts) - 1) < 1e-6),
            "slice_split",
            "None or shares (train, val, test) that add up to 1, train and val above 0",
        )
        return self


class AugmentConfig(Config):
    """Augmentation of batches, on the training device, after preprocessing.

    Probabilities (`*_p`, `flip`) are per sample. `strength` multiplies all other amounts. Intensities are z-scores.
    """

    strength: float = Field(
        1.0, ge=0, le=3, description="Factor of every amount; 0 turns all augmentation off."
    )
    flip: tuple[Fraction, Fraction] = Field(
        (0.0, 0.5),
        description="Probability of mirroring rows, and columns; columns only where they run from left to right.",
    )
    affine_p: Fraction = Field(0.3, description="Probability of rotating, scaling, stretching and shifting.")
    rotate_deg: float = Field(15.0, ge=0, description="Largest angle in degrees.")
    scale: float = Field(0.15, ge=0, description="Largest log factor of the size.")
    stretch: float = Field(0.0, ge=0, description="Largest log factor of rows against columns.")
    shift: float = Field(0.0, ge=0, description="Largest shift, as a share of the size.")
    intensity_p: Fraction = Field(
        0.5, description="Probability of contrast, brightness and tone curve, for each channel."
    )
    contrast: float = Field(0.15, ge=0, description="Largest log factor of the contrast.")
    brightness: float = Field(0.1, ge=0, description="Largest offset of the brightness, in z-scores.")
    curve: float = Field(0.0, ge=0, description="Height of the steps of a smooth random tone curve.")
    gamma_p: Fraction = Field(0.15, description="Probability of a power law over each channel's range.")
    gamma: float = Field(0.3, ge=0, description="Largest log exponent of the power law.")
    bias: float = Field(
        0.0,
        ge=0,
        description="Standard deviation of a smooth additive field, as coils leave behind; in z-scores.",
    )
    noise_p: Fraction = Field(0.15, description="Probability of white noise.")
    noise_std: float = Field(
        0.1, ge=0, description="Largest standard deviation of the white noise, in z-scores."
    )
    blur_p: Fraction = Field(0.0, description="Probability of a 3 x 3 mean, as thick slices leave behind.")
    drop_p: Fraction = Field(0.0, description="Probability of blanking a whole modality, for each channel.")
    elastic_p: Fraction = Field(0.0, description="Probability of a smooth random deformation.")
    elastic_px: float = Field(
        10.0,
        ge=0,
        description="Standard deviation of the deformation on a coarse 3 x 3 grid, in pixels.",
    )
    lowres_p: Fraction = Field(0.0, description="Probability of sampling down and up again.")
    lowres: float = Field(2.0, ge=1, description="Largest factor of sampling down.")
    ghost_p: Fraction = Field(
        0.0, description="Probability of ghosts, as periodic motion leaves along one axis."
    )
    ghost: Fraction = Field(0.4, description="Largest share of ghosts in the image.")
    motion_p: Fraction = Field(0.0, description="Probability of a head that moved during the scan.")
    motion_px: float = Field(6.0, ge=0, description="Largest shift of the moved head, in pixels.")


class NetConfig(Config):
    """A network of `glioray.nets`."""

    name: str = Field("unet", description="Name of the network in its registry.")
    options: dict[str, Any] = Field({}, description="Keyword arguments of the network.")


class OptimConfig(Config):
    """Optimiser, schedule, clipping and averaging of the weights."""

    name: Optimizer = Field("adamw", description="Optimiser.")
    lr: float = Field(1e-3, gt=0, le=10, description="Largest learning rate.")
    weight_decay: float = Field(
        1e-4, ge=0, description="Decay of the weights; biases and norms are not decayed."
    )
    momentum: FractionBelowOne = Field(0.9, description="Momentum of sgd (Nesterov's) and rmsprop.")
    betas: tuple[FractionBelowOne, FractionBelowOne] = Field(
        (0.9, 0.999), description="Decay rates of the two moments of adam and adamw."
    )
    schedule: Schedule = Field(
        "cosine", description="Course of the learning rate over the run; schedulefree needs 'constant'."
    )
    warmup: FractionBelowOne = Field(0.05, description="Share of the run in which the rate rises.")
    floor: Fraction = Field(
        0.01, description="Last learning rate of cosine, cyclic, onecycle and poly, as a share of `lr`."
    )
    power: float = Field(0.9, gt=0, description="Exponent of the schedule poly.")
    cycles: int = Field(4, ge=1, description="Number of cycles of the schedule cyclic.")
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.125, 0.25, 0.5, 0.75),
        description="When the schedule step lowers the rate, as shares of the run after the warm-up.",
    )
    drop: float = Field(
        0.5, gt=0, le=1, description="Factor of the rate at each milestone of the schedule step."
    )
    grad_clip: float = Field(1.0, ge=0, description="Largest norm of the gradient; 0: no clipping.")
    ema: FractionBelowOne = Field(
        0.99,
        description="Decay of the moving average of the weights; 0: off, which schedulefree needs.",
    )

    @model_validator(mode="after")
    def _check_schedulefree(self) -> Self:
        if self.name == "schedulefree":
            self._expect(
                self.schedule == "constant",
                "schedule",
                "constant with schedulefree, which replaces the schedule",
            )
            self._expect(self.ema == 0, "ema", "0 with schedulefree, which averages the weights itself")
        return self


_MAX_LOST_CASES = 0.05


class TrainConfig(Config):
    """How long, how wide and from which seed."""

    batch_size: int = Field(16, ge=1, description="Slices in a step, over all workers together.")
    max_epochs: int = Field(50, ge=1, description="Epochs after which the run ends.")
    minutes: float | None = Field(
        None,
        gt=0,
        description="Minutes of training after which the run ends; None: no limit. The schedule follows whichever of "
        "epochs and minutes ends first.",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="Arithmetic of the network; 'auto' takes bf16 where it is faster: a CPU times both at the start. A search or a "
        "comparison decides once for all its runs.",
    )
    num_validations: int = Field(
        10,
        ge=1,
        description="Validations, each with a checkpoint, at ends of epochs evenly over the run; the last epoch has one.",
    )
    num_kept: int = Field(1, ge=1, description="Newest checkpoints to keep; several can form an ensemble.")
    num_workers: int = Field(1, ge=1, description="Data-parallel ranks.")
    max_lost_cases: Fraction = Field(
        _MAX_LOST_CASES,
        description="Share of the run's cases that it may go without because they can no longer be decoded when it starts, "
        "at least one case unless it is 0; beyond that it ends before its first step.",
        # Runs and folders are named after their settings, and those from before this one keep their names.
        exclude_if=lambda share: share == _MAX_LOST_CASES,
    )
    seed: int = Field(0, ge=0, description="Seed of weights, order and augmentation.")

    @model_validator(mode="after")
    def _check_batch_size(self) -> Self:
        workers = self.num_workers
        self._expect(
            self.batch_size % workers == 0, "batch_size", f"a multiple of the {workers} workers (num_workers)"
        )
        return self


class TaskConfig(Config):
    """A whole run of one task: what every task's config has. `task` names the task and is not a setting."""

    task: ClassVar[str]

    recipe: str = Field(description="Name of the recipe that the run started from.")
    preprocess: PreprocessConfig = Field(PreprocessConfig(), description="How a case becomes slices.")
    sample: SampleConfig = Field(SampleConfig(), description="Which slices an epoch draws.")
    train: TrainConfig = Field(TrainConfig(), description="How long, how wide and from which seed.")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a config.

    Attributes:
        path: its dotted name.
        value: in the config that was listed.
        description: one or two plain sentences, with the unit.
        schema: its JSON schema: "type", "minimum", "exclusiveMaximum", "enum" and the like.
    """

    path: str
    value: Any
    description: str
    schema: dict[str, Any]

    @property
    def allowed(self) -> str:
        """The allowed values of the setting, in words: "a number above 0 and at most 10"."""
        return describe(self.schema)


def list_settings(config: Config, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a config, in order, groups taken apart; those of `options` are their network's or loss's.

    Args:
        config: whose values are listed: a recipe's, or the defaults as in `RunConfig(recipe="")`.
        prefix: put before each path.
    """
    properties = json_schema(type(config))["properties"]
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if "$ref" in properties[name]:
            yield from list_settings(value, f"{prefix}{name}.")
        else:
            text = field.description or ""
            yield Setting(path=f"{prefix}{name}", value=value, description=text, schema=properties[name])


def override(config: C, **settings: Any) -> C:
    """`with_settings`, where None keeps the present value: `override(c, **{"train.seed": 3})`."""
    return with_settings(config, {path: value for path, value in settings.items() if value is not None})


def with_settings(config: C, settings: Mapping[str, Any]) -> C:
    """A copy with dotted settings replaced, validated together: some values are only allowed with each other.

    Raises:
        UsageError: a setting that does not exist, or a value that is not allowed.
    """
    values = to_dict(config)
    for path, value in settings.items():
        *parents, last = path.split(".")
        node = values
        for depth, name in enumerate(parents, 1):
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                parent = ".".join(parents[:depth])
                raise UsageError(f"no setting '{path}'; {parent} is {node!r} and has none below it")
        node[last] = value
    return from_dict(type(config), values)
