"""The search space around a super-resolution recipe, and the configs of its points."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from glioray.config import with_settings
from glioray.engine.search import recipe_point
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.recipes import GAN_RECIPES, build_gan_recipe
from glioray.tasks.superres.search import SuperResSearch
from glioray.tasks.superres.space import (
    PENALISED,
    RATIO,
    SHARE,
    apply_gan_point,
    gan_space,
    pretraining,
    warm_shares,
)

SEARCH = SuperResSearch()
SOURCES = {0.2: "/runs/pretrain/20-percent", 0.5: "/runs/pretrain/50-percent"}


def _own_point(config: GanConfig) -> dict[str, Any]:
    return recipe_point(SEARCH, config, gan_space(config))


@pytest.mark.parametrize("recipe", GAN_RECIPES)
@pytest.mark.contracts
def test_the_recipe_is_a_point_of_its_space(recipe: str):
    config = build_gan_recipe(recipe)
    space, point = gan_space(config), _own_point(config)
    assert set(point) == set(space)
    for name, distribution in space.items():
        assert distribution._contains(distribution.to_internal_repr(point[name])), name
    made = apply_gan_point(config, point, SOURCES)
    assert (made.optim_g, made.d_steps, made.discriminator) == (
        config.optim_g,
        config.d_steps,
        config.discriminator,
    )
    assert made.optim_d.lr == pytest.approx(config.optim_d.lr)
    assert made.loss == config.loss


def test_rates_reach_into_where_gans_collapse():
    space = gan_space(build_gan_recipe("mri_small"))
    assert (space["optim_g.lr"].low, space["optim_g.lr"].high) == (1e-5, 1e-2)
    point = _own_point(build_gan_recipe("mri_small")) | {"optim_g.lr": 1e-2, RATIO: 4.0}
    made = apply_gan_point(build_gan_recipe("mri_small"), point, SOURCES)
    assert (made.optim_g.lr, made.optim_d.lr) == (1e-2, 4e-2)


def test_only_what_the_config_has_is_searched():
    tiny = build_gan_recipe("mri_tiny")
    assert "loss.perceptual_weight" not in gan_space(tiny)
    assert "loss.perceptual_weight" in gan_space(build_gan_recipe("mri_small"))
    assert SHARE not in gan_space(with_settings(tiny, {"pretrain.source": "/runs/psnr"}))
    assert gan_space(tiny)["discriminator.options.norm"].choices == ("spectral", "none")
    assert set(gan_space(build_gan_recipe("srgan_paper"))["discriminator.options.norm"].choices) == {
        "batch",
        "spectral",
        "none",
    }
    # An average that remembers more steps than the run has would hide what became of it.
    assert gan_space(tiny)["optim_g.ema"].choices == (0.9, 0.99)
    assert gan_space(build_gan_recipe("mri"))["optim_g.ema"].choices == (0.99, 0.999)


def test_settings_that_cannot_go_together_are_made_to():
    config = build_gan_recipe("mri_tiny")
    point = _own_point(config) | {"loss.adversarial": "hinge", "loss.label_smoothing": 0.1, "loss.r1": 5.0}
    made = apply_gan_point(config, point | {PENALISED: False}, SOURCES)
    assert (made.loss.label_smoothing, made.loss.r1) == (0.0, 0.0)
    assert apply_gan_point(config, point | {PENALISED: True}, SOURCES).loss.r1 == 5.0
    smoothed = apply_gan_point(config, point | {"loss.adversarial": "ragan"}, SOURCES)
    assert smoothed.loss.label_smoothing == 0.1


def test_rmsprop_has_no_momentum_that_nobody_asked_for():
    config = build_gan_recipe("mri_tiny")
    point = _own_point(config) | {"optim_d.name": "rmsprop"}
    assert apply_gan_point(config, point, SOURCES).optim_d.momentum == 0
    own = with_settings(config, {"optim_d.name": "rmsprop", "optim_d.momentum": 0.5})
    assert apply_gan_point(own, point, SOURCES).optim_d.momentum == 0.5


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_pretraining_is_taken_off_a_trial_s_budget(share: float):
    config = with_settings(build_gan_recipe("mri"), {"train.minutes": 10})
    made = apply_gan_point(config, _own_point(config) | {SHARE: share}, SOURCES)
    assert made.pretrain.share == 0
    assert made.pretrain.source == SOURCES.get(share)
    assert made.train.max_epochs == round((1 - share) * config.train.max_epochs)
    assert made.train.minutes == pytest.approx(10 * (1 - share))


def test_the_shared_pretraining_adds_up_to_the_largest_share():
    config = with_settings(build_gan_recipe("mri"), {"use.segmenter": "models:/a/1", "use.weight": 1})
    first, second = pretraining(config, 0.0, 0.2, None), pretraining(config, 0.2, 0.5, SOURCES[0.2])
    assert first.train.max_epochs + second.train.max_epochs == 0.5 * config.train.max_epochs
    assert (first.pretrain.source, second.pretrain.source) == (None, SOURCES[0.2])
    assert first.pretrain.share == second.pretrain.share == 1
    assert first.use.segmenter is None


@pytest.mark.parametrize("source", [None, "/runs/psnr"])
def test_a_given_setting_replaces_what_has_no_meaning_beside_it(source: str | None):
    config = with_settings(build_gan_recipe("mri_tiny"), {"pretrain.source": source})
    own = set(gan_space(config))
    assert own - set(gan_space(config, ("optim_d.lr", "loss.r1"))) == {RATIO, PENALISED}
    assert own - set(gan_space(config, ("pretrain.source",))) == ({SHARE} if source is None else set())


def test_part_of_a_point_leaves_the_rest_to_the_recipe():
    config = build_gan_recipe("mri_tiny")
    assert apply_gan_point(config, {}) == config
    made = apply_gan_point(config, {RATIO: 0.5})
    assert (made.optim_g, made.optim_d.lr) == (config.optim_g, 0.5 * config.optim_g.lr)
    made = apply_gan_point(config, {"optim_g.lr": 1e-5, "optim_d.lr": 2e-5, "loss.r1": 3.0})
    assert (made.optim_g.lr, made.optim_d.lr, made.loss.r1) == (1e-5, 2e-5, 3.0)


def test_trials_that_differ_in_what_is_pretrained_have_no_pretraining_in_common():
    config = build_gan_recipe("mri_tiny")
    space = gan_space(config)
    assert warm_shares(config, space) == (0.2, 0.5)
    width = CategoricalDistribution((8, 16))
    assert warm_shares(config, {**space, "generator.options.width": width}) == ()
    assert warm_shares(config, {**space, "discriminator.options.width": width}) == (0.2, 0.5)
    assert warm_shares(config, {**space, SHARE: CategoricalDistribution((0, 0.3))}) == (0.3,)
    assert warm_shares(config, {**space, SHARE: FloatDistribution(0.0, 0.5)}) == ()
    # Each then pretrains its own generator, within its own budget.
    made = apply_gan_point(config, _own_point(config) | {SHARE: 0.5, "train.max_epochs": 9}, {})
    assert (made.pretrain.share, made.train.max_epochs) == (0.5, 9)
