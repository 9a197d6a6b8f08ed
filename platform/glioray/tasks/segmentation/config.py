"""The config of a segmentation run: what a recipe returns and a model keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from glioray.config import (
    AugmentConfig,
    NetConfig,
    OptimConfig,
    PreprocessConfig,
    SampleConfig,
    TrainConfig,
    check,
)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """A loss by its name in `glioray.losses`, and its keyword arguments.

    Attributes:
        name: in the registry.
        options: its own.
        balance: how the training cases' label statistics weigh classes, where the loss has class weights:
            "none", "inverse" (one over the frequency) or "sqrt" (the root of that).
        side_weights: of a network's side outputs, finest first: "equal", or "halving" (each half of the one
            before; nnU-Net's). Both add up to 1 with the logits' own weight.
        presence_weight: of the classification of slices, for networks that have one.
    """

    name: str = "dice_ce"
    options: dict[str, Any] = field(default_factory=dict)
    balance: str = "none"
    side_weights: str = "halving"
    presence_weight: float = 1.0

    def __post_init__(self) -> None:
        check(
            self.balance in ("none", "inverse", "sqrt"), "loss.balance", self.balance, "none, inverse or sqrt"
        )
        check(
            self.side_weights in ("equal", "halving"),
            "loss.side_weights",
            self.side_weights,
            "equal or halving",
        )
        check(self.presence_weight >= 0, "loss.presence_weight", self.presence_weight, "at least 0")

    @property
    def target(self) -> str:
        """What the network predicts: "regions" (a sigmoid each for WT, TC, ET) or "classes" (a softmax)."""
        return "regions" if self.name.startswith("region_") else "classes"


@dataclass(frozen=True, kw_only=True)
class PostprocessConfig:
    """From probabilities to a mask; kept with the model and shared by evaluation and serving.

    Attributes:
        mirror: axes of a slice, (H, W), over whose mirrored copies predictions are averaged.
        thresholds: per region WT, TC, ET, where the network predicts regions.
        fit_thresholds: replace them, at the end of a training, by those that do best on its validation cases.
        min_et_ml: an enhancing tumour smaller than this in all is relabelled as necrotic core.
        min_component_ml: connected whole-tumour components smaller than this are removed.
        fill_holes: holes within a region, in 3-D, become part of it.
    """

    mirror: tuple[bool, bool] = (False, True)
    thresholds: tuple[float, float, float] = (0.5, 0.5, 0.5)
    fit_thresholds: bool = False
    min_et_ml: float = 0.0
    min_component_ml: float = 0.0
    fill_holes: bool = False

    def __post_init__(self) -> None:
        check(
            all(0 < t < 1 for t in self.thresholds),
            "postprocess.thresholds",
            self.thresholds,
            "three between 0 and 1",
        )
        check(self.min_et_ml >= 0, "postprocess.min_et_ml", self.min_et_ml, "at least 0")
        check(self.min_component_ml >= 0, "postprocess.min_component_ml", self.min_component_ml, "at least 0")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run."""

    task: ClassVar[str] = "segmentation"

    recipe: str
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    net: NetConfig = field(default_factory=NetConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)

    def __post_init__(self) -> None:
        check(
            not self.postprocess.fit_thresholds or self.loss.target == "regions",
            "postprocess.fit_thresholds",
            True,
            f"false with loss.name '{self.loss.name}', whose network predicts classes; thresholds are those of "
            "regions, so take a loss whose name starts with region_",
        )
        check(
            not self.postprocess.fit_thresholds or self.sample.slice_split is None,
            "postprocess.fit_thresholds",
            True,
            "false with sample.slice_split, which leaves no whole case to fit thresholds on",
        )
