"""Recipes of super-resolution: the papers' own, and ours for MRI."""

from __future__ import annotations

from collections.abc import Callable

from glioray.config import NetConfig, OptimConfig, PreprocessConfig, SampleConfig, Schedule, TrainConfig
from glioray.errors import UsageError
from glioray.tasks.superres.config import (
    CollapseConfig,
    DegradeConfig,
    GanConfig,
    GanLossConfig,
    PretrainConfig,
)


def _adam(lr: float, *, ema: float = 0.0, schedule: Schedule = "constant") -> OptimConfig:
    return OptimConfig(
        name="adam", lr=lr, weight_decay=0.0, schedule=schedule, warmup=0.0, grad_clip=0.0, ema=ema
    )


def srgan_paper() -> GanConfig:
    """SRGAN as published (Ledig et al. 2017, arXiv 1609.04802), on one-channel slices.

    MSE pretraining, then MSE + VGG19 features (conv5_4 after activation, divided by 12.75 squared) + 1e-3 adversarial;
    Adam at 1e-4, a tenth of it in the second half. Differs from the paper: resize-convolution instead of pixel shuffle,
    global pooling in the discriminator, averaged weights, a decaying rate in pretraining, and MSE kept beside the
    features, as in common implementations. Needs VGG19's weights (`loss.extractor_weights`).
    """
    return GanConfig(
        recipe="srgan_paper",
        degrade=DegradeConfig(hr_size=96, lr_size=24),
        generator=NetConfig(
            name="srresnet", options={"width": 64, "num_blocks": 16, "norm": "batch", "skip": False}
        ),
        discriminator=NetConfig(name="vgg", options={"width": 64, "norm": "batch"}),
        loss=GanLossConfig(
            pixel="mse",
            pixel_weight=1.0,
            perceptual_weight=0.006,
            perceptual_distance="mse",
            extractor="vgg19",
            layers={"relu5_4": 1.0},
            adversarial="vanilla",
            adversarial_weight=1e-3,
        ),
        pretrain=PretrainConfig(share=0.8, pixel="mse", rate=1e-4),
        optim_g=_adam(1e-4, ema=0.999, schedule="step").replace(milestones=(0.5,), drop=0.1),
        optim_d=_adam(1e-4, schedule="step").replace(milestones=(0.5,), drop=0.1),
        train=TrainConfig(batch_size=16, max_epochs=200),
    )


def esrgan_paper() -> GanConfig:
    """ESRGAN as published (Wang et al. 2018, arXiv 1809.00219; BasicSR's settings), on one-channel slices.

    L1 pretraining, then L1 1e-2 + VGG19 conv5_4 before activation + RaGAN 5e-3; Adam at 1e-4, halved at 1/8, 1/4,
    1/2 and 3/4; EMA .999. Needs VGG19's weights (`loss.extractor_weights`).
    """
    return GanConfig(
        recipe="esrgan_paper",
        degrade=DegradeConfig(hr_size=128, lr_size=32),
        generator=NetConfig(
            name="rrdbnet", options={"width": 64, "num_blocks": 23, "growth": 32, "skip": False}
        ),
        discriminator=NetConfig(name="vgg", options={"width": 64, "norm": "batch"}),
        loss=GanLossConfig(
            pixel="l1",
            pixel_weight=1e-2,
            perceptual_weight=1.0,
            extractor="vgg19",
            layers={"conv5_4": 1.0},
            adversarial="ragan",
            adversarial_weight=5e-3,
        ),
        pretrain=PretrainConfig(share=0.7, rate=2e-4),
        optim_g=_adam(1e-4, ema=0.999, schedule="step"),
        optim_d=_adam(1e-4, schedule="step"),
        train=TrainConfig(batch_size=16, max_epochs=200),
    )


