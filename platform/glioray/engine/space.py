"""Search spaces: a recipe's own, what a user adds to it, and points in it."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from glioray.errors import UsageError
from glioray.serialization import parse_value, to_dict

Space = dict[str, BaseDistribution]
"""Dotted settings of a config, or names that only `Search.apply` knows, and the values to search."""

NO_OWN_SPACE = "none"
"""In place of an entry: search the given entries alone, without the recipe's own space."""

_SYNTAX = "log:LOW:HIGH, LOW:HIGH, int:LOW:HIGH or choices separated by commas"
_RANGE = re.compile(r"(?:(log|int):)?([^:,]+):([^:,]+)")


@dataclass(frozen=True)
class CustomSpace:
    """Entries that a user adds to a recipe's own search space.

    Attributes:
        entries: by setting; they replace the recipe's own entries of that name.
        keep_own: whether the other entries of the recipe's own space are searched too.
    """

    entries: Mapping[str, BaseDistribution] = field(default_factory=dict)
    keep_own: bool = True


def parse_space(items: Sequence[str] | Mapping[str, Any], *, keep_own: bool = True) -> CustomSpace:
    """Parse a user's search space; it is not compared with any config: see `engine.search.check_sweep`.

    Args:
        items: texts such as "optim.lr=log:1e-4:1e-2" (logarithmic), "augment.strength=0:1.5" (linear),
            "train.batch_size=int:4:16" or "net.options.width=16,32,48" (choices), and "none" to drop the recipe's
            own space; or a mapping of settings to such texts, to sequences of choices, or to Optuna's
            distributions.
        keep_own: whether the rest of the recipe's own space is searched too.

    Raises:
        UsageError: a text that is not of this form, an empty range, fewer than two choices, a setting given twice.
    """
    if isinstance(items, Mapping):
        pairs = list(items.items())
    else:
        keep_own = keep_own and NO_OWN_SPACE not in items
        pairs = [_split(item) for item in items if item != NO_OWN_SPACE]
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"the search space has '{twice[0]}' twice; give each setting once")
    if not pairs and not keep_own:
        raise UsageError("the search space is empty; give at least one setting to search beside 'none'")
    return CustomSpace({name: _parse_values(name, values) for name, values in pairs}, keep_own)


def merge_spaces(own: Mapping[str, BaseDistribution], custom: CustomSpace) -> Space:
    """The recipe's own space with a user's entries in place of, and after, its own.

    Own entries below a setting that the user searches as a whole (`net.options.width` below `net.options`) are left
    out.
    """
    kept = {
        name: values
        for name, values in (own if custom.keep_own else {}).items()
        if not any(name.startswith(f"{given}.") for given in custom.entries)
    }
    return {**kept, **custom.entries}


def nearest_value(values: BaseDistribution, wanted: Any) -> Any:
    """The value nearest to the wanted one: itself if it can be drawn.

    Where the wanted value is not a number: the middle of a range, or the first of the choices.
    """
    if isinstance(values, CategoricalDistribution):
        wanted = freeze_value(wanted)
        return wanted if wanted in values.choices else values.choices[0]
    assert isinstance(values, FloatDistribution | IntDistribution)
    if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not math.isfinite(wanted):
        wanted = _inner_value(values)
    bounded = min(max(wanted, values.low), values.high)
    return round(bounded) if isinstance(values, IntDistribution) else bounded


def probe_values(values: BaseDistribution) -> list[Any]:
    """Values that a config must accept before the search begins: each choice, or both ends and one between."""
    if isinstance(values, CategoricalDistribution):
        return list(values.choices)
    assert isinstance(values, FloatDistribution | IntDistribution)
    return [values.low, values.high, _inner_value(values)]


def check_value(name: str, value: Any, values: BaseDistribution) -> None:
    """Refuse a point's value that the space cannot draw.

    Raises:
        UsageError: names the setting, its value and the range.
    """
    if isinstance(values, CategoricalDistribution):
        is_allowed = freeze_value(value) in values.choices
        expected = f"one of {', '.join(map(str, values.choices))}"
    else:
        assert isinstance(values, FloatDistribution | IntDistribution)
        kinds = int if isinstance(values, IntDistribution) else (int, float)
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        is_allowed = is_number and values.low <= value <= values.high
        expected = f"{values.low:g} to {values.high:g}"
    if not is_allowed:
        raise UsageError(f"{name} of a point is {value!r}; expected {expected}")


