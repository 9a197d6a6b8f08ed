"""The reference of the library: its functions from their request types, and mkdocstrings for the rest."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Callable
from typing import Any, get_type_hints

import glioray
from glioray.api import requests
from glioray.serialization import describe, json_schema

_INTRODUCTION = """# Python API

Generated from the library. `import glioray` offers the jobs as functions, and cases and models in memory. Arguments are
keywords, named like the flags of the [jobs](jobs.md). A function runs on local Ray, or on the cluster of `RAY_ADDRESS`.
[First model from Python](../start/first-model.md) shows them in use.
"""
_VERBS = (
    "prepare",
    "train",
    "tune",
    "compare",
    "ensemble",
    "evaluate",
    "predict",
    "promote",
    "share",
    "calibrate",
)
_OBJECTS = {
    "Cases": ("glioray.api.cases.load_case", "glioray.cases.load.Case"),
    "Models": ("glioray.api.models.load_model", "glioray.api.models.LoadedModel"),
    "Client": (
        "glioray.client.Client",
        "glioray.client.AsyncClient",
        "glioray.client.Segmentation",
        "glioray.client.SuperResolved",
        "glioray.client.FolderResult",
        "glioray.client.Job",
        "glioray.client.SuperResOptions",
    ),
    "Errors": ("glioray.errors",),
}


def render_api() -> str:
    """The page of the library."""
    cases, models, client, errors = (f"## {title}\n\n{_objects(names)}" for title, names in _OBJECTS.items())
    verbs = ["## Functions\n", *map(_render_verb, _VERBS)]
    return "\n".join([_INTRODUCTION, cases, models, *verbs, client, errors])


def documented() -> set[str]:
    """The names that the page explains, as `import glioray` offers them."""
    objects = {name.rpartition(".")[2] for names in _OBJECTS.values() for name in names}
    return {*_VERBS, *objects & set(glioray.__all__)}


def _objects(names: tuple[str, ...]) -> str:
    return "\n".join(map(_directive, names))


def _directive(name: str, level: int = 3) -> str:
    """Let mkdocstrings explain an object, under the name by which the library offers it."""
    short = name.rpartition(".")[2]
    shown = f"glioray.{short}" if short in glioray.__all__ else short
    if inspect.ismodule(_find(name)):
        return f"::: {name}\n    options: {{show_root_heading: false, show_root_toc_entry: false, heading_level: {level}}}\n"
    return f"::: {name}\n    options: {{heading: {shown}, toc_label: {shown}, heading_level: {level}}}\n"


def _find(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return getattr(importlib.import_module(module), attribute)


def _render_verb(name: str) -> str:
    verb: Callable[..., Any] = getattr(glioray, name).carry_out
    request_type = get_type_hints(verb)["request"]
    result_type = get_type_hints(verb)["return"]
    parts = _sections(inspect.getdoc(verb) or "")
    text = [f"### `glioray.{name}`\n", parts[""], ""]
    if "Example" in parts:
        text += [f"```{{.python .cluster}}\n{parts['Example']}\n```\n"]
    text += ["| argument | default | meaning |", "|---|---|---|", *_arguments(request_type), ""]
    text += [f"Returns {_code_first(parts['Returns'])}\n", "Raises:\n"]
    text += [f"- {_code_first(line)}" for line in _items(parts["Raises"])]
    return "\n".join([*text, "", _directive(f"{result_type.__module__}.{result_type.__name__}", level=4)])


def _arguments(request_type: type[requests.Request]) -> list[str]:
    """A row for each field of a request."""
    schema = json_schema(request_type)
    rows = []
    for name, field in request_type.model_fields.items():
        allowed = describe(schema["properties"][name], schema).removeprefix("None or ")
        only = (field.json_schema_extra or {}).get("only")  # type: ignore[union-attr]
        default = "" if field.default is None else f"`{json.dumps(field.default)}`"
        meaning = f"{field.description[:1].upper()}{field.description[1:]}." if field.description else ""
        limit = f" For {only} only." if only else ""
        cells = (f"`{name}`", default, f"{meaning}{limit} *{allowed[:1].upper()}{allowed[1:]}.*")
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return rows


def _sections(docstring: str) -> dict[str, str]:
    """The text before the first section under "", and each section's text."""
    parts = re.split(r"^(Example|Returns|Raises):\n", docstring, flags=re.MULTILINE)
    named = {name: textwrap.dedent(text).strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}
    return {"": parts[0].strip(), **named}


def _items(text: str) -> list[str]:
    """Items of a section, each on one line; further lines of an item are indented."""
    return re.sub(r"\n\s+", " ", text).splitlines()


def _code_first(text: str) -> str:
    """ "UsageError: an invalid value." with its first word as code."""
    name, _, meaning = text.partition(":")
    return f"`{name}`: {' '.join(meaning.split())}"
