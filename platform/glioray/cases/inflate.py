"""gzip at the speed of libdeflate, within a size that is known before."""

from __future__ import annotations

import zlib

import deflate
from isal import isal_zlib

GZIP_MAGIC = b"\x1f\x8b"

_MAX_RATIO = 1032  # No deflate stream inflates further.


def peek(data: bytes, size: int) -> bytes:
    """The first bytes of a file after inflating, at most `size`; those of the file itself where it is not gzip.

    Raises:
        ValueError: the stream is damaged; in words that go on after the file's name.
    """
    if data[:2] != GZIP_MAGIC:
        return data[:size]
    try:
        return zlib.decompressobj(31).decompress(data[: 64 * 1024], size)
    except zlib.error as error:
        raise ValueError(f"is a damaged gzip stream ({error})") from error


def inflate(data: bytes, size: int) -> bytes | bytearray:
    """A gzip file that should hold `size` bytes, inflated; one byte more where it holds more.

    No more memory is taken than that, whatever the stream does. Reference: RFC 1952.

    Raises:
        ValueError: the stream is truncated, damaged or followed by something else.
    """
    if size > _MAX_RATIO * len(data) + 1024:
        raise ValueError(
            f"is truncated: {len(data)} compressed bytes cannot hold the {size} bytes that its header claims"
        )
    # libdeflate reads one member only. Where the last four bytes, its size, are right, there is no other.
    if int.from_bytes(data[-4:], "little") == size:
        try:
            raw = deflate.gzip_decompress(data, size)
        except deflate.DeflateError:
            raw = bytearray()
        if len(raw) == size:
            return raw
    return _inflate_members(data, size)


def _inflate_members(data: bytes, size: int) -> bytes:
    """Member after member, slower, until the data end or are too many."""
    parts: list[bytes] = []
    room, rest = size + 1, data
    while room and rest.strip(b"\0"):
        if rest[:2] != GZIP_MAGIC:
            raise ValueError(f"is followed by {len(rest)} bytes that are not gzip")
        member = isal_zlib.decompressobj(31)
        while room and not member.eof:
            try:
                part = member.decompress(rest, room)
            except isal_zlib.error as error:  # type: ignore[misc]  # isal types it as a value
                raise ValueError(f"is a damaged gzip stream ({error})") from error
            rest = member.unconsumed_tail
            if not part and not member.eof:
                there = size + 1 - room
                raise ValueError(
                    f"is truncated: its gzip stream ends after {there} of the {size} bytes that its header claims"
                )
            parts.append(part)
            room -= len(part)
        rest = member.unused_data
    return b"".join(parts)