def freeze_value(value: Any) -> Any:
    """The value with tuples in place of lists, as Optuna hashes choices; configs take either."""
    return tuple(freeze_value(item) for item in value) if isinstance(value, list | tuple) else value


def find_setting(config: Any, name: str) -> Any:
    """The value of a dotted setting; None where the config has none of that name."""
    node: Any = to_dict(config)
    for part in name.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def format_space(space: Mapping[str, BaseDistribution]) -> dict[str, str]:
    """The space as texts of `parse_space`'s syntax, by setting."""
    return {name: _format_values(values) for name, values in space.items()}


def _split(item: str) -> tuple[str, str]:
    name, equals, text = item.partition("=")
    if not equals or not name or not text:
        raise UsageError(f"--search is '{item}'; expected SETTING=VALUES, such as optim.lr=log:1e-4:1e-2")
    return name, text


def _parse_values(name: str, values: Any) -> BaseDistribution:
    if isinstance(values, BaseDistribution):
        return values
    if not isinstance(values, str):
        if not isinstance(values, Sequence):
            raise UsageError(f"the search of {name} is {values!r}; expected {_SYNTAX}")
        return _choices(name, list(values))
    found = _RANGE.fullmatch(values)
    kind, low, high = found.groups() if found else (None, "", "")
    if found and (kind or (_is_number(low) and _is_number(high))):
        return _range(name, values, kind, low, high)
    if "," not in values:
        raise UsageError(
            f"the search of {name} is '{values}'; expected {_SYNTAX}, or --set for a single value"
        )
    return _choices(name, _parse_choices(values))


def _parse_choices(text: str) -> list[Any]:
    choices = parse_value(f"[{text}]")
    return choices if isinstance(choices, list) else [parse_value(word) for word in text.split(",")]


def _range(name: str, text: str, kind: str | None, low: str, high: str) -> BaseDistribution:
    number = int if kind == "int" else float
    try:
        bounds = number(low), number(high)
    except ValueError:
        raise UsageError(f"the search of {name} is '{text}'; expected {_SYNTAX}") from None
    if not (math.isfinite(bounds[0]) and math.isfinite(bounds[1]) and bounds[0] < bounds[1]):
        raise UsageError(f"the search of {name} is '{text}'; expected LOW below HIGH, both finite")
    if kind == "log" and bounds[0] <= 0:
        raise UsageError(f"the search of {name} is '{text}'; expected LOW above 0 for a logarithmic range")
    if kind == "int":
        return IntDistribution(int(bounds[0]), int(bounds[1]))
    return FloatDistribution(*bounds, log=kind == "log")


def _choices(name: str, choices: list[Any]) -> CategoricalDistribution:
    texts = [json.dumps(choice) for choice in choices]
    if len(set(texts)) < len(texts) or len(texts) < 2:
        raise UsageError(
            f"the choices of {name} are {', '.join(texts)}; expected at least two different ones"
        )
    if any(isinstance(choice, dict) for choice in choices):
        raise UsageError(f"the choices of {name} are {', '.join(texts)}; expected numbers, words or lists")
    with warnings.catch_warnings():
        # Tuples, such as image sizes, only matter to Optuna's databases, which we do not use.
        warnings.filterwarnings("ignore", "Choices for a categorical distribution", UserWarning)
        return CategoricalDistribution(freeze_value(choices))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _inner_value(values: FloatDistribution | IntDistribution) -> float | int:
    # Not a round number: a setting that takes whole numbers alone must refuse it.
    share = (math.sqrt(5) - 1) / 2
    if isinstance(values, IntDistribution):
        return (values.low + values.high) // 2
    if values.log:
        return float(values.low ** (1 - share) * values.high**share)
    return values.low + share * (values.high - values.low)


def _format_values(values: BaseDistribution) -> str:
    if isinstance(values, CategoricalDistribution):
        return ",".join(value if isinstance(value, str) else json.dumps(value) for value in values.choices)
    assert isinstance(values, FloatDistribution | IntDistribution)
    kind = "int:" if isinstance(values, IntDistribution) else "log:" if values.log else ""
    return f"{kind}{values.low:g}:{values.high:g}"
