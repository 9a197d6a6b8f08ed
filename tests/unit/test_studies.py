"""How a tournament's entrants are written, and what a study holds."""

from __future__ import annotations

import pytest

from glioray.config import with_settings
from glioray.errors import UsageError
from glioray.losses import build_loss
from glioray.nets import build_net
from glioray.studies import (
    STUDIES,
    budget_settings,
    budget_text,
    entrant_config,
    product_entrants,
    split_names,
)
from glioray.tasks.segmentation.recipes import build_recipe


def test_names_and_their_options_are_parted():
    text = "recipe,unetpp:width=16,deep_supervision=true,u2netp, segresnet:width=8"
    assert split_names(text) == [
        "recipe",
        "unetpp:width=16,deep_supervision=true",
        "u2netp",
        "segresnet:width=8",
    ]
    assert split_names("resenc:blocks=[1,2,1],width=8,u2netp") == ["resenc:blocks=[1,2,1],width=8", "u2netp"]
    assert split_names(None) == split_names("") == []


def test_every_network_meets_every_loss_and_every_optimiser():
    rows = product_entrants(
        ["recipe", "unet:width=8"], ["region_dice_bce", "region_dice_bce:ce_weight=2"], ["adam"]
    )
    assert [row.label for row in rows] == [
        "recipe / region_dice_bce / adam",
        "recipe / region_dice_bce:ce_weight=2 / adam",
        "unet:width=8 / region_dice_bce / adam",
        "unet:width=8 / region_dice_bce:ce_weight=2 / adam",
    ]
    config = entrant_config(build_recipe("unet_small"), rows[-1])
    # What runs any network at half resolution is the recipe's; the network's own options are not.
    assert config.net.options == {"stem_stride": 2, "prior": 0.12, "width": 8}
    assert config.loss.options == {"ce_weight": 2}
    assert config.optim.name == "adam"
    assert config.optim.lr == build_recipe("unet_small").optim.lr


def test_the_recipe_alone_is_an_entrant():
    (row,) = product_entrants([], [], [])
    assert entrant_config(build_recipe("unet_small"), row) == build_recipe("unet_small")


def test_a_schedule_free_optimiser_brings_no_schedule():
    (row,) = product_entrants([], [], ["schedulefree:lr=0.01"])
    optim = entrant_config(build_recipe("unet_small"), row).optim
    assert (optim.name, optim.lr, optim.schedule, optim.ema) == ("schedulefree", 0.01, "constant", 0.0)


@pytest.mark.parametrize(
    ("nets", "sentence"),
    [
        (["unet:width"], "'unet:width' is not an entrant; write NAME or NAME:OPTION=VALUE"),
        (["unet", "unet"], "'unet' is in the tournament twice"),
    ],
)
def test_what_is_no_entrant(nets: list[str], sentence: str):
    with pytest.raises(UsageError, match=sentence):
        product_entrants(nets, [], [])


def test_a_setting_that_cannot_be_names_the_entrant():
    (row,) = product_entrants([], [], ["adam:lr=-1"])
    with pytest.raises(UsageError, match=r"entrant 'adam:lr=-1': optim.lr is -1"):
        entrant_config(build_recipe("unet_small"), row)


@pytest.mark.parametrize("num_slices", [1, 16, 1000, 1001])
def test_a_budget_of_slices_is_met_to_a_batch_an_epoch(num_slices: int):
    config = build_recipe("unet_small")
    config = with_settings(config, budget_settings(config, num_slices=num_slices))
    assert config.train.minutes is None
    drawn = config.train.max_epochs * (config.sample.steps_per_epoch or 0) * config.train.batch_size
    assert num_slices <= drawn < num_slices + config.train.batch_size * config.train.max_epochs


def test_a_budget_of_minutes_ends_by_the_clock_alone():
    config = build_recipe("keras_study")
    settings = budget_settings(config, minutes=3.0)
    assert settings["train.minutes"] == 3.0
    assert settings["train.max_epochs"] >= 1_000_000
    assert budget_settings(config) == {}
    with pytest.raises(UsageError, match="both given"):
        budget_settings(config, minutes=1.0, num_slices=10)


def test_a_budget_in_words():
    config = with_settings(build_recipe("unet_tiny"), {"train.max_epochs": 2000, "train.minutes": 7.5})
    assert budget_text(config, minutes=0.5) == "0.5 minutes"
    assert budget_text(config, num_slices=20_000) == "20,000 slices"
    assert budget_text(config) == "the recipe's 2,000 epochs or 7.5 minutes"
    endless = with_settings(config, {"train.minutes": None})
    assert budget_text(endless, minutes=None, num_slices=None) == "the recipe's 2,000 epochs"


def test_the_keras_study_has_22_rows_that_can_be_built():
    rows = STUDIES["keras_study"]()
    assert len(rows) == len({row.label for row in rows}) == 22
    configs = [entrant_config(build_recipe("keras_study"), row, width=4) for row in rows]
    assert len(set(map(str, configs))) == 22
    for config in configs:
        channels = config.preprocess.num_channels
        build_net(config.net.name, in_channels=channels, out_channels=4, **config.net.options)
        build_loss(config.loss.name, **config.loss.options)
