"""Every recipe is a run that can be started."""

from __future__ import annotations

import pytest
import torch

from glioray.engine.optim import build_optimizer
from glioray.errors import UsageError
from glioray.losses import build_loss
from glioray.tasks.segmentation.package import ModelSpec
from glioray.tasks.segmentation.recipes import RECIPES, build_recipe


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.contracts
def test_a_recipe_builds_and_takes_a_step(name: str):
    torch.set_num_threads(1)
    config = build_recipe(name)
    assert config.recipe == name
    channels = 3 if config.loss.target == "regions" else 4
    spec = ModelSpec(config=config, out_channels=channels, spacing_mm=(1.0, 1.0, 1.0), manifest_hash="")
    net = spec.build()
    build_optimizer(net, config.optim)
    height, width = config.preprocess.size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, config.preprocess.num_channels, height, width, generator=generator)
    masks = torch.randint(0, 4, (2, height, width), generator=generator, dtype=torch.uint8)
    logits = net.eval()(images[:1] if name == "unet_brats" else images)
    assert logits.shape[1:] == (channels, height, width)
    loss = build_loss(config.loss.name, **config.loss.options)(logits, masks[: len(logits)])
    assert torch.isfinite(loss)
    assert float(loss.detach()) > 0


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_value(name: str):
    assert build_recipe(name) == build_recipe(name)
    assert build_recipe(name).net.options is not build_recipe(name).net.options
    assert RECIPES[name].__doc__


@pytest.mark.parametrize("name", RECIPES)
def test_mirrors_follow_flips(name: str):
    """A prediction is averaged over mirror images only if training has seen such."""
    config = build_recipe(name)
    for mirrored, flipped in zip(config.postprocess.mirror, config.augment.flip, strict=True):
        assert not mirrored or (flipped and config.augment.strength)


def test_an_unknown_recipe_lists_them():
    with pytest.raises(
        UsageError, match=r"'unet_huge' is not a recipe; the recipes are unet_tiny, unet_phantom"
    ):
        build_recipe("unet_huge")
