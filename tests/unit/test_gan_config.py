"""Super-resolution configs check themselves, and every recipe is a run that can be started."""

from __future__ import annotations

import json
import pickle
import re
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from glioray.config import override, with_settings
from glioray.engine.optim import build_optimizer
from glioray.errors import UsageError
from glioray.losses.adversarial import build_gan_loss
from glioray.losses.reconstruction import build_pixel_loss
from glioray.nets.gan import build_discriminator, build_generator
from glioray.serialization import fingerprint, from_dict, to_dict
from glioray.tasks.segmentation.recipes import RECIPES
from glioray.tasks.superres.config import COLLAPSE_COMPONENTS, GanConfig
from glioray.tasks.superres.recipes import GAN_RECIPES, build_gan_recipe

CONFIG = GanConfig(recipe="test")


@pytest.mark.parametrize("name", GAN_RECIPES)
def test_there_and_back(name: str):
    config = build_gan_recipe(name)
    assert config.recipe == name
    values = to_dict(config)
    assert json.loads(json.dumps(values)) == values
    assert from_dict(GanConfig, values) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert isinstance(from_dict(GanConfig, values).collapse.artefact, tuple)


@pytest.mark.parametrize("name", GAN_RECIPES)
def test_a_recipe_is_a_value_and_its_own(name: str):
    assert build_gan_recipe(name) == build_gan_recipe(name)
    assert build_gan_recipe(name).generator.options is not build_gan_recipe(name).generator.options
    assert GAN_RECIPES[name].__doc__
    assert name not in RECIPES
    others = [fingerprint(build_gan_recipe(other)) for other in GAN_RECIPES if other != name]
    assert fingerprint(build_gan_recipe(name)) not in others


@pytest.mark.parametrize("name", GAN_RECIPES)
def test_a_recipe_builds(name: str):
    config = build_gan_recipe(name)
    loss, size = config.loss, (config.degrade.hr_size,) * 2
    # Without memory: those of the papers are as large as the papers'.
    with torch.device("meta"):
        generator = build_generator(
            config.generator.name, channels=config.num_channels, **config.generator.options
        )
        lr = torch.zeros(2, config.num_channels, config.degrade.lr_size, config.degrade.lr_size)
        sr = generator(lr, size)
    # Spectral norms want numbers.
    critic = build_discriminator(
        config.discriminator.name, channels=config.num_channels, **config.discriminator.options
    )
    logits = critic.eval()(torch.zeros(2, config.num_channels, *size))
    assert sr.shape == (2, config.num_channels, *size)
    assert logits.shape[:2] == (2, 1)
    build_optimizer(generator, config.optim_g)
    build_optimizer(critic, config.optim_d)
    build_gan_loss(loss.adversarial, label_smoothing=loss.label_smoothing)
    build_pixel_loss(loss.pixel)
    build_pixel_loss(config.pretrain.pixel)


def test_a_recipe_that_is_not_there():
    with pytest.raises(
        UsageError, match="'unet_small' is not a super-resolution recipe; the recipes are mri, "
    ):
        build_gan_recipe("unet_small")


def test_dotted_settings():
    changed = with_settings(CONFIG, {"optim_g.lr": 0.01, "loss.adversarial_weight": 1, "d_steps": 2})
    assert (changed.optim_g.lr, changed.loss.adversarial_weight, changed.d_steps) == (0.01, 1.0, 2)
    assert changed.optim_d == CONFIG.optim_d
    assert override(CONFIG, **{"optim_g.lr": None}) == CONFIG
    assert with_settings(CONFIG, {"generator.options.width": 8}).generator.options == {"width": 8}
    assert with_settings(CONFIG, {"loss.layers": {"conv5_4": 1}}).loss.layers == {"conv5_4": 1.0}
    with pytest.raises(UsageError, match=r"no setting 'optim_g\.learning_rate'; optim_g has name, lr, "):
        with_settings(CONFIG, {"optim_g.learning_rate": 1.0})
    with pytest.raises(ValidationError, match="frozen"):
        CONFIG.flip = 0.1  # type: ignore[misc]


