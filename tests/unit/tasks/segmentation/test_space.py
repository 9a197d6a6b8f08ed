"""The search space around a segmentation recipe."""

from __future__ import annotations

from typing import Any

import pytest

from glioray.config import with_settings
from glioray.engine.search import recipe_point
from glioray.tasks.segmentation.recipes import RECIPES, build_recipe
from glioray.tasks.segmentation.search import SegmentationSearch
from glioray.tasks.segmentation.space import unet_space

SEARCH = SegmentationSearch()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_is_a_point_of_its_space(recipe: str):
    config = build_recipe(recipe)
    space = unet_space(config)
    point = recipe_point(SEARCH, config, space)
    assert set(point) == set(space)
    for name, distribution in space.items():
        assert distribution._contains(distribution.to_internal_repr(point[name])), name
    assert SEARCH.apply(config, point, {}).optim.lr == config.optim.lr


@pytest.mark.parametrize(
    ("net", "options", "widths"),
    [
        ("unet", {"width": 32}, (24, 32, 48)),
        ("unet", {"width": 4}, (4, 6)),
        ("u2netp", {"width": 8}, (8, 12)),  # multiples of 4
        ("dynunet", {"width": 16, "norm": "group"}, (16, 24)),  # multiples of 8
    ],
)
def test_only_widths_that_the_network_takes_are_searched(
    net: str, options: dict[str, Any], widths: tuple[int, ...]
):
    config = with_settings(build_recipe("unet_small"), {"net.name": net, "net.options": options})
    assert unet_space(config)["net.options.width"].choices == widths


def test_only_what_the_config_names_is_searched():
    config = with_settings(build_recipe("unet_small"), {"net.options": {}, "loss.options": {}})
    assert set(unet_space(config)) == {"optim.lr", "optim.weight_decay", "augment.strength"}
    assert SEARCH.apply(config, recipe_point(SEARCH, config, unet_space(config)), {}).net.options == {}
