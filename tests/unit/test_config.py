"""Configs check themselves and go to and from plain dicts."""

from __future__ import annotations

import json
import pickle
from functools import reduce
from typing import Any

import pytest
from pydantic import ValidationError

from glioray.config import (
    MODALITIES,
    AugmentConfig,
    OptimConfig,
    PreprocessConfig,
    SampleConfig,
    TaskConfig,
    TrainConfig,
    list_settings,
    override,
    with_settings,
)
from glioray.errors import UsageError
from glioray.losses import SEGMENTATION_LOSSES, LossEntry
from glioray.serialization import fingerprint, from_dict, json_schema, to_dict
from glioray.tasks.segmentation.config import LossConfig, PostprocessConfig, RunConfig
from glioray.tasks.segmentation.recipes import RECIPES
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.recipes import GAN_RECIPES

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
    with pytest.raises(ValidationError, match="frozen"):
        CONFIG.train.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mood": 1}, "no setting 'mood'; the settings are recipe, preprocess, "),
        ({"train": {"mood": 1}}, "no setting 'train.mood'; train has batch_size, max_epochs, "),
        ({"optim": {"lrr": 1}}, "no setting 'optim.lrr'; did you mean optim.lr?"),
        ({"optm": {"lr": 1}}, "no setting 'optm'; did you mean optim?"),
        ({"train": {"seed": "three"}}, "train.seed is 'three'; expected a whole number, at least 0"),
        ({"train": {"seed": "1"}}, "train.seed is '1'; expected a whole number, at least 0"),
        ({"train": {"seed": 1.5}}, "train.seed is 1.5; expected a whole number, at least 0"),
        ({"train": {"seed": 1.0}}, "train.seed is 1.0; expected a whole number, at least 0"),
        ({"train": {"seed": True}}, "train.seed is True; expected a whole number, at least 0"),
        ({"train": {"seed": None}}, "train.seed is None; expected a whole number, at least 0"),
        ({"train": {"seed": -1}}, "train.seed is -1; expected at least 0"),
        ({"optim": {"lr": "fast"}}, "optim.lr is 'fast'; expected a number above 0 and at most 10"),
        ({"optim": {"lr": True}}, "optim.lr is True; expected a number above 0 and at most 10"),
        ({"optim": {"lr": float("nan")}}, "optim.lr is nan; expected a number above 0 and at most 10"),
        ({"optim": {"lr": -1.0}}, "optim.lr is -1.0; expected above 0 and at most 10"),
        ({"optim": {"grad_clip": float("inf")}}, "optim.grad_clip is inf; expected a number, at least 0"),
        ({"optim": {"name": "adamm"}}, "optim.name is 'adamm'; expected one of adam, adamw, sgd, "),
        ({"optim": 3}, "optim is 3; expected an object of settings"),
        (
            {"preprocess": {"size": [32]}},
            "preprocess.size is [32]; expected 2 values, each a multiple of 16, ",
        ),
        ({"preprocess": {"size": 32}}, "preprocess.size is 32; expected 2 values"),
        ({"preprocess": {"size": [32, 32, 32]}}, "preprocess.size is [32, 32, 32]; expected 2 values"),
        ({"preprocess": {"size": [32, "a"]}}, "preprocess.size[1] is 'a'; expected a multiple of 16"),
        ({"preprocess": {"planes": "axial"}}, "preprocess.planes is 'axial'; expected a list of one or more"),
        (
            {"preprocess": {"modalities": 3}},
            "preprocess.modalities is 3; expected a list of one or more values",
        ),
        (
            {"preprocess": {"modalities": None}},
            "preprocess.modalities is None; expected a list of one or more",
        ),
        ({"net": {"options": [1]}}, "net.options is [1]; expected an object of settings"),
        ({"train": {"minutes": "ten"}}, "train.minutes is 'ten'; expected None or a number above 0"),
        ({"train": {"minutes": 0}}, "train.minutes is 0; expected None or above 0"),
        ({"recipe": 3}, "recipe is 3; expected text"),
    ],
)
def test_what_is_not_a_setting(change: dict[str, Any], sentence: str):
    with pytest.raises(UsageError) as caught:
        from_dict(RunConfig, {"recipe": "test", **change})
    assert str(caught.value).startswith(sentence)


