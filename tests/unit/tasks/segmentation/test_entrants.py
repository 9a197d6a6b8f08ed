"""Entrants of a comparison of segmentation models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from glioray.errors import UsageError
from glioray.losses import build_loss
from glioray.nets import build_net
from glioray.tasks.segmentation.entrants import PUBLISHED, STUDIES, entrant_config, product_entrants
from glioray.tasks.segmentation.recipes import build_recipe


def test_every_network_is_combined_with_every_loss_and_optimiser():
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
    # Options that every network has are the recipe's; the network's own options are not.
    assert config.net.options == {"stem_stride": 2, "prior": 0.12, "width": 8}
    assert config.loss.options == {"ce_weight": 2}
    assert config.optim.name == "adam"
    assert config.optim.lr == build_recipe("unet_small").optim.lr


def test_the_recipe_alone_is_an_entrant():
    (row,) = product_entrants([], [], [])
    assert entrant_config(build_recipe("unet_small"), row) == build_recipe("unet_small")


def test_schedule_free_optimiser_has_no_schedule():
    (row,) = product_entrants([], [], ["schedulefree:lr=0.01"])
    optim = entrant_config(build_recipe("unet_small"), row).optim
    assert (optim.name, optim.lr, optim.schedule, optim.ema) == ("schedulefree", 0.01, "constant", 0.0)


@pytest.mark.parametrize(
    ("nets", "sentence"),
    [
        (["unet:width"], "'unet:width' is not an entrant; write NAME or NAME:OPTION=VALUE"),
        (["unet", "unet"], "entrant 'unet' is given twice; name each entrant once"),
    ],
)
def test_invalid_entrants_are_refused(nets: list[str], sentence: str):
    with pytest.raises(UsageError, match=sentence):
        product_entrants(nets, [], [])


def test_invalid_setting_names_the_entrant():
    (row,) = product_entrants([], [], ["adam:lr=-1"])
    with pytest.raises(UsageError, match=r"entrant 'adam:lr=-1': optim.lr is -1"):
        entrant_config(build_recipe("unet_small"), row)


def test_keras_study_has_22_entrants_that_can_be_built():
    rows = STUDIES["keras_study"]()
    assert len(rows) == len({row.label for row in rows}) == 22
    configs = [entrant_config(build_recipe("keras_study"), row, width=4) for row in rows]
    assert len(set(map(str, configs))) == 22
    for config in configs:
        channels = config.preprocess.num_channels
        build_net(config.net.name, in_channels=channels, out_channels=4, **config.net.options)
        build_loss(config.loss.name, **config.loss.options)


def test_rows_of_keras_study_have_the_counts_of_its_table():
    """As Keras counts: with running statistics, and a bias before each normalisation."""
    not_found = {1, 3, 10, 11, 12, 16, 19, 20, 21}  # nets/README.md says what was tried
    recipe = build_recipe("keras_study")
    for number, row in enumerate(STUDIES["keras_study"](), 1):
        config = entrant_config(recipe, row)
        with torch.device("meta"):
            channels = config.preprocess.num_channels
            net = build_net(config.net.name, in_channels=channels, out_channels=4, **config.net.options)
        count = sum(parameter.numel() for parameter in net.parameters())
        count += sum(buffer.numel() for buffer in net.buffers() if buffer.ndim)
        count += sum(m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d) and m.bias is None)
        assert row.label.startswith(f"{number} ")
        assert (count == PUBLISHED[row.label].num_parameters) == (number not in not_found), (row.label, count)


def test_keras_study_follows_its_table():
    configs = {
        int(row.label.split()[0]): entrant_config(build_recipe("keras_study"), row)
        for row in STUDIES["keras_study"]()
    }
    assert {n for n, config in configs.items() if config.optim.name == "adagrad"} == {12, 14, 15, 16}
    assert {n for n, config in configs.items() if config.loss.name == "soft_dice"} == {10, 16}
    assert {n for n, config in configs.items() if config.loss.name == "exp_log"} == {1, 4, 5, 6, 8}
    assert configs[1].loss.options == {"dice_weight": 0.2, "ce_weight": 0.8}
    assert {n for n, config in configs.items() if config.loss.balance == "inverse"} == {7}
    assert {n for n, config in configs.items() if config.preprocess.num_channels == 5} == {
        8,
        9,
        10,
        11,
        12,
        20,
    }
    assert {(config.train.batch_size, config.train.max_epochs) for config in configs.values()} == {(32, 100)}
    sizes = {n: config.preprocess.size for n, config in configs.items()}
    assert sizes == {**dict.fromkeys(range(1, 22), (240, 240)), 22: (128, 128)}
