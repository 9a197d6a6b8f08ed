"""The reference of the settings: defaults, allowed values and meaning, from the config types."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from glioray.config import Setting, list_settings
from glioray.serialization import to_dict
from glioray.tasks import TASKS, load_task

_INTRODUCTION = """# Settings

Generated from the config types. `--set NAME=VALUE` of a job replaces a setting, and so does `set={"NAME": VALUE}` of the
Python API. Values of `--set` are JSON or plain words, as the defaults below. A [recipe](recipes.md) replaces some
defaults; `--dry-run` prints the whole config.

A value that is not allowed ends a job with exit code 2 and one sentence that names the setting, what was found and what
is allowed.
"""


@dataclass
class Group:
    """Settings of one type with the same defaults, in one or more places.

    Attributes:
        summary: what they are about.
        tasks: that have them.
        names: of the group in their configs; "" for settings outside of all groups.
        settings: those of the first place.
    """

    summary: str
    settings: list[Setting]
    tasks: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def render_settings() -> str:
    """The page of all settings, by group; a group that tasks share is listed once."""
    return "\n".join([_INTRODUCTION, *map(_render_group, list_groups())])


def list_groups() -> list[Group]:
    """The groups of settings of all tasks."""
    groups: dict[tuple[str, ...], Group] = {}
    for task in TASKS:
        config = load_task(task).config_type(recipe="")
        by_name: dict[str, list[Setting]] = {}
        for setting in list_settings(config):
            by_name.setdefault(setting.path.rpartition(".")[0], []).append(setting)
        for name, settings in by_name.items():
            summary = (
                type(config).model_fields[name].description
                if name
                else f"Settings of the run itself, {task}."
            )
            key = tuple(f"{one.path.rpartition('.')[2]} {one.value} {one.allowed}" for one in settings)
            group = groups.setdefault(key, Group(summary or "", settings))
            group.tasks += [task] if task not in group.tasks else []
            group.names += [name] if name not in group.names else []
    return list(groups.values())


def _render_group(group: Group) -> str:
    first, *others = (f"`{name}`" if name else "run" for name in group.names)
    tasks = "all tasks" if len(group.tasks) == len(TASKS) > 1 else ", ".join(group.tasks)
    same = (
        f" {' and '.join(others)} {'has' if len(others) == 1 else 'have'} the same settings."
        if others
        else ""
    )
    rows = ["| setting | default | meaning |", "|---|---|---|", *map(_render_row, group.settings)]
    title = ", ".join([first, *others])
    return "\n".join([f"## {title} ({tasks})\n", f"{group.summary}{same}\n", *rows, ""])


def _render_row(setting: Setting) -> str:
    default = json.dumps(to_dict(setting.value), ensure_ascii=False)
    allowed = f"{setting.allowed[0].upper()}{setting.allowed[1:]}."
    cells = (f"`{setting.path}`", f"`{default}`", f"{setting.description} *{allowed}*")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
