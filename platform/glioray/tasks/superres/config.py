"""The config of a super-resolution run: what a recipe returns and a model keeps."""

from __future__ import annotations

from typing import ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from glioray.config import (
    Config,
    Fraction,
    FractionBelowOne,
    Interval,
    NetConfig,
    OptimConfig,
    PreprocessConfig,
    Schedule,
    TaskConfig,
)

Degradation = Literal["bicubic_aa", "kspace", "gaussian"]

DEGRADATIONS: tuple[Degradation, ...] = get_args(Degradation)

PixelLoss = Literal["l1", "mse", "charbonnier"]

DEAD = "dead"

COLLAPSE_COMPONENTS = ("invalid", "conditioning", "diversity", "texture", "artefact", "fidelity", DEAD)


class DegradeConfig(Config):
    """How low resolution is made of high resolution; stored with the model, which is trained for no other."""

    name: Degradation = Field("bicubic_aa", description="Kind of degradation.")
    hr_size: int = Field(
        128, ge=32, le=1024, description="Side of the high-resolution training images, in pixels."
    )
    lr_size: int = Field(
        32,
        ge=8,
        description="Side of the low-resolution images, in pixels. The scale is hr_size / lr_size and need not be whole.",
    )
    cut: Literal["patch", "whole"] = Field(
        "patch",
        description="Cut a window out of a slice at its own pixels ('patch'), or resize the slice ('whole').",
    )
    noise: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Standard deviation of the noise in low resolution, as a share of the images' range; Rician for kspace.",
    )
    sigma: float = Field(
        0.5, gt=0, le=4, description="Standard deviation of gaussian, in low-resolution pixels."
    )

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        self._expect(self.lr_size < self.hr_size, "lr_size", f"below hr_size, which is {self.hr_size}")
        self._expect(
            self.hr_size <= 8 * self.lr_size,
            "lr_size",
            f"at least hr_size / 8, which is {self.hr_size / 8:g}",
        )
        return self

    @property
    def scale(self) -> float:
        """High-resolution pixels for one of low resolution, along each axis."""
        return self.hr_size / self.lr_size


class GanLossConfig(Config):
    """The losses of generator and discriminator; a term with weight 0 is left out."""

    pixel: PixelLoss = Field("l1", description="Pixel loss of the adversarial stage.")
    pixel_weight: float = Field(1.0, ge=0, description="Weight of the pixel loss in the adversarial stage.")
    perceptual_weight: float = Field(0.1, ge=0, description="Weight of the distance between features.")
    extractor: str = Field(
        "auto", description="Network whose features are compared; 'auto' takes what is there."
    )
    extractor_weights: str | None = Field(
        None,
        description="File, s3:// URI or https:// URL of the extractor's weights; None where it brings its own.",
    )
    layers: dict[str, float] = Field(
        {}, description="Weight by name of the extractor's layer; empty: the extractor's default layers."
    )
    perceptual_distance: Literal["l1", "mse"] = Field("l1", description="Distance between features.")
    perceptual_crop: int = Field(
        0,
        ge=0,
        description="Side of a random square of each image that features are compared in, in pixels, at least 32; 0: all.",
    )
    adversarial: Literal["vanilla", "ragan", "lsgan", "hinge"] = Field(
        "ragan", description="Adversarial loss."
    )
    adversarial_weight: float = Field(5e-3, ge=0, description="Weight of the generator's adversarial loss.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Smoothing of the discriminator's targets for real images; 0: off."
    )
    r1: float = Field(0.0, ge=0, description="Gradient penalty on real images (gamma); 0: off.")
    r1_every: int = Field(
        16,
        ge=1,
        description="Discriminator steps from one penalty to the next, which is weighted accordingly.",
    )
    instance_noise: float = Field(
        0.0,
        ge=0,
        description="Standard deviation of the noise on all that the discriminator sees, falling to 0 over the run.",
    )

    @model_validator(mode="after")
    def _check_terms(self) -> Self:
        self._expect(
            self.adversarial != "hinge" or self.label_smoothing == 0,
            "label_smoothing",
            "0 with hinge, which has no targets to smooth",
        )
        crop = self.perceptual_crop
        self._expect(crop == 0 or crop >= 32, "perceptual_crop", "0 (off) or at least 32")
        self._expect(
            self.pixel_weight + self.perceptual_weight + self.adversarial_weight > 0,
            "pixel_weight",
            "above 0 where perceptual_weight and adversarial_weight are 0",
        )
        return self


