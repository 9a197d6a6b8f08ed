"""Entrants as text, and the budget of their runs."""

from __future__ import annotations

from typing import Any

import pytest

from glioray.config import with_settings
from glioray.engine.entrants import budget_settings, budget_text, parse_entrant, split_names
from glioray.errors import UsageError
from glioray.tasks import TASKS, load_task


def test_names_keep_their_options():
    text = "recipe,unetpp:width=16,deep_supervision=true,u2netp, segresnet:width=8"
    assert split_names(text) == [
        "recipe",
        "unetpp:width=16,deep_supervision=true",
        "u2netp",
        "segresnet:width=8",
    ]
    assert split_names("resenc:blocks=[1,2,1],width=8,u2netp") == ["resenc:blocks=[1,2,1],width=8", "u2netp"]
    assert split_names(None) == split_names("") == []


def test_entrant_settings_are_json_or_words():
    assert parse_entrant("sgd:lr=0.01,norm=batch, blocks=[1,2]") == (
        "sgd",
        {"lr": 0.01, "norm": "batch", "blocks": [1, 2]},
    )
    assert parse_entrant(" adam ") == ("adam", {})
    with pytest.raises(UsageError, match="'sgd:=3' is not an entrant; write NAME or NAME:OPTION=VALUE"):
        parse_entrant("sgd:=3")


@pytest.fixture(params=TASKS)
def config(request: pytest.FixtureRequest) -> Any:
    """The first recipe of each task."""
    return next(iter(load_task(request.param).recipes.values()))()


@pytest.mark.parametrize("num_slices", [1, 16, 1000, 1001])
def test_slice_budget_is_met_within_a_batch_an_epoch(config: Any, num_slices: int):
    config = with_settings(config, budget_settings(config, num_slices=num_slices))
    assert config.train.minutes is None
    drawn = config.train.max_epochs * (config.sample.steps_per_epoch or 0) * config.train.batch_size
    assert num_slices <= drawn < num_slices + config.train.batch_size * config.train.max_epochs


def test_budget_of_minutes_has_no_other_end(config: Any):
    settings = budget_settings(config, minutes=3.0)
    assert settings["train.minutes"] == 3.0
    assert settings["train.max_epochs"] >= 1_000_000
    assert budget_settings(config) == {}
    with pytest.raises(UsageError, match="both given"):
        budget_settings(config, minutes=1.0, num_slices=10)


def test_budget_in_words(config: Any):
    config = with_settings(config, {"train.max_epochs": 2000, "train.minutes": 7.5})
    assert budget_text(config, minutes=0.5) == "0.5 minutes"
    assert budget_text(config, num_slices=20_000) == "20,000 slices"
    assert budget_text(config) == "the recipe's 2,000 epochs or 7.5 minutes"
    endless = with_settings(config, {"train.minutes": None})
    assert budget_text(endless, minutes=None, num_slices=None) == "the recipe's 2,000 epochs"