def test_what_is_worked_out():
    assert CONFIG.degrade.scale == 4
    assert with_settings(CONFIG, {"degrade.lr_size": 28}).degrade.scale == 128 / 28
    assert (CONFIG.num_channels, with_settings(CONFIG, {"channels": "joint"}).num_channels) == (1, 4)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"degrade.name": "nearest"}, "degrade.name is 'nearest'; expected one of bicubic_aa, kspace, gaussian"),
    ({"degrade.hr_size": 16}, "degrade.hr_size is 16; expected from 32 to 1024"),
    ({"degrade.lr_size": 4}, "degrade.lr_size is 4; expected at least 8"),
    ({"degrade.lr_size": 128}, "degrade.lr_size is 128; expected below hr_size, which is 128"),
    ({"degrade.lr_size": 15}, "degrade.lr_size is 15; expected at least hr_size / 8, which is 16"),
    ({"degrade.cut": "tile"}, "degrade.cut is 'tile'; expected patch or whole"),
    ({"degrade.noise": 0.6}, "degrade.noise is 0.6; expected from 0 to 0.5"),
    ({"degrade.sigma": 0.0}, "degrade.sigma is 0.0; expected above 0"),
    ({"loss.pixel": "l3"}, "loss.pixel is 'l3'; expected one of l1, mse, charbonnier"),
    ({"loss.pixel_weight": -1.0}, "loss.pixel_weight is -1.0; expected at least 0"),
    ({"loss.perceptual_weight": -1.0}, "loss.perceptual_weight is -1.0; expected at least 0"),
    ({"loss.adversarial_weight": -1.0}, "loss.adversarial_weight is -1.0; expected at least 0"),
    ({"loss.r1": -1.0}, "loss.r1 is -1.0; expected at least 0"),
    ({"loss.instance_noise": -1.0}, "loss.instance_noise is -1.0; expected at least 0"),
    (
        {"loss.adversarial": "wgan"},
        "loss.adversarial is 'wgan'; expected one of vanilla, ragan, lsgan, hinge",
    ),
    ({"loss.label_smoothing": 0.5}, "loss.label_smoothing is 0.5; expected from 0 to below 0.5"),
    (
        {"loss.label_smoothing": 0.1, "loss.adversarial": "hinge"},
        "loss.label_smoothing is 0.1; expected 0 with",
    ),
    ({"loss.r1_every": 0}, "loss.r1_every is 0; expected at least 1"),
    ({"loss.perceptual_crop": 16}, "loss.perceptual_crop is 16; expected 0 (off) or at least 32"),
    (
        {f"loss.{name}_weight": 0.0 for name in ("pixel", "perceptual", "adversarial")},
        "loss.pixel_weight is 0.0; expected above 0 where perceptual_weight and adversarial_weight are 0",
    ),
    ({"pretrain.share": 1.5}, "pretrain.share is 1.5; expected from 0 to 1"),
    ({"pretrain.pixel": "l3"}, "pretrain.pixel is 'l3'; expected one of l1, mse"),
    ({"pretrain.schedule": "steep"}, "pretrain.schedule is 'steep'; expected one of"),
    ({"pretrain.rate": 0.0}, "pretrain.rate is 0.0; expected above 0 and at most 1"),
    *(
        (
            {f"collapse.{name}": [0.5, 0.5]},
            f"collapse.{name} is [0.5, 0.5]; expected (low, high) with low < high",
        )
        for name in COLLAPSE_COMPONENTS
    ),
    ({"collapse.threshold": 0.0}, "collapse.threshold is 0.0; expected above 0 and at most 1"),
    ({"collapse.grace": -1}, "collapse.grace is -1; expected at least 0"),
    ({"collapse.patience": 0}, "collapse.patience is 0; expected at least 1"),
    ({"collapse.window": 1}, "collapse.window is 1; expected at least collapse.patience, which is 2"),
    ({"collapse.min_slices": 1}, "collapse.min_slices is 1; expected at least 2"),
    ({"collapse.min_slices": 65}, "collapse.min_slices is 65; expected 2 to num_slices, which is 64"),
    ({"collapse.per_patient": 0}, "collapse.per_patient is 0; expected at least 1"),
    ({"collapse.apart_mm": -1.0}, "collapse.apart_mm is -1.0; expected at least 0"),
    ({"use.weight": -1.0}, "use.weight is -1.0; expected at least 0"),
    ({"use.weight": 1.0}, "use.segmenter is None; expected a segmentation model where use.weight is above 0"),
    ({"channels": "all"}, "channels is 'all'; expected each or joint"),
    ({"d_steps": 0}, "d_steps is 0; expected from 1 to 16"),
    ({"d_steps": 17}, "d_steps is 17; expected from 1 to 16"),
    ({"flip": 1.1}, "flip is 1.1; expected from 0 to 1"),
    ({"preprocess.normalize": "zscore"}, "preprocess.normalize is 'zscore'; expected unit: super-resolution"),
    ({"preprocess.neighbours": 1}, "preprocess.neighbours is 1; expected 0: super-resolution"),
    (
        {"preprocess.brain_channel": True},
        "preprocess.brain_channel is True; expected False: super-resolution",
    ),
    (
        {"sample.slice_split": [0.6, 0.2, 0.2]},
        "expected None: super-resolution is evaluated on patients that were",
    ),
    (
        {"optim_g.name": "schedulefree", "optim_g.schedule": "constant", "optim_g.ema": 0.0},
        "optim_g.name is 's",
    ),
    (
        {"optim_d.name": "schedulefree", "optim_d.schedule": "constant"},
        "optim_d.name is 'schedulefree'; expected",
    ),
    (
        {"degrade.hr_size": 192, "degrade.lr_size": 48},
        "degrade.hr_size is 192; expected at most the shorter side",
    ),
]


@pytest.mark.parametrize(("settings", "sentence"), WRONG, ids=lambda value: str(value)[:60])
def test_what_cannot_be_is_said_in_one_sentence(settings: dict[str, Any], sentence: str):
    with pytest.raises(UsageError, match=re.escape(sentence)) as caught:
        with_settings(CONFIG, settings)
    assert "\n" not in str(caught.value)
    assert "; expected " in str(caught.value)


def test_a_whole_slice_may_be_brought_to_any_size():
    settings = {"degrade.hr_size": 256, "degrade.lr_size": 64, "degrade.cut": "whole"}
    assert with_settings(CONFIG, settings).degrade.hr_size == 256
