"""Entrants of a comparison as text, and the equal budget of their runs."""

from __future__ import annotations

import re
from typing import Any

from glioray.config import TaskConfig
from glioray.errors import UsageError
from glioray.serialization import parse_value

_UNLIMITED = 1_000_000
_COMMA = re.compile(r",(?![^\[]*\])")
"""A comma that is not within brackets."""


def split_names(text: str | None) -> list[str]:
    """Split a comma-separated list whose items may have options: `a,b:x=1,y=2,c` is a, b:x=1,y=2 and c."""
    names: list[str] = []
    for part in _COMMA.split(text or ""):
        if "=" in part and ":" not in part and names:
            names[-1] += f",{part}"
        elif part.strip():
            names.append(part.strip())
    return names


def parse_entrant(text: str) -> tuple[str, dict[str, Any]]:
    """Parse NAME or NAME:KEY=VALUE,KEY=VALUE into the name and its settings; values as `parse_value` reads them.

    Raises:
        UsageError: a setting without '=' or without a name.
    """
    name, _, rest = text.partition(":")
    settings: dict[str, Any] = {}
    for item in _COMMA.split(rest) if rest else []:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"'{text}' is not an entrant; write NAME or NAME:OPTION=VALUE,OPTION=VALUE")
        settings[key.strip()] = parse_value(value)
    return name.strip(), settings


def budget_settings(
    config: TaskConfig, *, minutes: float | None = None, num_slices: int | None = None
) -> dict[str, Any]:
    """The settings that end a run of `config` after that many minutes or slices; none where neither is given.

    Raises:
        UsageError: both are given.
    """
    if minutes is not None and num_slices is not None:
        raise UsageError("--minutes-each and --slices-each are both given; an equal budget is one of them")
    if minutes is not None:
        return {"train.minutes": minutes, "train.max_epochs": _UNLIMITED}
    if num_slices is None:
        return {}
    # One validation an epoch.
    num_steps = -(-num_slices // config.train.batch_size)
    epochs = min(config.train.num_validations, num_steps)
    return {
        "train.minutes": None,
        "train.max_epochs": epochs,
        "sample.steps_per_epoch": -(-num_steps // epochs),
    }


def budget_text(config: TaskConfig, *, minutes: float | None = None, num_slices: int | None = None) -> str:
    """The budget of `budget_settings` in words; the recipe's own where neither is given."""
    if minutes is not None:
        return f"{minutes:,.10g} minutes"
    if num_slices is not None:
        return f"{num_slices:,} slices"
    own = config.train
    limit = f" or {own.minutes:g} minutes" if own.minutes else ""
    return f"the recipe's {own.max_epochs:,} epochs{limit}"
