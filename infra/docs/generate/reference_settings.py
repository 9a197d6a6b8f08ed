"""The reference of the settings: defaults, ranges and meaning, from the config types."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.superres.config import GanConfig

TASKS = {"segmentation": RunConfig, "super-resolution": GanConfig}
_INTRODUCTION = """# Settings

Generated from the config types. Every setting has a dotted name, which `--set NAME=VALUE` replaces and `settings={...}`
of the Python API takes. The defaults are those of the types; a [recipe](recipes.md) replaces some. Images are (H, W) in
pixels; voxel spacings are in mm, volumes in ml.
"""


@dataclass(frozen=True)
class Setting:
    name: str
    type: str
    default: str
    meaning: str


def render_settings() -> str:
    """The page of all settings, a section for each type of them."""
    places: dict[type, dict[str, list[str]]] = {}
    parts = [_INTRODUCTION]
    for task, root in TASKS.items():
        for name, kind in _sections(root):
            places.setdefault(kind, {}).setdefault(task, []).append(name)
    for kind, by_task in places.items():
        names = list(dict.fromkeys(name for names in by_task.values() for name in names))
        where = "; ".join(f"{task}: {', '.join(f'`{n}`' for n in names)}" for task, names in by_task.items())
        summary = (inspect.getdoc(kind) or "").partition("\n\n")[0]
        parts += [f"## {', '.join(f'`{name}`' for name in names)}", "", f"{summary} ({where})", ""]
        parts += ["| setting | type | default | meaning |", "|---|---|---|---|"]
        parts += [
            f"| `{names[0]}.{s.name}` | {s.type} | `{s.default}` | {s.meaning} |" for s in _settings(kind)
        ]
        parts.append("")
    return "\n".join(parts)


def _sections(root: type) -> Iterator[tuple[str, type]]:
    for name, kind in typing.get_type_hints(root).items():
        if dataclasses.is_dataclass(kind):
            yield name, typing.cast(type, kind)


def _settings(kind: type) -> Iterator[Setting]:
    meanings = _attributes(inspect.getdoc(kind) or "")
    hints: dict[str, Any] = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        name = getattr(hints[field.name], "__name__", str(hints[field.name]))
        shown = (str(hints[field.name]) if "[" in str(hints[field.name]) else name).replace("|", "or")
        yield Setting(field.name, shown, repr(default), meanings.get(field.name, "").replace("|", "\\|"))


def _attributes(docstring: str) -> dict[str, str]:
    """The meaning of each attribute, from the section "Attributes" of a docstring."""
    section = docstring.partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
