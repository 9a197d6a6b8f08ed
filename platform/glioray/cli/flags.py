"""Flags made from a request type: parsed by cyclopts, validated by the type itself.

A field becomes a flag of its name; its description is the help text. Settings are written KEY=VALUE and may be
repeated, as may lists; of any other flag that is repeated the last one counts.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter, UnknownOptionError, UnusedCliTokensError
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from glioray.api.requests import SEPARATED_BY_COMMAS, Request, Settings
from glioray.engine.entrants import split_names
from glioray.errors import UsageError
from glioray.serialization import explain, parse_value


def parse_flags(
    request_type: type[Request],
    argv: Sequence[str],
    *,
    name: str,
    help_text: str,
    hidden: Collection[str],
    switches: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, bool]] | None:
    """Parse a job's flags.

    Args:
        request_type: has a field for each flag.
        argv: the command line after the job's name.
        name: of the job.
        help_text: printed above the flags by `--help`.
        hidden: fields that are not flags.
        switches: flags of the job itself, without a value, and their help texts.

    Returns: the fields that were given, and the switches; None after `--help`.

    Raises:
        UsageError: a flag or a value that is not allowed.
    """
    fields = {field: info for field, info in request_type.model_fields.items() if field not in hidden}
    parameters = [_parameter(field, info) for field, info in fields.items()]
    parameters += [
        inspect.Parameter(
            switch.replace("-", "_"),
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[bool, Parameter(help=text)],
        )
        for switch, text in switches.items()
    ]

    def collect(**values: Any) -> dict[str, Any]:
        return values

    collect.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app = App(
        name=name,
        help=help_text,
        help_format="plaintext",
        usage=f"Usage: {name} [FLAGS]",
        version_flags=[],
        default_parameter=Parameter(negative=(), allow_repeating=True, show_default=False),
        group_parameters="Flags",
        group_commands=Group("", show=False),
        print_error=False,
        exit_on_error=False,
        result_action="return_value",
    )
    app.default(collect)
    try:
        values = app(list(argv))
    except CycloptsError as error:
        raise UsageError(_sentence(error)) from None
    if values is None:
        return None
    given = {field: value for field, value in values.items() if value is not None}
    chosen = {switch: given.pop(switch.replace("-", "_"), False) for switch in switches}
    return {field: _value(fields[field], field, value) for field, value in given.items()}, chosen


def build_request(request_type: type[Request], fields: Mapping[str, Any]) -> Any:
    """The request of parsed flags.

    Raises:
        UsageError: names the flag, what was found and what is allowed.
    """
    try:
        return request_type.model_validate(dict(fields))
    except ValidationError as error:
        text = explain(error, request_type)
        name = str(error.errors()[0]["loc"][0])
        text = text.removeprefix(name).replace("expected None or ", "expected ", 1)
        raise UsageError(f"{_flag(name)}{text}") from None


def parse_settings(items: Sequence[str], flag: str) -> dict[str, Any]:
    """Settings by dotted name from texts such as "optim.lr=0.001"; values as `parse_value` reads them.

    Raises:
        UsageError: a text without '='.
    """
    settings: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise UsageError(f"{flag} {item} has no '='; write it as optim.lr=0.001")
        settings[key] = parse_value(text)
    return settings


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _parameter(field: str, info: FieldInfo) -> inspect.Parameter:
    extra = typing.cast("dict[str, Any]", info.json_schema_extra or {})
    text = info.description or ""
    if info.default and info.default is not True and not isinstance(info.default, dict):
        shown = " ".join(map(str, info.default)) if isinstance(info.default, tuple) else info.default
        text += f" (default: {shown})"
    options: dict[str, Any] = {"name": _flag(field), "help": text}
    if extra.get("metavar"):
        options["metavar"] = extra["metavar"]
    kind = str if SEPARATED_BY_COMMAS in info.metadata else _command_line_type(info.annotation)
    if kind is int:
        options["converter"] = _parse_int
    # Flags that are not given are left to the request type.
    return inspect.Parameter(
        field,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, Parameter(**options)],
    )


def _command_line_type(annotation: Any) -> Any:
    """The type that a flag's text is parsed as; None and paths are not written on a command line."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _command_line_type(args[0])
    if annotation == Settings or (origin is tuple and args[-1] is Ellipsis):
        return list[str]
    if origin in (typing.Union, types.UnionType):
        kept = [_command_line_type(arg) for arg in args if arg is not type(None)]
        return next((kind for kind in (list[str], str) if kind in kept), kept[0])
    if origin is Literal or origin is tuple or annotation in (bool, int, float, str):
        return annotation
    raise TypeError(f"no flag can be made from {annotation}")


def _value(info: FieldInfo, field: str, value: Any) -> Any:
    if SEPARATED_BY_COMMAS in info.metadata:
        return tuple(split_names(value))
    if info.annotation == Settings:
        return parse_settings(value, _flag(field))
    if info.annotation == tuple[Settings, ...]:
        return tuple(parse_settings(text.split(","), _flag(field)) for text in value)
    return value


def _parse_int(kind: type, tokens: Sequence[Any]) -> int:
    # Cyclopts itself rounds "1.5".
    text = tokens[0].value
    if not re.fullmatch(r"[+-]?\d+", text):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _sentence(error: CycloptsError) -> str:
    if isinstance(error, UnusedCliTokensError):
        return f"unrecognized arguments: {' '.join(error.unused_tokens or ())}"
    if isinstance(error, UnknownOptionError):
        _, _, advice = str(error).partition(". ")
        return f"unrecognized arguments: {error.token.keyword}{'; ' if advice else ''}{advice[:1].lower()}{advice[1:]}"
    text = str(error).rstrip(".")
    return f"{text[:1].lower()}{text[1:]}; see --help"
