"""Dataclasses to plain JSON values and back, checked on the way; standard library only."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from typing import Any, TypeVar

from glioray.errors import UsageError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values; tuples become lists."""
    result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return result


def from_dict(cls: type[T], values: dict[str, Any], *, where: str = "") -> T:
    """The dataclass of `to_dict`'s values.

    Raises:
        UsageError: a name that the class does not have, or a value of another type.
    """
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(names))
    if unknown:
        at = f" of {where}" if where else ""
        raise UsageError(f"'{unknown[0]}' is not a setting{at}; the settings are {', '.join(names)}")
    return cls(
        **{name: _parse(hints[name], value, f"{where}.{name}".lstrip(".")) for name, value in values.items()}
    )


def _parse(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise UsageError(f"{where} is {value!r}; expected an object of settings")
        return from_dict(hint, value, where=where)
    if origin in (types.UnionType, typing.Union):
        options = [arg for arg in args if arg is not type(None)]
        return None if value is None and len(options) < len(args) else _parse(options[0], value, where)
    if origin is tuple:
        endless, listed = args[-1] is Ellipsis, isinstance(value, (list, tuple))
        if not listed or (not endless and len(value) != len(args)):
            wanted = (
                f"a list of {getattr(args[0], '__name__', args[0])}" if endless else f"{len(args)} values"
            )
            raise UsageError(f"{where} is {value!r}; expected {wanted}")
        item_hints = [args[0]] * len(value) if endless else list(args)
        return tuple(
            _parse(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(item_hints, value, strict=True))
        )
    plain = origin or hint
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if plain is not Any and (not isinstance(value, plain) or (plain is int and isinstance(value, bool))):
        raise UsageError(f"{where} is {value!r}; expected {getattr(plain, '__name__', plain)}")
    return value


def fingerprint(config: Any) -> str:
    """Twelve hex digits that name a dataclass's values, or any plain JSON value's."""
    plain = to_dict(config) if dataclasses.is_dataclass(config) else config
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