class PretrainConfig(Config):
    """The stage before the adversarial one, in which the generator is trained by its pixels alone."""

    share: Fraction = Field(
        0.3, description="Share of the run; 1 trains nothing but this stage (a PSNR model)."
    )
    pixel: PixelLoss = Field("l1", description="Pixel loss of this stage.")
    rate: float = Field(
        5e-4, gt=0, le=1, description="Learning rate; all else is as in the generator's optimiser."
    )
    schedule: Schedule = Field("cosine", description="Course of the learning rate over this stage.")
    warmup: FractionBelowOne = Field(
        0.05,
        description="Share of this stage in which the rate rises; without it generators without a norm get stuck at bicubic.",
    )
    source: str | None = Field(
        None,
        description="Super-resolution model (a run's folder, models:/ or runs:/) whose PSNR generator the run starts "
        "from; `share` then usually is 0.",
    )


class CollapseConfig(Config):
    """When a generator counts as collapsed, or dead: bounds (ok, bad) of each component, between which it rises from 0 to 1.

    The defaults were measured on slices of real cases; `jobs/calibrate.py` checks them on others.
    """

    invalid: Interval = Field((0.02, 0.25), description="Share of pixels outside [-0.1, 1.1].")
    conditioning: Interval = Field(
        (0.05, 0.40),
        description="Share of outputs that, downsampled again, are nearest to another slice's input.",
    )
    diversity: Interval = Field((0.25, 0.65), description="Share of the inputs' Vendi score that is lost.")
    texture: Interval = Field(
        (0.08, 0.30), description="Detail that is the same everywhere, beyond that of real slices."
    )
    artefact: Interval = Field(
        (6.0, 14.0), description="dB above the real spectrum, beyond the low resolution's Nyquist frequency."
    )
    fidelity: Interval = Field((2.0, 6.0), description="dB of foreground PSNR below bicubic.")
    dead: Interval = Field(
        (0.5, 1.0),
        description="Share of the pixel stage's gain in PSNR that is lost, without more quality in exchange.",
    )
    threshold: float = Field(
        0.5, gt=0, le=1, description="Score from which an evaluation counts as collapsed."
    )
    grace: int = Field(2, ge=0, description="First evaluations of the adversarial stage that do not count.")
    patience: int = Field(
        2, ge=1, description="Collapsed evaluations, among the last `window`, that make a run collapsed."
    )
    window: int = Field(
        6,
        description="Last evaluations that `patience` looks at; at least `patience`, which means those in a row.",
    )
    dead_patience: int = Field(
        3,
        ge=1,
        description="Last evaluations, after `grace`, that must all be dead or collapsed for a run to be dead.",
    )
    stop: bool = Field(True, description="Stop a collapsed or dead run at once.")
    num_slices: int = Field(64, description="Most slices of the panel that is evaluated.")
    min_slices: int = Field(32, ge=2, description="Fewest slices that can be evaluated.")
    per_patient: int = Field(
        4,
        ge=1,
        description="Most slices of one patient and modality; more where there are too few patients.",
    )
    apart_mm: float = Field(5.0, ge=0, description="Least distance between two slices of a patient, in mm.")
    judge: str = Field(
        "auto",
        description="Extractor of LPIPS, preferably not that of the loss; 'auto' takes another one where it can.",
    )
    judge_weights: str | None = Field(
        None, description="File or URI of the judge's weights; None where it brings its own."
    )

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        self._expect(
            self.window >= self.patience, "window", f"at least collapse.patience, which is {self.patience}"
        )
        self._expect(
            self.min_slices <= self.num_slices, "min_slices", f"2 to num_slices, which is {self.num_slices}"
        )
        return self


