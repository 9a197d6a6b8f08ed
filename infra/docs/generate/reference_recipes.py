"""The reference of the recipes: what each is for, and what it sets otherwise than the defaults."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from glioray.engine.task import Task
from glioray.serialization import to_dict
from glioray.tasks import TASKS, load_task

_INTRODUCTION = """# Recipes

Generated from the recipes. A recipe is a named config: `--recipe NAME` picks one, `--set KEY=VALUE` and the short
flags `--net`, `--loss` and `--optimizer` replace parts of it. The tables list what a recipe sets otherwise than the
[defaults](settings.md); `--dry-run` prints the whole config.
"""


def render_recipes() -> str:
    """The page of all recipes, by task."""
    return "\n".join([_INTRODUCTION, *(line for name in TASKS for line in _render_task(load_task(name)))])


def _render_task(task: Task) -> Iterator[str]:
    yield f"## {task.name}\n\n{task.purpose}.\n"
    defaults = to_dict(task.config_type(recipe=""))
    for name, build in task.recipes.items():
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
