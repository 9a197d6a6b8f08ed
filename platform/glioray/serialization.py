"""Typed objects to plain JSON values and back, validated by pydantic; errors are one sentence.

Works for pydantic models and for dataclasses alike. Numbers and texts are never converted into each other: "1" is
not 1, and True is not 1. Only an int may stand for a float, and a list for a tuple.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from glioray.errors import UsageError

T = TypeVar("T")

RULE = "rule"
"""Type of the errors of `Config._expect`: their context has "setting", "found" and "expected"."""

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def to_dict(config: Any) -> dict[str, Any]:
    """A config or a dataclass as plain JSON values; tuples become lists."""
    values: dict[str, Any] = to_jsonable_python(config)
    return values


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """The config or dataclass of `to_dict`'s values.

    Raises:
        UsageError: a value is missing, out of range or of another type, or a setting does not exist.
    """
    kind: Any = cls
    try:
        return _adapter(kind).validate_json(json.dumps(values), strict=True, extra="forbid")
    except ValidationError as error:
        raise UsageError(explain(error, cls)) from None


def parse_value(text: str) -> Any:
    """The value of a text: JSON, or a number or word as Python writes it (.001, True); else the text itself."""
    for parse in (json.loads, ast.literal_eval):
        with suppress(ValueError, TypeError, SyntaxError):
            return json.loads(json.dumps(parse(text)))
    return text


def fingerprint(config: Any) -> str:
    """Twelve hex digits that name the values of a config, a dataclass or any plain JSON value."""
    text = json.dumps(to_jsonable_python(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def json_schema(cls: Any) -> dict[str, Any]:
    """The JSON schema of a config or dataclass type: settings, ranges, allowed words, defaults, descriptions."""
    return _adapter(cls).json_schema()


def explain(error: ValidationError, cls: Any, where: str = "") -> str:
    """The first error of a failed validation as one sentence: full path, what was found, what is allowed.

    Args:
        error: raised by pydantic for `cls`.
        cls: the type that was validated.
        where: path of the object itself, put before the path of its setting.
    """
    root = json_schema(cls)
    # A default that follows from a value at fault is not a fault of its own.
    found_errors = error.errors(include_url=False)
    first, *others = (one for one in found_errors if one["type"] != "default_factory_not_called")
    more = f" (and {len(others)} more)" if others else ""
    loc, found, context = list(first["loc"]), first["input"], first.get("ctx", {})
    if first["type"] in _UNKNOWN:
        return _unknown_setting(root, loc, where) + more
    if first["type"] == "missing":
        if isinstance(loc[-1], str):
            return f"{_path(where, loc)} is missing; expected {describe(_find(root, loc), root)}{more}"
        loc.pop()  # An item is missing; the list is what was found.
    node = _find(root, loc)
    expected = describe(node, root)
    if first["type"] == RULE:
        loc, found, expected = [*loc, context["setting"]], context["found"], context["expected"]
    elif first["type"] == "value_error":
        expected = str(context["error"])
    elif first["type"] in _BOUNDS:
        expected = re.sub(r"a (whole )?number,? ", "", expected, count=1)
    if isinstance(found, str) and (near := difflib.get_close_matches(found, map(str, _words(node)))):
        more = f"; did you mean {near[0]}?{more}"
    text = repr(found)
    return (
        f"{_path(where, loc)} is {text if len(text) <= 200 else text[:200] + '…'}; expected {expected}{more}"
    )


def describe(schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> str:
    """The values that a JSON schema allows, in words: "a number above 0 and at most 10", "one of adam, adamw, sgd".

    Args:
        schema: of one setting.
        root: the schema that `$ref`s point into.
    """
    schema = _resolve(schema, root or schema)
    if "anyOf" in schema:
        options = sorted(schema["anyOf"], key=lambda option: option.get("type") != "null")
        return " or ".join(describe(option, root) for option in options)
    if words := _words(schema):
        return f"one of {', '.join(map(str, words))}" if len(words) > 2 else " or ".join(map(str, words))
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return _describe_number(schema)
    if kind == "array":
        items = schema.get("prefixItems")
        if items is None:
            many = "one or more values" if schema.get("minItems") else "values"
            distinct = ", none twice" if schema.get("uniqueItems") else ""
            return f"a list of {many}, each {describe(schema['items'], root)}{distinct}"
        same = all(item == items[0] for item in items)
        return f"{len(items)} values" + (f", each {describe(items[0], root)}" if same else "")
    plain = {"null": "None", "boolean": "True or False", "string": "text", "object": "an object of settings"}
    return plain.get(kind or "", "a JSON value")


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _describe_number(schema: Mapping[str, Any]) -> str:
    noun = "a whole number" if schema["type"] == "integer" else "a number"
    if "multipleOf" in schema:
        noun = f"a multiple of {schema['multipleOf']:.10g}"
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and (high is not None or below is not None):
        return f"{noun} from {low:.10g} to {f'{high:.10g}' if high is not None else f'below {below:.10g}'}"
    words = (("at least", low), ("above", above), ("at most", high), ("below", below))
    bounds = " and ".join(f"{word} {bound:.10g}" for word, bound in words if bound is not None)
    return f"{noun}{',' if bounds.startswith('at') else ''} {bounds}".rstrip()


def _unknown_setting(root: Mapping[str, Any], loc: Sequence[str | int], where: str) -> str:
    paths = list(_paths(root, root, ""))
    path = _path("", loc)
    parent, _, name = path.rpartition(".")
    siblings = [other for other in paths if other.rpartition(".")[0] == parent]
    near: list[str] = []
    # In another group only the very name helps, unless no group is named.
    for pool, cutoff in ((siblings, 0.6), (paths, 1.0 if parent else 0.8)):
        names = {other.rpartition(".")[2] for other in pool}
        close = difflib.get_close_matches(name, sorted(names), cutoff=cutoff)
        near = near or [other for other in pool if other.rpartition(".")[2] in close]
    if near:
        advice = f"did you mean {' or '.join(_path(where, [other]) for other in near[:3])}?"
    else:
        advice = f"{parent or 'the settings'} {'has' if parent else 'are'} "
        advice += ", ".join(other.rpartition(".")[2] for other in siblings)
    return f"no setting '{_path(where, [path])}'; {advice}"


def _path(where: str, loc: Sequence[str | int]) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)
    return (where + "".join(steps)).removeprefix(".")


def _words(schema: Mapping[str, Any]) -> list[Any]:
    return list(schema.get("enum", [schema["const"]] if "const" in schema else []))


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in schema:
        return schema
    return {**root["$defs"][schema["$ref"].rpartition("/")[2]], **schema}


def _find(root: Mapping[str, Any], loc: Sequence[str | int]) -> Mapping[str, Any]:
    """The schema at a path; an empty one, which describes any value, where the schema does not go so deep."""
    node: Any = root
    for step in loc:
        node = _resolve(node, root)
        node = next((option for option in node.get("anyOf", ()) if option.get("type") != "null"), node)
        if isinstance(step, int):
            items = node.get("prefixItems", ())
            node = items[step] if step < len(items) else node.get("items", {})
        else:
            node = node.get("properties", {}).get(step, node.get("additionalProperties", {}))
        if not isinstance(node, dict):
            return {}
    return _resolve(node, root)


def _paths(schema: Mapping[str, Any], root: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """The dotted names of all settings, groups of settings included."""
    for name, node in _resolve(schema, root).get("properties", {}).items():
        yield f"{prefix}{name}"
        yield from _paths(node, root, f"{prefix}{name}.")
