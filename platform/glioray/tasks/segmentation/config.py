"""The config of a segmentation run: what a recipe returns and a model keeps."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from glioray.config import AugmentConfig, Config, NetConfig, OptimConfig, TaskConfig
from glioray.losses import SEGMENTATION_LOSSES, Target

_Between0And1 = Annotated[float, Field(gt=0, lt=1)]


def _check_loss(name: str) -> str:
    if name not in SEGMENTATION_LOSSES:
        raise ValueError(f"one of {', '.join(sorted(SEGMENTATION_LOSSES))}")
    return name


def _implied_target(values: dict[str, Any]) -> Target:
    return SEGMENTATION_LOSSES[values["name"]].targets[0]


class LossConfig(Config):
    """A loss of `glioray.losses`, and what the network is trained to predict."""

    name: Annotated[str, AfterValidator(_check_loss)] = Field(
        "dice_ce",
        description="Name of the loss in its registry.",
        json_schema_extra=lambda schema: schema.update({"enum": [*sorted(SEGMENTATION_LOSSES)]}),
    )
    target: Target = Field(
        default_factory=_implied_target,
        description="What the network predicts: 'classes' (one softmax) or 'regions' (a sigmoid each for WT, TC, ET); by "
        "default the loss's own.",
    )
    options: dict[str, Any] = Field({}, description="Keyword arguments of the loss.")
    balance: Literal["none", "inverse", "sqrt"] = Field(
        "none",
        description="Class weights from the training cases' voxel counts: one over the frequency ('inverse'), its root "
        "('sqrt') or 'none'; only for losses with class weights.",
    )
    side_weights: Literal["equal", "halving"] = Field(
        "halving",
        description="Weights of a network's side outputs, finest first: 'equal', or 'halving' (each half of the one "
        "before, as in nnU-Net). All weights add up to 1.",
    )
    presence_weight: float = Field(
        1.0, ge=0, description="Weight of the classification of slices, for networks that have one."
    )

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        targets = SEGMENTATION_LOSSES[self.name].targets
        self._expect(self.target in targets, "target", f"{' or '.join(targets)} with the loss '{self.name}'")
        return self

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the target that the name implies: packages and run identities from before the field has none."""
        values: dict[str, Any] = dump(self)
        if self.target == _implied_target(values):
            del values["target"]
        return values


class PostprocessConfig(Config):
    """From probabilities to a mask; kept with the model, and the same in evaluation and serving."""

    mirror: tuple[bool, bool] = Field(
        (False, True),
        description="Axes (rows, columns) of a slice whose mirrored copies are predicted and averaged too.",
    )
    thresholds: tuple[_Between0And1, _Between0And1, _Between0And1] = Field(
        (0.5, 0.5, 0.5),
        description="Smallest probability of WT, TC and ET, where the network predicts regions.",
    )
    fit_thresholds: bool = Field(
        False,
        description="Replace the thresholds, at the end of a training, by the best ones on its validation cases.",
    )
    min_et_ml: float = Field(
        0.0, ge=0, description="A smaller enhancing tumour, in ml, is relabelled as necrotic core; 0: off."
    )
    min_component_ml: float = Field(
        0.0, ge=0, description="Smaller connected components of the whole tumour, in ml, are removed; 0: off."
    )
    fill_holes: bool = Field(False, description="Fill holes within a region, in 3-D.")


class RunConfig(TaskConfig):
    """A whole segmentation run."""

    task: ClassVar[str] = "segmentation"

    augment: AugmentConfig = Field(AugmentConfig(), description="Augmentation of batches.")
    net: NetConfig = Field(NetConfig(), description="The network.")
    loss: LossConfig = Field(LossConfig(), description="The loss.")
    optim: OptimConfig = Field(OptimConfig(), description="Optimiser and schedule.")
    postprocess: PostprocessConfig = Field(PostprocessConfig(), description="From probabilities to a mask.")

    @model_validator(mode="after")
    def _check_fit_thresholds(self) -> Self:
        if self.postprocess.fit_thresholds:
            self._expect(
                self.loss.target == "regions",
                "postprocess.fit_thresholds",
                f"False with loss.name '{self.loss.name}', whose network predicts classes: thresholds belong to "
                "regions, so use a loss with loss.target 'regions'",
            )
            self._expect(
                self.sample.slice_split is None,
                "postprocess.fit_thresholds",
                "False with sample.slice_split, which leaves no whole case to fit thresholds on",
            )
        return self
