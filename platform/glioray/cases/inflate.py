"""Fast and bounded gzip decompression.

libdeflate inflates a volume about three times as fast as Python's gzip (zlib), and takes the output size
beforehand, so that a bomb costs no memory. Only files of several members need isal's streaming decoder.
"""

from __future__ import annotations

import zlib

import deflate
from isal import isal_zlib

GZIP_MAGIC = b"\x1f\x8b"

_MAX_RATIO = 1032  # the largest compression ratio of a deflate stream


class TrailingBytesError(ValueError):
    """A whole gzip stream with other bytes after it."""


def peek(data: bytes, size: int) -> bytes:
    """At most `size` bytes from the start of a file, after decompression if it is gzip.

    Raises:
        ValueError: the stream is damaged; the message continues a sentence that begins with the file's name.
    """
    if data[:2] != GZIP_MAGIC:
        return data[:size]
    try:
        return zlib.decompressobj(31).decompress(data[: 64 * 1024], size)
    except zlib.error as error:
        raise ValueError(f"is a damaged gzip stream ({error})") from error


def inflate(data: bytes, size: int) -> bytes | bytearray:
    """Decompress a gzip file of `size` bytes; return one byte more if it holds more.

    Never allocates more than the returned size, whatever the stream claims.

    Raises:
        TrailingBytesError: the stream is followed by other data.
        ValueError: it is truncated or damaged; the message continues a sentence that begins with the file's name.

    Reference: RFC 1952.
    """
    if size > _MAX_RATIO * len(data) + 1024:
        raise ValueError(
            f"is truncated: {len(data)} compressed bytes cannot hold the {size} bytes that its header claims"
        )
    # libdeflate reads one member only. If the last four bytes, the member's size, match, there is only one.
    if int.from_bytes(data[-4:], "little") == size:
        try:
            raw = deflate.gzip_decompress(data, size)
        except deflate.DeflateError:
            raw = bytearray()
        if len(raw) == size:
            return raw
    return _inflate_members(data, size)


def _inflate_members(data: bytes, size: int) -> bytes:
    """Decompress member by member, which is slower, until the data end or exceed `size`."""
    parts: list[bytes] = []
    room, rest = size + 1, data
    while room and rest.strip(b"\0"):
        if rest[:2] != GZIP_MAGIC:
            raise TrailingBytesError(f"has {len(rest)} bytes after its gzip stream that are not gzip")
        member = isal_zlib.decompressobj(31)
        while room and not member.eof:
            try:
                part = member.decompress(rest, room)
            except isal_zlib.error as error:  # type: ignore[misc]  # isal types it as a value
                raise ValueError(f"is a damaged gzip stream ({error})") from error
            rest = member.unconsumed_tail
            if not part and not member.eof:
                num_read = size + 1 - room
                raise ValueError(
                    f"is truncated: its gzip stream ends after {num_read} of the {size} bytes that its header claims"
                )
            parts.append(part)
            room -= len(part)
        rest = member.unused_data
    return b"".join(parts)
