"""Recipes: functions that return a run's config and explain its defaults. Flags override them."""

from __future__ import annotations

from collections.abc import Callable

from glioray.config import AugmentConfig, NetConfig, OptimConfig, PreprocessConfig, SampleConfig, TrainConfig
from glioray.errors import UsageError
from glioray.tasks.segmentation.config import LossConfig, PostprocessConfig, RunConfig

_REGION_LOSS = LossConfig(name="region_dice_bce", options={"dice_weight": 1.0, "ce_weight": 1.0})


def unet_tiny() -> RunConfig:
    """Seconds on two cores, for the demo's phantoms and tests; not a useful model."""
    return RunConfig(
        recipe="unet_tiny",
        preprocess=PreprocessConfig(size=(96, 96)),
        sample=SampleConfig(foreground_share=0.5),
        net=NetConfig(options={"width": 8, "depth": 3}),
        loss=_REGION_LOSS,
        optim=OptimConfig(lr=5e-3, ema=0.9),
        train=TrainConfig(batch_size=8, max_epochs=6),
    )


def unet_phantom() -> RunConfig:
    """The demo's: a small network, and as many steps as it takes to learn phantoms of 2 mm; not a useful model."""
    return RunConfig(
        recipe="unet_phantom",
        preprocess=PreprocessConfig(size=(96, 80)),
        sample=SampleConfig(foreground_share=0.6, balance_cases=True, steps_per_epoch=60),
        net=NetConfig(options={"width": 16, "depth": 3, "lean": True, "norm": "batch", "prior": 0.12}),
        loss=_REGION_LOSS,
        optim=OptimConfig(lr=2e-3, weight_decay=1e-2, warmup=0.1, ema=0.97),
        postprocess=PostprocessConfig(min_et_ml=0.4),
        train=TrainConfig(batch_size=8, max_epochs=12, num_validations=6),
    )


def unet_small() -> RunConfig:
    """Minutes on two cores: half resolution, all three planes, one network."""
    return RunConfig(
        recipe="unet_small",
        preprocess=PreprocessConfig(planes=("axial", "coronal", "sagittal")),
        sample=SampleConfig(foreground_share=0.8, balance_cases=True, steps_per_epoch=100),
        augment=AugmentConfig(
            flip=(0.2, 0.5),
            affine_p=0.8,
            rotate_deg=30.0,
            scale=0.25,
            stretch=0.1,
            shift=0.03,
            intensity_p=1.0,
            contrast=0.4,
            brightness=0.4,
            curve=0.3,
            gamma_p=0.0,
            bias=0.15,
            blur_p=0.1,
            drop_p=0.05,
        ),
        net=NetConfig(
            options={"width": 32, "depth": 3, "stem_stride": 2, "lean": True, "norm": "batch", "prior": 0.12}
        ),
        loss=LossConfig(name="region_dice_bce", options={"dice_weight": 1.0, "ce_weight": 3.0}),
        optim=OptimConfig(lr=2e-3, weight_decay=1e-2, warmup=0.1, floor=0.001, ema=0.998),
        # BraTS ignores lesions of fewer than 50 voxels.
        postprocess=PostprocessConfig(min_et_ml=0.05),
        train=TrainConfig(batch_size=16, max_epochs=1000, minutes=12, num_validations=4),
    )


def attention_small() -> RunConfig:
    """`unet_small` with MONAI's attention U-Net, which beat it in both comparisons of `infra/decisions/0005`."""
    options = {"width": 16, "stem_stride": 2, "prior": 0.12}
    net = NetConfig(name="attention_unet", options=options)
    return unet_small().replace(recipe="attention_small", net=net)


def unet_brats() -> RunConfig:
    """One or more GPUs: the paper's width and depth at full resolution, on whole BraTS collections."""
    return RunConfig(
        recipe="unet_brats",
        preprocess=PreprocessConfig(planes=("axial", "coronal", "sagittal")),
        sample=SampleConfig(foreground_share=0.5),
        net=NetConfig(options={"width": 64, "depth": 4, "residual": True}),
        loss=_REGION_LOSS,
        optim=OptimConfig(lr=1e-3, weight_decay=1e-2, ema=0.999),
        train=TrainConfig(batch_size=64, max_epochs=50),
        augment=AugmentConfig(),
        postprocess=PostprocessConfig(min_et_ml=0.2),
    )


def keras_study() -> RunConfig:
    """The base run of a Keras study of 22 U-Net variants on BraTS 2017, as far as its table says.

    Softmax over background and three labels, axial slices of 240 x 240 with more than a little tumour, cross-entropy
    and Dice, Adam, batches of 32, 100 epochs, no augmentation. Its 22 rows are
    `entrants.STUDIES["keras_study"]`, for `jobs/compare.py`, which prints the study's own recall and F1 beside ours;
    its parameter counts are held against ours in `nets/README.md`. What it leaves open, such as the learning rate, is
    our choice.
    """
    return RunConfig(
        recipe="keras_study",
        preprocess=PreprocessConfig(size=(240, 240)),
        sample=SampleConfig(empty_share=0.0, min_tumour_px=100),
        augment=AugmentConfig(strength=0),
        postprocess=PostprocessConfig(mirror=(False, False)),
        net=NetConfig(options={"width": 64, "norm": "none"}),
        optim=OptimConfig(name="adam", lr=1e-4, weight_decay=0.0, warmup=0.0, schedule="constant", ema=0.0),
        train=TrainConfig(batch_size=32, max_epochs=100),
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    "unet_tiny": unet_tiny,
    "unet_phantom": unet_phantom,
    "unet_small": unet_small,
    "attention_small": attention_small,
    "unet_brats": unet_brats,
    "keras_study": keras_study,
}


def build_recipe(name: str) -> RunConfig:
    """Build the config of a recipe.

    Raises:
        UsageError: no such recipe.
    """
    if name not in RECIPES:
        raise UsageError(f"'{name}' is not a recipe; the recipes are {', '.join(RECIPES)}")
    return RECIPES[name]()