class UseConfig(Config):
    """A frozen segmenter that judges the super-resolved slices."""

    segmenter: str | None = Field(
        None,
        description="Segmentation model (models:/, runs:/ or a run's folder) that is run on the validation cases at the "
        "end: Dice on super-resolved slices beside bicubic and real ones; None: not measured.",
    )
    weight: float = Field(
        0.0, ge=0, description="Weight of the gain in Dice over bicubic in the objective of a search."
    )

    @model_validator(mode="after")
    def _check_segmenter(self) -> Self:
        self._expect(
            self.weight == 0 or self.segmenter is not None,
            "segmenter",
            "a segmentation model where use.weight is above 0",
        )
        return self


class GanConfig(TaskConfig):
    """A whole super-resolution run."""

    task: ClassVar[str] = "superres"

    preprocess: PreprocessConfig = Field(
        PreprocessConfig(normalize="unit"), description="How a case becomes slices."
    )
    degrade: DegradeConfig = Field(DegradeConfig(), description="How low resolution is made.")
    channels: Literal["each", "joint"] = Field(
        "each",
        description="'each': the generator takes one channel, every modality of a slice is an image of its own, and one "
        "model serves any of them; 'joint': it takes all modalities as channels.",
    )
    generator: NetConfig = Field(NetConfig(name="rrdbnet"), description="The generator, of `nets.gan`.")
    discriminator: NetConfig = Field(NetConfig(name="patch"), description="The discriminator, of `nets.gan`.")
    loss: GanLossConfig = Field(
        GanLossConfig(), description="What generator and discriminator are trained by."
    )
    pretrain: PretrainConfig = Field(PretrainConfig(), description="The stage before the adversarial one.")
    optim_g: OptimConfig = Field(
        OptimConfig(name="adam", lr=1e-4),
        description="Optimiser of the generator in the adversarial stage; its `ema` holds for both stages.",
    )
    optim_d: OptimConfig = Field(
        OptimConfig(name="adam", lr=1e-4, ema=0.0),
        description="Optimiser of the discriminator; its `ema` is not used.",
    )
    d_steps: int = Field(1, ge=1, le=16, description="Discriminator steps for one of the generator.")
    flip: Fraction = Field(
        0.5, description="Probability of mirroring rows, and columns, of a training image."
    )
    collapse: CollapseConfig = Field(CollapseConfig(), description="When a generator counts as collapsed.")
    use: UseConfig = Field(UseConfig(), description="What a frozen segmenter makes of the slices.")

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        self._expect(
            self.preprocess.normalize == "unit",
            "preprocess.normalize",
            "unit: super-resolution works on intensities from 0 to 1",
        )
        reason = "super-resolution takes every channel for an image to upsample"
        self._expect(self.preprocess.neighbours == 0, "preprocess.neighbours", f"0: {reason}")
        self._expect(not self.preprocess.brain_channel, "preprocess.brain_channel", f"False: {reason}")
        self._expect(
            self.sample.slice_split is None,
            "sample.slice_split",
            "None: super-resolution is evaluated on patients that were not trained on",
        )
        size = self.preprocess.size
        self._expect(
            self.degrade.cut == "whole" or min(size) >= self.degrade.hr_size,
            "degrade.hr_size",
            f"at most the shorter side of preprocess.size {size} where degrade.cut is patch",
        )
        return self

    @model_validator(mode="after")
    def _check_optimizers(self) -> Self:
        for name in ("optim_g", "optim_d"):
            self._expect(
                getattr(self, name).name != "schedulefree",
                f"{name}.name",
                "another optimiser: the generator is averaged already",
            )
        return self

    @property
    def num_channels(self) -> int:
        """Channels of the generator."""
        return 1 if self.channels == "each" else len(self.preprocess.modalities)
