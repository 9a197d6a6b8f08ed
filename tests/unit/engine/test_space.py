"""A user's search space: its syntax, its mistakes, and values in it."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from glioray.engine.space import (
    CustomSpace,
    find_setting,
    format_space,
    merge_spaces,
    nearest_value,
    parse_space,
    probe_values,
)
from glioray.errors import UsageError
from glioray.tasks.segmentation.recipes import build_recipe

ITEMS = {
    "optim.lr=log:1e-4:1e-2": FloatDistribution(1e-4, 1e-2, log=True),
    "augment.strength=0:1.5": FloatDistribution(0.0, 1.5),
    "augment.brightness=-1:-.5": FloatDistribution(-1.0, -0.5),
    "train.batch_size=int:4:16": IntDistribution(4, 16),
    "net.options.width=16,32,48": CategoricalDistribution((16, 32, 48)),
    "net.name=unet,resunet": CategoricalDistribution(("unet", "resunet")),
    "net.options.lean=true,false": CategoricalDistribution((True, False)),
    "train.minutes=null,0.5": CategoricalDistribution((None, 0.5)),
    "use.segmenter=models:/a/1,models:/b/2": CategoricalDistribution(("models:/a/1", "models:/b/2")),
    "optim.name=adamw,1": CategoricalDistribution(("adamw", 1)),
}


@pytest.mark.parametrize(("item", "values"), ITEMS.items())
def test_an_entry_is_parsed(item: str, values: BaseDistribution):
    custom = parse_space([item])
    assert custom == CustomSpace({item.partition("=")[0]: values}, keep_own=True)


def test_entries_survive_their_format():
    custom = parse_space(list(ITEMS))
    assert len(custom.entries) == len(ITEMS)
    again = parse_space([f"{name}={text}" for name, text in format_space(custom.entries).items()])
    assert again == custom


def test_lists_can_be_choices():
    custom = parse_space(["preprocess.size=[96,96],[128,128]"])
    sizes = custom.entries["preprocess.size"]
    assert sizes.choices == ((96, 96), (128, 128))
    hash(sizes)
    assert nearest_value(sizes, [128, 128]) == (128, 128)
    assert format_space(custom.entries) == {"preprocess.size": "[96, 96],[128, 128]"}


def test_a_mapping_may_hold_texts_choices_and_distributions():
    lr = FloatDistribution(1e-5, 1e-3, log=True)
    custom = parse_space({"a": "0:1", "b": [1, 2], "optim.lr": lr}, keep_own=False)
    assert custom == CustomSpace(
        {"a": FloatDistribution(0.0, 1.0), "b": CategoricalDistribution((1, 2)), "optim.lr": lr},
        keep_own=False,
    )


def test_none_drops_the_recipe_s_own_space():
    assert parse_space(["none", "a=0:1"]) == CustomSpace({"a": FloatDistribution(0.0, 1.0)}, keep_own=False)
    assert parse_space([]) == CustomSpace()


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        (["optim.lr"], "--search is 'optim.lr'; expected SETTING=VALUES"),
        (["=0:1"], "expected SETTING=VALUES"),
        (["a="], "expected SETTING=VALUES"),
        (["a=0.1"], "search of a is '0.1'; expected log:LOW:HIGH.* or --set for a single value"),
        (["a=log:0:1"], "expected LOW above 0 for a logarithmic range"),
        (["a=log:-1:1"], "expected LOW above 0"),
        (["a=1:1"], "expected LOW below HIGH"),
        (["a=2:1"], "expected LOW below HIGH"),
        (["a=0:inf"], "both finite"),
        (["a=nan:1"], "both finite"),
        (["a=int:1.5:3"], "search of a is 'int:1.5:3'; expected log:LOW:HIGH"),
        (["a=log:low:high"], "search of a is 'log:low:high'; expected log:LOW:HIGH"),
        (["a=log:1:2:3"], "search of a is 'log:1:2:3'; expected log:LOW:HIGH"),
        (["a=8,8"], "choices of a are 8, 8; expected at least two different ones"),
        (["a=[96,96]"], "expected at least two different ones"),
        (["a=0:1", "a=0:2"], "has 'a' twice"),
        (["none"], "the search space is empty"),
        ({"a": 3}, "the search of a is 3; expected log:LOW:HIGH"),
        ({"a": [1]}, "expected at least two different ones"),
        ({"a": [{}, {"b": 1}]}, "expected numbers, words or lists"),
    ],
)
def test_a_mistake_is_explained(items: Any, sentence: str):
    with pytest.raises(UsageError, match=sentence):
        parse_space(items)


def test_entries_replace_a_recipe_s_own_and_what_lies_below_them():
    own = {"net.options.width": CategoricalDistribution((8, 16)), "optim.lr": FloatDistribution(0.1, 1.0)}
    lr = parse_space(["optim.lr=0:1", "a=0:1"])
    assert merge_spaces(own, lr) == {
        **own,
        "optim.lr": FloatDistribution(0.0, 1.0),
        "a": FloatDistribution(0, 1),
    }
    assert set(merge_spaces(own, parse_space(["none", "a=0:1"]))) == {"a"}
    options = parse_space({"net.options": [1, 2]})
    assert set(merge_spaces(own, options)) == {"optim.lr", "net.options"}


@pytest.mark.parametrize(
    ("values", "wanted", "nearest"),
    [
        (FloatDistribution(1.0, 2.0), 1.5, 1.5),
        (FloatDistribution(1.0, 2.0), 3.0, 2.0),
        (IntDistribution(4, 16), 1, 4),
        (IntDistribution(4, 16), 5.6, 6),
        (IntDistribution(4, 16), None, 10),
        (CategoricalDistribution((8, 16)), 16, 16),
        (CategoricalDistribution((8, 16)), 12, 8),
    ],
)
def test_the_nearest_value_is_one_that_can_be_drawn(values: BaseDistribution, wanted: Any, nearest: Any):
    assert nearest_value(values, wanted) == nearest
    assert values._contains(values.to_internal_repr(nearest))


@pytest.mark.parametrize("wanted", [None, True, float("nan"), "high"])
def test_without_a_number_the_nearest_value_is_within_the_range(wanted: Any):
    assert 1 < nearest_value(FloatDistribution(1.0, 100.0, log=True), wanted) < 100


def test_a_range_is_tried_at_its_ends_and_between_whole_numbers():
    low, high, between = probe_values(FloatDistribution(4.0, 16.0))
    assert (low, high) == (4.0, 16.0)
    assert 4 < between < 16
    assert between != int(between)
    assert probe_values(CategoricalDistribution((1, 2))) == [1, 2]
    assert probe_values(IntDistribution(2, 5)) == [2, 5, 3]


def test_a_setting_is_found_by_its_dotted_name():
    config = build_recipe("unet_tiny")
    assert find_setting(config, "net.options.width") == 8
    assert find_setting(config, "preprocess.size") == [96, 96]
    assert find_setting(config, "net.options.width.more") is None
    assert find_setting(config, "nothing.like.it") is None
