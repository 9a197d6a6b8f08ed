"""What the text fields of a form say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import HTTPException

from glioray.config import PLANES

MAX_SCALE = 8.0
MAX_SIDE = 2048


@dataclass(frozen=True, kw_only=True)
class Sharpening:
    """How an input shall be made sharper.

    Attributes:
        scale: pixels of the result for one of the input; None for the model's own.
        size: (H, W) of the result's slices in its place, or None.
        blend: 0 for the PSNR generator to 1 for the GAN one; None for what the training ended with.
        plane: of the slices; None for the one that the input's voxels suggest.
        force: go on although the input is not what the model was trained on.
    """

    scale: float | None = None
    size: tuple[int, int] | None = None
    blend: float | None = None
    plane: str | None = None
    force: bool = False


def as_sharpening(fields: Mapping[str, str]) -> Sharpening:
    """What the fields scale or size, blend, plane and force say.

    Raises:
        HTTPException: 422, a field that says something else.
    """
    if "scale" in fields and "size" in fields:
        raise HTTPException(422, "both scale and size were sent; send one of them")
    return Sharpening(
        scale=_number(fields, "scale", 1.0, MAX_SCALE),
        size=_size(fields),
        blend=_number(fields, "blend", 0.0, 1.0),
        plane=choice(fields, "plane", PLANES),
        force=flag(fields, "force"),
    )


def choice(fields: Mapping[str, str], name: str, values: Sequence[str]) -> str | None:
    """A field that is one of some words; None where it was not sent.

    Raises:
        HTTPException: 422, it is another.
    """
    if name not in fields:
        return None
    if fields[name] not in values:
        raise _unfit(name, fields[name], f"one of {', '.join(values)}")
    return fields[name]


def flag(fields: Mapping[str, str], name: str) -> bool:
    """A field that is "true" or "false", which it is where it was not sent.

    Raises:
        HTTPException: 422, it is neither.
    """
    return choice(fields, name, ("true", "false")) == "true"


def _number(fields: Mapping[str, str], name: str, low: float, high: float) -> float | None:
    if name not in fields:
        return None
    expected = f"a number from {low:g} to {high:g}"
    try:
        value = float(fields[name])
    except ValueError as error:
        raise _unfit(name, fields[name], expected) from error
    if not low <= value <= high:
        raise _unfit(name, fields[name], expected)
    return value


def _size(fields: Mapping[str, str]) -> tuple[int, int] | None:
    if "size" not in fields:
        return None
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", fields["size"])
    if match is None or not all(1 <= int(side) <= MAX_SIDE for side in match.groups()):
        raise _unfit("size", fields["size"], f"HxW in pixels, such as 240x240, each up to {MAX_SIDE}")
    return int(match[1]), int(match[2])


def _unfit(name: str, found: str, expected: str) -> HTTPException:
    return HTTPException(422, f"{name} is '{found[:40]}'; expected {expected}")
