"""Super-resolution recipes, and entrants that are put on one ground."""

from __future__ import annotations

import pytest
import torch

from glioray.config import with_settings
from glioray.engine.entrants import budget_settings
from glioray.engine.optim import build_optimizer
from glioray.errors import UsageError
from glioray.nets.gan import build_discriminator, build_generator
from glioray.tasks.superres.comparison import SuperResComparison
from glioray.tasks.superres.entrants import gan_entrant_config
from glioray.tasks.superres.recipes import GAN_RECIPES, build_gan_recipe

OWN = {"recipe", "generator", "discriminator", "loss", "pretrain", "optim_g", "optim_d", "d_steps"}


@pytest.mark.parametrize("name", GAN_RECIPES)
def test_every_recipe_is_called_by_its_name_and_can_be_built(name: str):
    config = build_gan_recipe(name)
    assert config.recipe == name
    with torch.device("meta"):
        generator, critic = config.generator, config.discriminator
        net = build_generator(generator.name, channels=config.num_channels, **generator.options)
        build_discriminator(critic.name, channels=config.num_channels, **critic.options)
    build_optimizer(net, config.optim_g)


def test_a_name_that_is_no_recipe_lists_those_that_are():
    with pytest.raises(UsageError, match=r"'srgan' is not a super-resolution recipe; the recipes are mri, "):
        build_gan_recipe("srgan")


def test_srgan_and_esrgan_differ_in_what_is_theirs_alone():
    srgan, esrgan, rmsprop = map(build_gan_recipe, ("srgan_small", "esrgan_small", "esrgan_small_rmsprop"))
    for name, value in srgan:
        if name not in OWN:
            assert value == getattr(esrgan, name), name
    assert srgan.discriminator == esrgan.discriminator
    assert (srgan.optim_g, srgan.optim_d) == (esrgan.optim_g, esrgan.optim_d)
    assert srgan.pretrain.share == esrgan.pretrain.share
    assert (srgan.loss.adversarial, esrgan.loss.adversarial) == ("vanilla", "ragan")
    assert (srgan.loss.extractor, srgan.loss.perceptual_crop) == (
        esrgan.loss.extractor,
        esrgan.loss.perceptual_crop,
    )
    back = rmsprop.replace(recipe="esrgan_small", optim_g=esrgan.optim_g, optim_d=esrgan.optim_d)
    assert back == esrgan
    assert (rmsprop.optim_g.name, rmsprop.optim_d.name, rmsprop.optim_g.momentum) == ("rmsprop", "rmsprop", 0)


def test_an_entrant_brings_its_networks_and_losses_and_the_ground_all_else():
    ground = with_settings(
        build_gan_recipe("mri_tiny"), {"degrade.lr_size": 28, "train.seed": 3, "optim_g.lr": 0.5}
    )
    made = gan_entrant_config(ground, "srgan_small:optim_g.lr=0.001,loss.pixel_weight=2")
    srgan = build_gan_recipe("srgan_small")
    assert (made.recipe, made.generator, made.pretrain) == (
        "srgan_small",
        srgan.generator,
        srgan.pretrain,
    )
    assert (made.optim_g.lr, made.optim_d.lr, made.loss.pixel_weight) == (0.001, srgan.optim_d.lr, 2)
    for name, value in made:
        if name not in OWN:
            assert value == getattr(ground, name), name
    with pytest.raises(UsageError, match=r"sets degrade.lr_size, which all entrants share; set it by --set"):
        gan_entrant_config(ground, "srgan_small:degrade.lr_size=16")
    with pytest.raises(UsageError, match=r"entrant 'srgan_small:optim_g\.rate=1': "):
        gan_entrant_config(ground, "srgan_small:optim_g.rate=1")


def test_a_budget_in_slices_is_as_many_steps_and_validations():
    ground = build_gan_recipe("mri_tiny")
    made = with_settings(ground, budget_settings(ground, num_slices=320))
    assert made.train.minutes is None
    assert made.train.max_epochs == ground.train.num_validations == 4
    assert made.train.max_epochs * made.sample.steps_per_epoch * made.train.batch_size == 320


def test_the_goat_study_keeps_its_batches_and_shares_all_else():
    names = SuperResComparison().entrants(build_gan_recipe("srgan_goat"), {}, {})
    assert list(names) == ["srgan_goat", "esrgan_goat", "esrgan_goat_rmsprop"]
    for name, config in names.items():
        recipe = build_gan_recipe(name)
        assert config.replace(recipe=name) == recipe
        assert (config.degrade.lr_size, config.degrade.hr_size, config.degrade.cut) == (28, 128, "whole")
        assert {config.optim_g.lr, config.optim_d.lr} == {1e-4}
        assert (config.loss.adversarial, config.loss.perceptual_distance, config.loss.extractor) == (
            "vanilla",
            "mse",
            "vgg19",
        )
        assert config.train.max_epochs == 200
    assert {name: (c.train.batch_size, c.optim_g.name, c.generator.name) for name, c in names.items()} == {
        "srgan_goat": (32, "adam", "srresnet"),
        "esrgan_goat": (8, "adam", "rrdbnet"),
        "esrgan_goat_rmsprop": (8, "rmsprop", "rrdbnet"),
    }
    # A setting for all entrants wins, and on other ground all have one batch size.
    common = SuperResComparison().entrants(build_gan_recipe("srgan_goat"), {}, {"train.batch_size": 4})
    assert {config.train.batch_size for config in common.values()} == {4}
    assert (
        gan_entrant_config(build_gan_recipe("mri_tiny"), "esrgan_goat").train.batch_size
        == 8
        == (build_gan_recipe("mri_tiny").train.batch_size)
    )
    assert gan_entrant_config(build_gan_recipe("srgan_goat"), "esrgan_small").train.batch_size == 32


def test_generators_of_the_goat_study_reach_128_from_28():
    for name in ("srgan_goat", "esrgan_goat"):
        config = build_gan_recipe(name)
        with torch.device("meta"):
            net = build_generator(config.generator.name, channels=1, **config.generator.options)
            assert net(torch.zeros(1, 1, 28, 28), (128, 128)).shape == (1, 1, 128, 128)
