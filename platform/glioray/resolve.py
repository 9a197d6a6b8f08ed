"""The config of a run that a job's flags ask for, checked before Ray starts."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

from glioray.cli.old import absolute_uri
from glioray.config import PreprocessConfig, with_settings
from glioray.errors import UsageError
from glioray.tasks import load_task
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.entrants import entrant_config, product_entrants
from glioray.tasks.segmentation.recipes import build_recipe
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.entrants import gan_entrant_config
from glioray.tasks.superres.recipes import build_gan_recipe


def resolve_config(args: argparse.Namespace) -> RunConfig:
    """The recipe with the flags' overrides.

    Raises:
        UsageError: a recipe, a setting or a value that cannot be.
    """
    # GLIORAY_RECIPE goes with GLIORAY_DATA: whoever brings data of their own gets the usual default.
    default = "unet_small" if args.data else os.environ.get("GLIORAY_RECIPE") or "unet_small"
    config = build_recipe(args.recipe or default)
    parts = [[text] if (text := getattr(args, name, None)) else [] for name in ("net", "loss", "optimizer")]
    config = entrant_config(config, product_entrants(*parts)[0])
    config = with_settings(config, _length(args) | _settings(args))
    load_task("segmentation").check(config)
    return config


def resolve_gan_config(args: argparse.Namespace) -> GanConfig:
    """The super-resolution recipe with the flags' overrides.

    Raises:
        UsageError: a recipe, a setting or a value that cannot be, or an extractor that cannot be had.
        StorageError: an extractor's weights that cannot be read.
    """
    default = "mri_small" if args.data else os.environ.get("GLIORAY_GAN_RECIPE") or "mri_small"
    flags = {
        "pretrain.source": _model_uri(getattr(args, "pretrained", None), "--pretrained"),
        "use.segmenter": _model_uri(args.segmenter, "--segmenter"),
        "use.weight": getattr(args, "use_weight", None),
    }
    if flags["pretrain.source"] is not None:
        # Begun with a trained generator, a run is adversarial from its first step unless --set says otherwise.
        flags["pretrain.share"] = 0.0
    given = {path: value for path, value in flags.items() if value is not None}
    config = with_settings(build_gan_recipe(args.recipe or default), _length(args) | given | _settings(args))
    load_task("superres").check(config)
    return config


def resolve_gan_entrants(
    args: argparse.Namespace, ground: GanConfig, entrants: Sequence[str]
) -> dict[str, GanConfig]:
    """Label -> config of super-resolution recipes on one ground; `--set` holds for each of them.

    Raises:
        UsageError: as `resolve_gan_config`; no entrant, or one twice.
    """
    if not entrants or len(set(entrants)) < len(entrants):
        raise UsageError(
            f"--entrants names {', '.join(entrants) or 'none'}; name super-resolution recipes, each once"
        )
    configs = {text: with_settings(gan_entrant_config(ground, text), _settings(args)) for text in entrants}
    for config in configs.values():
        load_task("superres").check(config)
    return configs


def _model_uri(uri: str | None, flag: str) -> str | None:
    return uri if uri is None or uri.startswith(("models:", "runs:")) else absolute_uri(uri, flag)


def _length(args: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "train.max_epochs": args.max_epochs,
        "train.seed": args.seed,
        "train.num_workers": getattr(args, "workers", None),
        "train.minutes": args.minutes,
    }
    settings = {path: value for path, value in settings.items() if value is not None}
    if args.max_epochs is not None:
        # Asked for epochs alone, a run is not cut short by the recipe's minutes.
        settings.setdefault("train.minutes", None)
    return settings


def shown_preparation(args: argparse.Namespace) -> PreprocessConfig | None:
    """The preparation that `--recipe` and `--set` name, or None where neither is given.

    Raises:
        UsageError: as `resolve_config`, and a report that is not asked for.
    """
    if not args.recipe and not args.set:
        return None
    if not args.report:
        raise UsageError("--recipe and --set say whose preparation --report shows; give --report too")
    return with_settings(build_recipe(args.recipe or "unet_small"), _settings(args)).preprocess


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return parse_settings(args.set, "--set")


def parse_settings(items: Sequence[str], flag: str) -> dict[str, Any]:
    """Settings by their dotted names, of texts such as "optim.lr=0.001"; values are JSON or plain words.

    Raises:
        UsageError: a text without '='.
    """
    settings: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise UsageError(f"{flag} {item} has no '='; write it as optim.lr=0.001")
        try:
            settings[key] = json.loads(text)
        except ValueError:
            settings[key] = text
    return settings