def mri() -> GanConfig:
    """Our default for a GPU: RRDB, L1 + several feature layers + RaGAN, a spectral-norm patch discriminator."""
    return GanConfig(
        recipe="mri",
        preprocess=PreprocessConfig(normalize="unit", size=(192, 160)),
        generator=NetConfig(name="rrdbnet", options={"width": 64, "num_blocks": 12, "growth": 32}),
        discriminator=NetConfig(name="patch", options={"width": 64, "norm": "spectral"}),
        loss=GanLossConfig(perceptual_weight=0.1),
        pretrain=PretrainConfig(share=0.4),
        optim_g=_adam(1e-4, ema=0.999),
        optim_d=_adam(1e-4),
        train=TrainConfig(batch_size=32, max_epochs=100, num_validations=20),
    )


def mri_small() -> GanConfig:
    """Minutes on two cores: `mri` with plain residual blocks at low resolution, and AlexNet's features.

    In equal time plain blocks without a norm gain more over bicubic than dense ones, with which a CPU takes a fifth of
    the steps.
    """
    return mri().replace(
        recipe="mri_small",
        sample=SampleConfig(balance_cases=True, steps_per_epoch=25),
        generator=NetConfig(
            name="srresnet",
            options={
                "width": 32,
                "num_blocks": 8,
                "head_width": 16,
                "norm": "none",
                "residual_scale": 0.2,
            },
        ),
        discriminator=NetConfig(name="patch", options={"width": 32, "norm": "spectral"}),
        loss=GanLossConfig(perceptual_weight=0.1, extractor="alexnet"),
        pretrain=PretrainConfig(share=0.5, rate=2e-3),
        # A norm of 0.3 is typical; without the bound some runs diverge in the pixel stage at this rate.
        optim_g=_adam(1e-4, ema=0.99).replace(grad_clip=0.5),
        train=TrainConfig(batch_size=4, max_epochs=1000, minutes=10, num_validations=12),
    )


def srgan_small() -> GanConfig:
    """SRGAN reduced to the data and minutes of `mri_small`, to compare with `esrgan_small`.

    Its own: residual blocks with batch norm, MSE, the deepest features after activation at 0.006, vanilla BCE at 1e-3.
    Shared: the discriminator, the feature network, Adam at 1e-4 and the share of the pixel stage.
    """
    return mri_small().replace(
        recipe="srgan_small",
        generator=NetConfig(
            name="srresnet", options={"width": 32, "num_blocks": 6, "head_width": 16, "norm": "batch"}
        ),
        discriminator=NetConfig(name="vgg", options={"width": 16, "norm": "batch"}),
        loss=GanLossConfig(
            pixel="mse",
            perceptual_weight=0.006,
            perceptual_distance="mse",
            extractor="alexnet",
            layers={"relu5": 1.0},
            adversarial="vanilla",
            adversarial_weight=1e-3,
        ),
        pretrain=PretrainConfig(share=0.5, pixel="mse", rate=1e-3),
    )


def esrgan_small() -> GanConfig:
    """ESRGAN reduced to the data and minutes of `mri_small`: dense blocks, L1 1e-2, deepest features 1, RaGAN 5e-3."""
    return mri_small().replace(
        recipe="esrgan_small",
        generator=NetConfig(
            name="rrdbnet", options={"width": 32, "num_blocks": 3, "growth": 16, "head_width": 16}
        ),
        discriminator=srgan_small().discriminator,
        loss=GanLossConfig(
            pixel_weight=1e-2,
            perceptual_weight=1.0,
            extractor="alexnet",
            layers={"conv5": 1.0},
            adversarial="ragan",
            adversarial_weight=5e-3,
        ),
    )


def esrgan_small_rmsprop() -> GanConfig:
    """`esrgan_small` with RMSprop without momentum, in both stages and for both networks."""
    config = esrgan_small()
    return config.replace(
        recipe="esrgan_small_rmsprop",
        optim_g=config.optim_g.replace(name="rmsprop", momentum=0.0),
        optim_d=config.optim_d.replace(name="rmsprop", momentum=0.0),
    )


