"""The table of losses names all of them, their options and their defaults."""

from __future__ import annotations

import inspect
import re
from fractions import Fraction
from pathlib import Path

import glioray.losses
from glioray.losses import SEGMENTATION_LOSSES

_NOT_OPTIONS = {"target", "reduce", "squared"}


def test_the_table_is_the_registry():
    text = (Path(glioray.losses.__file__).parent / "README.md").read_text()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    named = [name.strip("`") for row in rows for name in row[:2]]
    assert sorted(named) == sorted(SEGMENTATION_LOSSES)
    for classes, regions, _, options, _ in rows:
        name = classes.strip("`")
        assert SEGMENTATION_LOSSES[name] is SEGMENTATION_LOSSES[regions.strip("`")]
        parameters = inspect.signature(SEGMENTATION_LOSSES[name]).parameters
        stated = dict(re.findall(r"`(\w+)`(?: \(([^)]*)\))?", options))
        # The power is the focal form's alone.
        assert set(stated) == set(parameters) - _NOT_OPTIONS - ({"gamma"} if name == "tversky" else set()), (
            name
        )
        for option, default in stated.items():
            if default not in ("", "true"):
                assert float(Fraction(default)) == parameters[option].default, (name, option)
