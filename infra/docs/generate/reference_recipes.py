"""The reference of the recipes: what each is for, and what it sets otherwise than the defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from glioray.serialization import to_dict
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.recipes import RECIPES
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.recipes import GAN_RECIPES

_INTRODUCTION = """# Recipes

Generated from the recipes. A recipe is a named config: `--recipe NAME` picks one, `--set KEY=VALUE` and the short
flags `--net`, `--loss` and `--optimizer` replace parts of it. The tables list what a recipe sets otherwise than the
[defaults](settings.md); `--dry-run` prints the whole config.
"""


def render_recipes() -> str:
    """The page of all recipes, by task."""
    parts = [_INTRODUCTION, "## Segmentation\n"]
    parts += _render_task(RECIPES, to_dict(RunConfig(recipe="")))
    parts += ["## Super-resolution\n"]
    parts += _render_task(GAN_RECIPES, to_dict(GanConfig(recipe="")))
    return "\n".join(parts)


def _render_task(recipes: Mapping[str, Callable[[], Any]], defaults: dict[str, Any]) -> Iterator[str]:
    for name, build in recipes.items():
        yield f"### `{name}`\n\n{inspect.getdoc(build)}\n"
        yield "| setting | value | default |\n|---|---|---|"
        for path, value, default in _differences(to_dict(build()), defaults):
            if path != "recipe":
                yield f"| `{path}` | `{value}` | {'' if default is None else f'`{default}`'} |"
        yield ""


def _differences(
    values: dict[str, Any], defaults: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, object, object]]:
    """The settings that are not at their default, with their full path, and the default."""
    for name, value in values.items():
        default, path = defaults.get(name), f"{prefix}{name}"
        if isinstance(value, dict) and isinstance(default, dict):
            yield from _differences(value, default, f"{path}.")
        elif value != default:
            yield path, value, default
