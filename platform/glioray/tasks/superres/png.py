"""Grey pictures from PNG bytes and back, judged by their header before anything is decoded."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from glioray.errors import CaseError

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

_HEADER_BYTES = 33  # signature and the IHDR chunk
_KINDS = {2: "RGB", 3: "a palette", 4: "grey with transparency", 6: "RGB with transparency"}


def read_png(data: bytes, *, name: str, max_pixels: int) -> NDArray[Any]:
    """(H, W) grey values of a PNG, uint8 or uint16 as it holds them, turned as its EXIF orientation says.

    Args:
        data: the file.
        name: it, for messages.
        max_pixels: more are refused unread.

    Raises:
        CaseError: not a PNG, in colour, of another depth, animated, too large, truncated or damaged.
    """
    depth = _check_header(data, name, max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                if getattr(image, "is_animated", False):
                    _refuse(name, "is animated", "send one picture")
                pixels = np.asarray(ImageOps.exif_transpose(image))
    # Whatever Pillow raises over a file that lies.
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CaseError("", name, f"is a damaged PNG ({reason})", "copy or export it again") from error
    expected = np.uint8 if depth == 8 else np.uint16
    return np.ascontiguousarray(pixels.astype(expected, copy=False))


def encode_png(pixels: NDArray[Any]) -> bytes:
    """A grey PNG of (H, W) uint8 or uint16 values, of the depth of their type."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _check_header(data: bytes, name: str, max_pixels: int) -> int:
    """Bits of a pixel, of a header that says nothing that cannot be read."""
    if data[:8] != PNG_MAGIC:
        _refuse(name, "is not PNG", "export it again as PNG")
    if len(data) < _HEADER_BYTES or data[12:16] != b"IHDR":
        _refuse(name, "ends inside its header, or begins with something else", "copy or export it again")
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    if kind != 0:
        _refuse(name, f"holds {_KINDS.get(kind, f'colour type {kind}')}", "convert it to grey, 8 or 16 bits")
    if depth not in (8, 16):
        _refuse(name, f"holds {depth} bits a pixel; expected 8 or 16", "export it again with 8 or 16 bits")
    if not 0 < width * height <= max_pixels:
        _refuse(name, f"is {height} x {width} pixels; expected 1 to {max_pixels}", "crop it")
    return int(depth)


def _refuse(name: str, found: str, advice: str) -> NoReturn:
    raise CaseError("", name, found, advice)
