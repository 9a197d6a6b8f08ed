"""What a search varies."""

from __future__ import annotations

import pytest

from glioray.config import with_settings
from glioray.recipes import RECIPES, build_recipe
from glioray.tuning.space import apply_point, recipe_point, unet_space


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_is_a_point_of_its_space(recipe: str):
    config = build_recipe(recipe)
    space, point = unet_space(config), recipe_point(config)
    assert set(point) == set(space)
    for name, distribution in space.items():
        assert distribution._contains(distribution.to_internal_repr(point[name])), name
    assert apply_point(config, point).optim.lr == config.optim.lr


def test_only_what_the_config_names_is_searched():
    config = with_settings(build_recipe("unet_small"), {"net.options": {}, "loss.options": {}})
    assert set(unet_space(config)) == {"optim.lr", "optim.weight_decay", "augment.strength"}
    assert apply_point(config, recipe_point(config)).net.options == {}