def srgan_goat() -> GanConfig:
    """SRGAN of a study on BraTS 2024 (GoAT): slices of 28 x 28 to 128 x 128, batches of 32, Adam at 1e-4, 200 epochs.

    Its loss is BCE and MSE with VGG19's features, with `srgan_paper`'s layer and weights, for both of its networks. What
    the study leaves open is the papers' own; it states no pixel stage, so there is none. Its rows are
    `entrants.GOAT_STUDY`, for `jobs/compare_gan.py`. Needs VGG19's weights (`loss.extractor_weights`).
    """
    return srgan_paper().replace(
        recipe="srgan_goat",
        degrade=DegradeConfig(hr_size=128, lr_size=28, cut="whole"),
        pretrain=PretrainConfig(share=0.0),
        optim_g=_adam(1e-4),
        optim_d=_adam(1e-4),
        train=TrainConfig(batch_size=32, max_epochs=200),
    )


def esrgan_goat() -> GanConfig:
    """ESRGAN of the study of `srgan_goat`: dense blocks and batches of 8; all else is the same."""
    return srgan_goat().replace(
        recipe="esrgan_goat",
        generator=esrgan_paper().generator,
        train=TrainConfig(batch_size=8, max_epochs=200),
    )


def esrgan_goat_rmsprop() -> GanConfig:
    """`esrgan_goat` with RMSprop without momentum, for both networks."""
    config = esrgan_goat()
    return config.replace(
        recipe="esrgan_goat_rmsprop",
        optim_g=config.optim_g.replace(name="rmsprop", momentum=0.0),
        optim_d=config.optim_d.replace(name="rmsprop", momentum=0.0),
    )


def mri_tiny() -> GanConfig:
    """Seconds on two cores, for phantoms and tests; not a useful model."""
    return mri().replace(
        recipe="mri_tiny",
        preprocess=PreprocessConfig(normalize="unit", size=(64, 64)),
        degrade=DegradeConfig(hr_size=64, lr_size=16),
        sample=SampleConfig(balance_cases=True, steps_per_epoch=10),
        generator=NetConfig(name="srresnet", options={"width": 16, "num_blocks": 2, "norm": "none"}),
        discriminator=NetConfig(name="patch", options={"width": 16, "num_layers": 2, "norm": "spectral"}),
        loss=GanLossConfig(perceptual_weight=0.0, extractor="none"),
        pretrain=PretrainConfig(share=0.5, rate=2e-3),
        optim_g=_adam(2e-4, ema=0.9),
        optim_d=_adam(2e-4),
        collapse=CollapseConfig(num_slices=32, min_slices=8, apart_mm=2.0, per_patient=8, judge="none"),
        train=TrainConfig(batch_size=8, max_epochs=8, num_validations=4),
    )


def mri_phantom() -> GanConfig:
    """The demo's: `mri_tiny` at x2, with steps enough to gain over bicubic on phantoms; not a useful model."""
    return mri_tiny().replace(
        recipe="mri_phantom",
        preprocess=PreprocessConfig(normalize="unit", size=(96, 80)),
        degrade=DegradeConfig(hr_size=64, lr_size=32),
        sample=SampleConfig(balance_cases=True, steps_per_epoch=40),
        generator=NetConfig(
            name="srresnet", options={"width": 32, "num_blocks": 4, "norm": "none", "residual_scale": 0.2}
        ),
        train=TrainConfig(batch_size=4, max_epochs=20, num_validations=20),
    )


GAN_RECIPES: dict[str, Callable[[], GanConfig]] = {
    "mri": mri,
    "mri_small": mri_small,
    "mri_tiny": mri_tiny,
    "mri_phantom": mri_phantom,
    "srgan_paper": srgan_paper,
    "esrgan_paper": esrgan_paper,
    "srgan_small": srgan_small,
    "esrgan_small": esrgan_small,
    "esrgan_small_rmsprop": esrgan_small_rmsprop,
    "srgan_goat": srgan_goat,
    "esrgan_goat": esrgan_goat,
    "esrgan_goat_rmsprop": esrgan_goat_rmsprop,
}


def build_gan_recipe(name: str) -> GanConfig:
    """Build the config of a super-resolution recipe.

    Raises:
        UsageError: no such recipe.
    """
    if name not in GAN_RECIPES:
        raise UsageError(
            f"'{name}' is not a super-resolution recipe; the recipes are {', '.join(GAN_RECIPES)}"
        )
    return GAN_RECIPES[name]()
