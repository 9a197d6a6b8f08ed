"""Configs check themselves and go to and from plain dicts."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest

from glioray.config import (
    MODALITIES,
    AugmentConfig,
    OptimConfig,
    PreprocessConfig,
    SampleConfig,
    TrainConfig,
    override,
    with_settings,
)
from glioray.errors import UsageError
from glioray.serialization import fingerprint, from_dict, to_dict
from glioray.tasks.segmentation.config import LossConfig, PostprocessConfig, RunConfig
from glioray.tasks.segmentation.recipes import RECIPES

CONFIG = RunConfig(recipe="test")


@pytest.mark.parametrize("name", RECIPES)
def test_there_and_back(name: str):
    config = RECIPES[name]()
    values = to_dict(config)
    assert json.loads(json.dumps(values)) == values
    assert from_dict(RunConfig, values) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_tuples_come_back_as_tuples():
    config = from_dict(RunConfig, json.loads(json.dumps(to_dict(CONFIG))))
    assert config.preprocess.size == (192, 160)
    assert config.preprocess.planes == ("axial",)
    assert isinstance(config.preprocess.size, tuple)
    assert hash(config.preprocess) == hash(CONFIG.preprocess)


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.train.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mood": 1}, "'mood' is not a setting; the settings are recipe, preprocess, "),
        (
            {"train": {"mood": 1}},
            "'mood' is not a setting of train; the settings are batch_size, max_epochs, ",
        ),
        ({"train": {"seed": "three"}}, "train.seed is 'three'; expected int"),
        ({"train": {"seed": 1.5}}, "train.seed is 1.5; expected int"),
        ({"train": {"seed": True}}, "train.seed is True; expected int"),
        ({"train": {"seed": None}}, "train.seed is None; expected int"),
        ({"optim": {"lr": "fast"}}, "optim.lr is 'fast'; expected float"),
        ({"optim": {"lr": True}}, "optim.lr is True; expected float"),
        ({"optim": 3}, "optim is 3; expected an object of settings"),
        ({"preprocess": {"size": [32]}}, "preprocess.size is [32]; expected 2 values"),
        ({"preprocess": {"size": 32}}, "preprocess.size is 32; expected 2 values"),
        ({"preprocess": {"size": [32, "a"]}}, "preprocess.size[1] is 'a'; expected int"),
        ({"preprocess": {"planes": "axial"}}, "preprocess.planes is 'axial'; expected a list of str"),
        ({"preprocess": {"modalities": 3}}, "preprocess.modalities is 3; expected a list of str"),
        ({"preprocess": {"modalities": None}}, "preprocess.modalities is None; expected a list of str"),
        ({"net": {"options": [1]}}, "net.options is [1]; expected dict"),
        ({"train": {"minutes": "ten"}}, "train.minutes is 'ten'; expected float"),
        ({"recipe": 3}, "recipe is 3; expected str"),
    ],
)
def test_what_is_not_a_setting(change: dict[str, Any], sentence: str):
    with pytest.raises(UsageError) as caught:
        from_dict(RunConfig, {"recipe": "test", **change})
    assert str(caught.value).startswith(sentence)


def test_an_int_is_a_float_where_one_is_wanted():
    config = from_dict(RunConfig, {"recipe": "test", "train": {"minutes": 3}, "optim": {"lr": 1}})
    assert (config.train.minutes, config.optim.lr) == (3.0, 1.0)
    assert isinstance(config.train.minutes, float)
    assert from_dict(RunConfig, {"recipe": "test", "train": {"minutes": None}}).train.minutes is None


@pytest.mark.parametrize(
    ("cls", "name", "good", "bad"),
    [
        (PreprocessConfig, "planes", [("sagittal", "axial")], [(), ("axial", "axial"), ("oblique",)]),
        (PreprocessConfig, "size", [(32, 240)], [(16, 32), (33, 32), (0, 0)]),
        (PreprocessConfig, "normalize", ["none"], ["minmax"]),
        (PreprocessConfig, "modalities", [("flair",), ("t2", "t1")], [(), ("t1", "t1"), ("pd",)]),
        (PreprocessConfig, "spacing_mm", [None, (1.0, 1.0, 5.0)], [(1.0, 0.0, 1.0)]),
        (PreprocessConfig, "percentiles", [None, (0.5, 99.5)], [(99.0, 1.0), (0.0, 101.0)]),
        (PreprocessConfig, "clahe", [0.0, 1.0], [-0.1, 1.1]),
        (PreprocessConfig, "clip", [(-1.0, 1.0)], [(1.0, 1.0)]),
        (PreprocessConfig, "neighbours", [0, 4], [-1, 5]),
        (PreprocessConfig, "neighbour_step", [1, 8], [0, 9]),
        (SampleConfig, "foreground_share", [None, 0.0, 1.0], [-0.1, 1.1]),
        (SampleConfig, "empty_share", [0.0, 1.0], [-0.1, 1.1]),
        (SampleConfig, "min_tumour_px", [0, 100], [-1]),
        (SampleConfig, "slice_split", [None, (0.7, 0.15, 0.15)], [(0.5, 0.2, 0.2), (1.0, 0.0, 0.0)]),
        (SampleConfig, "steps_per_epoch", [None, 1], [0]),
        (AugmentConfig, "strength", [0.0, 3.0], [-1.0, 3.1]),
        (AugmentConfig, "noise_p", [0.0, 1.0], [-0.1, 1.1]),
        (AugmentConfig, "lowres", [1.0], [0.9]),
        (AugmentConfig, "ghost", [0.0, 1.0], [-0.1, 1.1]),
        (AugmentConfig, "flip", [(0.0, 1.0)], [(0.0, 1.1), (-0.1, 0.5)]),
        (OptimConfig, "name", ["adam", "sgd"], ["lion"]),
        (OptimConfig, "lr", [1e-6, 10.0], [0.0, 10.1, float("nan")]),
        (OptimConfig, "weight_decay", [0.0], [-1e-9]),
        (OptimConfig, "schedule", ["constant", "poly"], ["linear"]),
        (OptimConfig, "momentum", [0.0, 0.99], [1.0]),
        (OptimConfig, "cycles", [1], [0]),
        (OptimConfig, "power", [0.9], [0.0]),
        (LossConfig, "balance", ["inverse", "sqrt"], ["median"]),
        (LossConfig, "side_weights", ["equal"], ["first"]),
        (LossConfig, "presence_weight", [0.0], [-1.0]),
        (OptimConfig, "warmup", [0.0, 0.9], [-0.1, 1.0]),
        (OptimConfig, "ema", [0.0, 0.9999], [-0.1, 1.0]),
        (OptimConfig, "grad_clip", [0.0], [-1.0]),
        (TrainConfig, "batch_size", [1], [0]),
        (TrainConfig, "max_epochs", [1], [0]),
        (TrainConfig, "minutes", [None, 0.1], [0.0, -1.0, float("nan")]),
        (TrainConfig, "precision", ["auto", "bf16", "fp32"], ["fp16"]),
        (TrainConfig, "num_validations", [1], [0]),
        (TrainConfig, "num_kept", [1, 5], [0]),
        (TrainConfig, "num_workers", [1, 4], [0, 3]),
        (TrainConfig, "seed", [0, 1 << 40], [-1]),
        (PostprocessConfig, "thresholds", [(0.1, 0.5, 0.9)], [(0.0, 0.5, 0.5), (0.5, 0.5, 1.0)]),
        (PostprocessConfig, "min_et_ml", [0.0], [-0.1]),
        (PostprocessConfig, "min_component_ml", [0.0], [-0.1]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_values_are_checked(cls: Any, name: str, good: list[Any], bad: list[Any]):
    for value in good:
        assert getattr(cls(**{name: value}), name) == value
    for value in bad:
        with pytest.raises(UsageError, match=r"^\w+\.\w+ is .+; expected .+"):
            cls(**{name: value})


def test_override_changes_what_it_names_alone():
    config = override(
        CONFIG, **{"train.seed": 3, "net.options.width": 8, "train.minutes": 2, "preprocess.size": [64, 32]}
    )
    assert config.train == dataclasses.replace(CONFIG.train, seed=3, minutes=2.0)
    assert config.net.options == {"width": 8}
    assert config.preprocess.size == (64, 32)
    assert (
        dataclasses.replace(config, train=CONFIG.train, net=CONFIG.net, preprocess=CONFIG.preprocess)
        == CONFIG
    )
    assert CONFIG.net.options == {}
    assert override(CONFIG, **{"train.seed": None}) == CONFIG


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("seed", "'seed' is not a setting; the settings are recipe"),
        ("train.mood", "'mood' is not a setting of train"),
        ("mood.seed", "'mood' is not a setting; the settings are recipe"),
        ("optim.lr.x", "'optim.lr.x' is not a setting; 'lr' is 0.001 and has none below it"),
        ("recipe.x.y", "'recipe.x.y' is not a setting; 'recipe' is 'test' and has none below it"),
        ("", "'' is not a setting"),
    ],
)
def test_override_of_what_is_not_there(path: str, sentence: str):
    with pytest.raises(UsageError) as caught:
        override(CONFIG, **{path: 1})
    assert str(caught.value).startswith(sentence)


def test_with_settings_sets_none_too_and_all_at_once():
    share = override(CONFIG, **{"sample.foreground_share": 0.5})
    assert with_settings(share, {"sample.foreground_share": None}) == CONFIG
    together = {"train.num_workers": 3, "train.batch_size": 6}
    for settings in (together, dict(reversed(together.items()))):
        assert with_settings(CONFIG, settings).train.num_workers == 3
    with pytest.raises(UsageError, match=r"train.batch_size is 16; expected a multiple of the 3 workers"):
        with_settings(CONFIG, {"train.num_workers": 3})


def test_fingerprints_name_values():
    names = {
        fingerprint(config)
        for config in (
            CONFIG,
            override(CONFIG, **{"train.seed": 1}),
            override(CONFIG, **{"net.options.width": 8}),
            override(CONFIG, **{"optim.lr": 2e-3}),
        )
    }
    assert len(names) == 4
    assert fingerprint(CONFIG) == fingerprint(from_dict(RunConfig, to_dict(CONFIG)))
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    # Names of folders and manifests hang on it: it must be the same on every machine and in every version.
    assert fingerprint({"a": [1, 2.5, None, "x"]}) == "629bba16e68e"


def test_neighbours_share_the_cache_and_all_else_parts_it():
    plain = PreprocessConfig()
    assert PreprocessConfig(neighbours=2, neighbour_step=3).cache_key == plain.cache_key
    others = [
        PreprocessConfig(planes=("coronal",)),
        PreprocessConfig(size=(192, 176)),
        PreprocessConfig(normalize="none"),
        PreprocessConfig(clip=(-5.0, 5.0)),
    ]
    assert len({config.cache_key for config in (plain, *others)}) == 5


def test_channels_and_targets():
    assert [PreprocessConfig(neighbours=n).num_channels for n in (0, 1, 2)] == [4, 12, 20]
    assert len(MODALITIES) == 4
    assert LossConfig(name="region_dice_bce").target == "regions"
    assert LossConfig(name="dice_ce").target == "classes"
