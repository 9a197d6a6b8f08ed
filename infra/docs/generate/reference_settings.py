"""The reference of the settings: what is allowed, the default and the meaning, from the config types."""

from __future__ import annotations

from collections.abc import Iterator

from glioray.config import Setting, list_settings
from glioray.engine.task import Task
from glioray.tasks import TASKS, load_task

_INTRODUCTION = """# Settings

Generated from the config types. Every setting has a dotted name, which `--set NAME=VALUE` replaces and `settings={...}`
of the Python API takes. The defaults are those of the task's config; a [recipe](recipes.md) replaces some. In
`--set`, values are JSON: None is `null`, True is `true`, (1, 2) is `[1, 2]`.
"""


def render_settings() -> str:
    """The page of all settings, by task and group."""
    return "\n".join([_INTRODUCTION, *(line for name in TASKS for line in _render_task(load_task(name)))])


def _render_task(task: Task) -> Iterator[str]:
    yield f"## {task.name}\n\n{task.config_type.__doc__}\n"
    groups: dict[str, list[Setting]] = {}
    for setting in list_settings(task.config_type(recipe="")):
        groups.setdefault(setting.path.rpartition(".")[0], []).append(setting)
    for group, settings in groups.items():
        description = task.config_type.model_fields[group].description if group else "The run itself."
        yield f"### `{group}`\n" if group else "### Without a group\n"
        yield f"{description}\n\n| setting | allowed | default | meaning |\n|---|---|---|---|"
        for one in settings:
            cells = (f"`{one.path}`", one.allowed, f"`{one.value!r}`", one.description)
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        yield ""