def test_only_the_first_error_is_told_and_near_words_are_suggested():
    settings = {"optim.name": "adamm", "train.seed": -1, "optim.ema": 2}
    with pytest.raises(UsageError) as caught:
        with_settings(CONFIG, settings)
    assert str(caught.value) == "train.seed is -1; expected at least 0 (and 2 more)"
    with pytest.raises(UsageError, match=r"; did you mean adam\?$"):
        with_settings(CONFIG, {"optim.name": "adamm"})
    with pytest.raises(UsageError, match=r"^recipe is missing; expected text$"):
        from_dict(RunConfig, {})


def test_a_part_made_directly_names_its_class():
    with pytest.raises(UsageError, match=r"^OptimConfig\.lr is -1; expected above 0 and at most 10$"):
        OptimConfig(lr=-1)
    with pytest.raises(UsageError, match=r"^no setting 'OptimConfig\.lrr'; did you mean OptimConfig\.lr\?$"):
        OptimConfig().replace(lrr=1)
    with pytest.raises(UsageError, match=r"^RunConfig\.train\.seed is -1; expected at least 0$"):
        RunConfig(recipe="test", train={"seed": -1})  # type: ignore[arg-type]


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
        with pytest.raises(
            UsageError, match=rf"^{cls.__name__}\.({name}|batch_size)(\[\d\])? is .+; expected .+"
        ):
            cls(**{name: value})


def test_override_changes_what_it_names_alone():
    config = override(
        CONFIG, **{"train.seed": 3, "net.options.width": 8, "train.minutes": 2, "preprocess.size": [64, 32]}
    )
    assert config.train == CONFIG.train.replace(seed=3, minutes=2.0)
    assert config.net.options == {"width": 8}
    assert config.preprocess.size == (64, 32)
    assert config.replace(train=CONFIG.train, net=CONFIG.net, preprocess=CONFIG.preprocess) == CONFIG
    assert CONFIG.net.options == {}
    assert override(CONFIG, **{"train.seed": None}) == CONFIG


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("seed", "no setting 'seed'; did you mean train.seed?"),
        ("train.mood", "no setting 'train.mood'; train has batch_size"),
        ("mood.seed", "no setting 'mood'; the settings are recipe"),
        ("optim.lr.x", "no setting 'optim.lr.x'; optim.lr is 0.001 and has none below it"),
        ("recipe.x.y", "no setting 'recipe.x.y'; recipe is 'test' and has none below it"),
        ("", "no setting ''; the settings are recipe"),
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


# Names of runs, caches and demos hang on them. Those of GANs changed when `collapse.dead` was added, which
# a run from before has by its default.
FINGERPRINTS = {
    "unet_tiny": ("400d7b93f9f3", "e36a8689d7d7"),
    "unet_phantom": ("17f1f0da8b9b", "596e76fdd948"),
    "unet_small": ("a3cde756992b", "dc1d0ba2a82c"),
    "attention_small": ("4106e4585b9f", "dc1d0ba2a82c"),
    "unet_brats": ("906f25541391", "dc1d0ba2a82c"),
    "keras_study": ("2c822aabf5f4", "5c73c0fe0413"),
    "mri": ("9d8cd1fcdde1", "04cf409313cd"),
    "mri_small": ("d88c5563b21a", "04cf409313cd"),
    "mri_phantom": ("ac688ba3de5f", "1db0f98f1e48"),
    "mri_tiny": ("27989754b13b", "08a047c07814"),
    "srgan_paper": ("16cb20d1bf52", "04cf409313cd"),
    "esrgan_paper": ("6cc1191c09eb", "04cf409313cd"),
    "srgan_small": ("a48770b428f8", "04cf409313cd"),
    "esrgan_small": ("e78494d9ec97", "04cf409313cd"),
    "esrgan_small_rmsprop": ("8fe206c8dc95", "04cf409313cd"),
    "srgan_goat": ("2f06f17c7e13", "04cf409313cd"),
    "esrgan_goat": ("2501ac245b9d", "04cf409313cd"),
    "esrgan_goat_rmsprop": ("c77a432c95f2", "04cf409313cd"),
}


