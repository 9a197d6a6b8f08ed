"""What a super-resolution run is: the sibling of `config.RunConfig` for generators and discriminators.

Standard library only. What both kinds of run have alike (preprocessing, sampling, optimisers, length) are the
same dataclasses; `with_settings` of `config.py` replaces settings of either.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from glioray.config import (
    SCHEDULES,
    NetConfig,
    OptimConfig,
    PreprocessConfig,
    SampleConfig,
    TrainConfig,
    check,
)

DEGRADATIONS = ("bicubic_aa", "kspace", "gaussian")

COLLAPSE_COMPONENTS = ("invalid", "conditioning", "diversity", "texture", "artefact", "fidelity")


@dataclass(frozen=True, kw_only=True)
class DegradeConfig:
    """How low resolution is made of high resolution; stored with the model, which knows no other.

    Attributes:
        name: one of `DEGRADATIONS`, as `slices.degrade` has them.
        hr_size: side of the high-resolution images of training, in pixels.
        lr_size: side of what is made of them; the scale is the ratio of both and need not be whole.
        cut: how an image is made of a slice: "patch" (a window of it, at its own pixels) or "whole" (all of it,
            brought to that size).
        noise: standard deviation of the noise in low resolution, in units of the images' range; Rician for kspace.
        sigma: of gaussian, in low-resolution pixels.
    """

    name: str = "bicubic_aa"
    hr_size: int = 128
    lr_size: int = 32
    cut: str = "patch"
    noise: float = 0.0
    sigma: float = 0.5

    def __post_init__(self) -> None:
        check(self.name in DEGRADATIONS, "degrade.name", self.name, f"one of {', '.join(DEGRADATIONS)}")
        check(32 <= self.hr_size <= 1024, "degrade.hr_size", self.hr_size, "32 to 1024")
        check(8 <= self.lr_size < self.hr_size, "degrade.lr_size", self.lr_size, "8 to below hr_size")
        check(self.hr_size <= 8 * self.lr_size, "degrade.lr_size", self.lr_size, "at least hr_size / 8")
        check(self.cut in ("patch", "whole"), "degrade.cut", self.cut, "patch or whole")
        check(0 <= self.noise <= 0.5, "degrade.noise", self.noise, "0 to 0.5")
        check(0 < self.sigma <= 4, "degrade.sigma", self.sigma, "above 0, at most 4")

    @property
    def scale(self) -> float:
        """High-resolution pixels for one of low resolution, along each axis."""
        return self.hr_size / self.lr_size


@dataclass(frozen=True, kw_only=True)
class GanLossConfig:
    """What generator and discriminator are trained by; a weight of 0 says absent.

    Attributes:
        pixel: "l1", "mse" or "charbonnier".
        pixel_weight: of it, in the adversarial stage.
        perceptual_weight: of the distance of features.
        extractor: whose features: a name of `extractors.resolve_extractor`.
        extractor_weights: its file, s3:// URI or https:// URL (`resolve_extractor`), where it does not bring its own.
        layers: weight by name of layer; empty for those of `losses.perceptual.default_layers`.
        perceptual_distance: of features: "l1" or "mse".
        perceptual_crop: side of the one random square of each image that features are compared in; 0 for all.
        adversarial: "vanilla", "ragan", "lsgan" or "hinge".
        adversarial_weight: of the generator's part in it.
        label_smoothing: of real images' targets, for the discriminator.
        r1: gradient penalty on real images (gamma); 0 turns it off.
        r1_every: discriminator steps from one such penalty to the next, which is weighed up for it.
        instance_noise: standard deviation of the noise on all that the discriminator sees; falls to 0 over the run.
    """

    pixel: str = "l1"
    pixel_weight: float = 1.0
    perceptual_weight: float = 0.1
    extractor: str = "auto"
    extractor_weights: str | None = None
    layers: dict[str, float] = field(default_factory=dict)
    perceptual_distance: str = "l1"
    perceptual_crop: int = 0
    adversarial: str = "ragan"
    adversarial_weight: float = 5e-3
    label_smoothing: float = 0.0
    r1: float = 0.0
    r1_every: int = 16
    instance_noise: float = 0.0

    def __post_init__(self) -> None:
        kinds = ("l1", "mse", "charbonnier")
        check(self.pixel in kinds, "loss.pixel", self.pixel, f"one of {', '.join(kinds)}")
        for name in ("pixel_weight", "perceptual_weight", "adversarial_weight", "r1", "instance_noise"):
            check(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), "0 (absent) or more")
        games = ("vanilla", "ragan", "lsgan", "hinge")
        check(self.adversarial in games, "loss.adversarial", self.adversarial, f"one of {', '.join(games)}")
        smoothing = self.label_smoothing
        check(0 <= smoothing < 0.5, "loss.label_smoothing", smoothing, "0 to below 0.5")
        check(
            self.adversarial != "hinge" or smoothing == 0,
            "loss.label_smoothing",
            smoothing,
            "0 with hinge, which has no targets to smooth",
        )
        distance = self.perceptual_distance
        check(distance in ("l1", "mse"), "loss.perceptual_distance", distance, "l1 or mse")
        check(self.r1_every >= 1, "loss.r1_every", self.r1_every, "at least 1")
        crop = self.perceptual_crop
        check(crop == 0 or crop >= 32, "loss.perceptual_crop", crop, "0 (off) or at least 32")
        check(
            self.pixel_weight + self.perceptual_weight + self.adversarial_weight > 0,
            "loss",
            "without a term",
            "at least one weight above 0",
        )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The stage before the adversarial one, in which the generator learns by its pixels alone.

    Attributes:
        share: of the run; 1 trains nothing but this stage (a PSNR model).
        pixel: its loss.
        rate: its learning rate; the rest is as the generator's optimiser has it.
        schedule: its course, over this stage; one of `SCHEDULES`.
        warmup: share of this stage in which the rate rises; without it generators without a norm get stuck at bicubic.
        source: a super-resolution model (a run's folder, models:/ or runs:/) whose PSNR generator the run begins
            with; its `share` then usually is 0.
    """

    share: float = 0.3
    pixel: str = "l1"
    rate: float = 5e-4
    schedule: str = "cosine"
    warmup: float = 0.05
    source: str | None = None

    def __post_init__(self) -> None:
        check(0 <= self.share <= 1, "pretrain.share", self.share, "0 to 1")
        kinds = ("l1", "mse", "charbonnier")
        check(self.pixel in kinds, "pretrain.pixel", self.pixel, f"one of {', '.join(kinds)}")
        check(
            self.schedule in SCHEDULES, "pretrain.schedule", self.schedule, f"one of {', '.join(SCHEDULES)}"
        )
        check(0 <= self.warmup < 1, "pretrain.warmup", self.warmup, "0 to below 1")
        check(0 < self.rate <= 1, "pretrain.rate", self.rate, "above 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class CollapseConfig:
    """When a generator counts as collapsed: bounds (ok, bad) of each component, between which it rises from 0 to 1.

    The defaults were measured on slices of real cases; `jobs/calibrate.py` checks them on others.

    Attributes:
        invalid: share of pixels outside [-0.1, 1.1].
        conditioning: share of outputs that, brought down again, are nearest to another slice's input.
        diversity: what is lost of the inputs' Vendi score.
        texture: detail that is the same everywhere, beyond that of real slices.
        artefact: dB above the real spectrum, over the low resolution's Nyquist frequency.
        fidelity: dB of foreground PSNR below bicubic.
        threshold: of the score, from which an evaluation counts as collapsed.
        grace: evaluations of the adversarial stage before any counts.
        patience: bad evaluations after which a run is collapsed,
        window: of so many at the end; as many as `patience` for those in a row alone.
        stop: end a collapsed run there and then.
        num_slices: of the panel that is judged, at most.
        min_slices: fewer cannot be judged.
        per_patient: slices of one patient and modality, at most; more where there are too few patients.
        apart_mm: least distance between two of them.
        judge: extractor of LPIPS, which better is not the one of the loss; "auto" takes another one where it can.
        judge_weights: its file or URI, where it does not bring its own.
    """

    invalid: tuple[float, float] = (0.02, 0.25)
    conditioning: tuple[float, float] = (0.05, 0.40)
    diversity: tuple[float, float] = (0.25, 0.65)
    texture: tuple[float, float] = (0.08, 0.30)
    artefact: tuple[float, float] = (6.0, 14.0)
    fidelity: tuple[float, float] = (2.0, 6.0)
    threshold: float = 0.5
    grace: int = 2
    patience: int = 2
    window: int = 6
    stop: bool = True
    num_slices: int = 64
    min_slices: int = 32
    per_patient: int = 4
    apart_mm: float = 5.0
    judge: str = "auto"
    judge_weights: str | None = None

    def __post_init__(self) -> None:
        for name in COLLAPSE_COMPONENTS:
            ok, bad = getattr(self, name)
            check(ok < bad, f"collapse.{name}", (ok, bad), "(ok, bad) with ok < bad")
        check(0 < self.threshold <= 1, "collapse.threshold", self.threshold, "above 0, at most 1")
        check(self.grace >= 0, "collapse.grace", self.grace, "0 or more")
        check(self.patience >= 1, "collapse.patience", self.patience, "at least 1")
        check(self.window >= self.patience, "collapse.window", self.window, "at least collapse.patience")
        check(
            2 <= self.min_slices <= self.num_slices, "collapse.min_slices", self.min_slices, "2 to num_slices"
        )
        check(self.per_patient >= 1, "collapse.per_patient", self.per_patient, "at least 1")
        check(self.apart_mm >= 0, "collapse.apart_mm", self.apart_mm, "0 or more")


@dataclass(frozen=True, kw_only=True)
class UseConfig:
    """What a frozen segmenter makes of the slices.

    Attributes:
        segmenter: a segmentation model (models:/, runs:/ or a run's folder) that judges the validation cases at the
            end of a run: Dice on super-resolved slices beside that on bicubic ones and on real ones; None for none.
        weight: of the gain in Dice over bicubic in the objective of a search.
    """

    segmenter: str | None = None
    weight: float = 0.0

    def __post_init__(self) -> None:
        check(self.weight >= 0, "use.weight", self.weight, "0 or more")
        check(
            self.weight == 0 or self.segmenter is not None,
            "use.segmenter",
            None,
            "a segmentation model where use.weight is above 0",
        )


@dataclass(frozen=True, kw_only=True)
class GanConfig:
    """A whole super-resolution run.

    Attributes:
        channels: "each": the generator takes one channel, and every modality of a slice is an image of its own, so
            that one model serves any of them; "joint": it takes all modalities as channels.
        generator: by its name in `nets.gan`, with its keyword arguments.
        discriminator: likewise.
        optim_g: of the generator, in the adversarial stage; its `ema` is of both stages.
        optim_d: of the discriminator; its `ema` is not used.
        d_steps: discriminator steps for one of the generator.
        flip: probability that rows, and columns, of a training image are mirrored.
    """

    task: ClassVar[str] = "superres"

    recipe: str
    preprocess: PreprocessConfig = field(default_factory=lambda: PreprocessConfig(normalize="unit"))
    sample: SampleConfig = field(default_factory=SampleConfig)
    degrade: DegradeConfig = field(default_factory=DegradeConfig)
    channels: str = "each"
    generator: NetConfig = field(default_factory=lambda: NetConfig(name="rrdbnet"))
    discriminator: NetConfig = field(default_factory=lambda: NetConfig(name="patch"))
    loss: GanLossConfig = field(default_factory=GanLossConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    optim_g: OptimConfig = field(default_factory=lambda: OptimConfig(name="adam", lr=1e-4))
    optim_d: OptimConfig = field(default_factory=lambda: OptimConfig(name="adam", lr=1e-4, ema=0.0))
    d_steps: int = 1
    flip: float = 0.5
    collapse: CollapseConfig = field(default_factory=CollapseConfig)
    use: UseConfig = field(default_factory=UseConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check(self.channels in ("each", "joint"), "channels", self.channels, "each or joint")
        check(1 <= self.d_steps <= 16, "d_steps", self.d_steps, "1 to 16")
        check(0 <= self.flip <= 1, "flip", self.flip, "0 to 1")
        found = self.preprocess
        check(
            found.normalize == "unit",
            "preprocess.normalize",
            found.normalize,
            "unit: super-resolution works on intensities from 0 to 1",
        )
        check(
            found.neighbours == 0 and not found.brain_channel,
            "preprocess",
            "with neighbours or brain_channel",
            "neither: every channel is an image that is to be made sharper",
        )
        check(
            self.sample.slice_split is None,
            "sample.slice_split",
            self.sample.slice_split,
            "None: super-resolution is judged on patients that were not trained on",
        )
        for name in ("optim_g", "optim_d"):
            check(
                getattr(self, name).name != "schedulefree",
                f"{name}.name",
                "schedulefree",
                "another optimiser: the generator is averaged already",
            )
        size, hr = found.size, self.degrade.hr_size
        check(
            self.degrade.cut == "whole" or min(size) >= hr,
            "degrade.hr_size",
            hr,
            f"at most the shorter side of preprocess.size {size} where cut is patch",
        )

    @property
    def num_channels(self) -> int:
        """Channels of the generator."""
        return 1 if self.channels == "each" else len(self.preprocess.modalities)
