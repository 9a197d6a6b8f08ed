"""The tables in losses/README.md list all losses, their options and their defaults."""

from __future__ import annotations

import inspect
import re
from fractions import Fraction
from pathlib import Path

import pytest

import glioray.losses
from glioray.losses import SEGMENTATION_LOSSES
from glioray.losses.adversarial import GAN_LOSSES, build_gan_loss
from glioray.losses.reconstruction import PIXEL_LOSSES

_NOT_OPTIONS = {"target", "reduce", "squared"}


def _section(*, gan: bool) -> str:
    text = (Path(glioray.losses.__file__).parent / "README.md").read_text()
    return text.partition("\n## Super-resolution GANs\n")[2 if gan else 0]


def _rows(*, gan: bool) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in _section(gan=gan).splitlines()
        if line.startswith("| `")
    ]


def test_the_table_matches_the_registry():
    rows = _rows(gan=False)
    named = [name.strip("`") for row in rows for name in row[:2]]
    assert sorted(named) == sorted(SEGMENTATION_LOSSES)
    for classes, regions, _, options, _ in rows:
        name = classes.strip("`")
        assert SEGMENTATION_LOSSES[name].build is SEGMENTATION_LOSSES[regions.strip("`")].build
        parameters = inspect.signature(SEGMENTATION_LOSSES[name].build).parameters
        stated = dict(re.findall(r"`(\w+)`(?: \(([^)]*)\))?", options))
        # The power is the focal form's alone.
        assert set(stated) == set(parameters) - _NOT_OPTIONS - ({"gamma"} if name == "tversky" else set()), (
            name
        )
        for option, default in stated.items():
            if default not in ("", "true"):
                assert float(Fraction(default)) == parameters[option].default, (name, option)


def test_the_table_of_gan_losses_matches_the_registry():
    rows = {row[0].strip("`"): row for row in _rows(gan=True)}
    assert set(rows) == set(GAN_LOSSES)
    for name, (_, _, _, smoothing, _) in rows.items():
        if smoothing == "yes":
            build_gan_loss(name, label_smoothing=0.1)
        else:
            with pytest.raises(ValueError, match="smooth"):
                build_gan_loss(name, label_smoothing=0.1)
    (line,) = re.findall("`reconstruction.py` compares pixels: (.*)", _section(gan=True))
    assert set(re.findall(r"`(\w+)`", line)) == set(PIXEL_LOSSES)