def test_fingerprints_of_recipes_stay():
    recipes = {**RECIPES, **GAN_RECIPES}
    assert set(recipes) == set(FINGERPRINTS)
    found = {name: recipes[name]() for name in FINGERPRINTS}
    assert {name: (fingerprint(c), c.preprocess.cache_key) for name, c in found.items()} == FINGERPRINTS
    assert {name: fingerprint(override(c)) for name, c in found.items()} == {
        name: whole for name, (whole, _) in FINGERPRINTS.items()
    }


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


def test_channels():
    assert [PreprocessConfig(neighbours=n).num_channels for n in (0, 1, 2)] == [4, 12, 20]
    assert len(MODALITIES) == 4


def test_the_target_follows_from_the_loss_and_is_not_dumped():
    """Packages and identities from before the setting have no target."""
    assert LossConfig(name="region_dice_bce").target == "regions"
    assert LossConfig(name="dice_ce").target == "classes"
    stated = LossConfig(name="region_dice", target="regions")
    assert stated == LossConfig(name="region_dice") == from_dict(LossConfig, to_dict(stated))
    assert "target" not in to_dict(stated)
    changed = with_settings(CONFIG, {"loss.name": "region_dice"}).loss
    assert changed.target == LossConfig(name="dice").replace(name="region_dice").target == "regions"
    with pytest.raises(
        UsageError, match=r"^loss.target is 'classes'; expected regions with the loss 'region_dice'$"
    ):
        with_settings(CONFIG, {"loss.name": "region_dice", "loss.target": "classes"})
    with pytest.raises(
        UsageError, match=r"^loss.name is 'tverski'; expected one of boundary, .*mean tversky\?$"
    ):
        with_settings(CONFIG, {"loss.name": "tverski"})


def test_a_loss_of_either_target_is_told_which(monkeypatch: pytest.MonkeyPatch):
    both = LossEntry(SEGMENTATION_LOSSES["dice"].build, ("classes", "regions"))
    monkeypatch.setitem(SEGMENTATION_LOSSES, "either", both)
    config = with_settings(CONFIG, {"loss.name": "either", "postprocess.fit_thresholds": False})
    assert (config.loss.target, "target" in to_dict(config.loss)) == ("classes", False)
    regions = with_settings(config, {"loss.target": "regions", "postprocess.fit_thresholds": True})
    assert to_dict(regions.loss)["target"] == "regions"
    assert from_dict(RunConfig, to_dict(regions)) == regions


def test_a_task_names_itself_outside_of_its_settings():
    assert (RunConfig.task, GanConfig.task) == ("segmentation", "superres")
    assert "task" not in to_dict(CONFIG)


@pytest.mark.parametrize("config", [CONFIG, GanConfig(recipe="test")], ids=["segmentation", "superres"])
def test_every_setting_is_described(config: TaskConfig):
    settings = {setting.path: setting for setting in list_settings(config)}
    assert settings["train.seed"].value == config.train.seed
    assert settings["train.minutes"].allowed == "None or a number above 0"
    for setting in settings.values():
        assert setting.description.endswith("."), setting.path
        assert setting.allowed not in ("", "a JSON value"), setting.path
        # A dump may leave out what is implied; what is there is what is listed.
        value = reduce(lambda node, name: node.get(name, {}), setting.path.split("."), to_dict(config))
        assert value == {} or value == json.loads(json.dumps(setting.value)), setting.path
    schema = json_schema(type(config))
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$defs"]["OptimConfig"]["properties"]["lr"] == {
        "default": 0.001,
        "description": "Largest learning rate.",
        "exclusiveMinimum": 0,
        "maximum": 10,
        "title": "Lr",
        "type": "number",
    }
