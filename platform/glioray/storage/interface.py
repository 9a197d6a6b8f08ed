"""What every storage is: its interface, its URIs and keys, and the errors of the operating system."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from glioray.errors import StorageError, UsageError

# Of a file system that is elsewhere; any other error stays until somebody acts.
_PASSING_ERRNOS = {
    errno.EAGAIN, errno.EBUSY, errno.EIO, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.EREMOTEIO,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """An object in a listing.

    Attributes:
        key: relative to the storage's root.
        size_bytes: of its content.
        stamp: differs after every change that the store notices: a file's times, an object's ETag.
    """

    key: str
    size_bytes: int
    stamp: str = ""


@dataclass(frozen=True, kw_only=True)
class Unlisted:
    """A file or a folder that a listing cannot give.

    Attributes:
        key: of the file or folder, printable.
        found: why, continuing a sentence that begins with the name.
        advice: what to do about it.
    """

    key: str
    found: str
    advice: str


class Storage(Protocol):
    """A tree of objects below one URI."""

    uri: str

    def list(
        self, prefix: str = "", *, unlisted: MutableSequence[Unlisted] | None = None
    ) -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, sorted by key, without directory markers.

        Args:
            prefix: of the keys.
            unlisted: collects what cannot be listed: unreadable folders and files, links to nothing, names that are
                not UTF-8. By default the first one is raised.

        Raises: StorageError if the folder or the bucket does not exist, or a part of it cannot be listed.
        """

    def exists(self, key: str) -> bool:
        """Whether the object exists."""

    def read(self, key: str) -> bytes:
        """The whole object. Raises: StorageError if it does not exist."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """At most `length` bytes from offset `start`; fewer at the object's end, none past it."""

    def download(self, key: str, path: Path) -> None:
        """Stream the object into a local file, atomically and without holding all of it in memory.

        Raises: StorageError if the object does not exist or the file cannot be written.
        """

    def write(self, key: str, data: bytes | BinaryIO) -> None:
        """Publish `data` under `key`, atomically; streams are not held in memory as a whole.

        The stream may be left closed.
        """

    def delete(self, key: str) -> None:
        """Delete the object, if it exists."""

    def check_writable(self) -> None:
        """Try whether objects can be written; leaves none, and no folder that was not there.

        Raises: StorageError if not.
        """


def join_uri(uri: str, *parts: str) -> str:
    """`uri` followed by `parts`, joined by single slashes."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts if part.strip("/"))])


def split_uri(uri: str) -> tuple[str, str]:
    """Split an object's URI into its parent's URI and its name.

    `s3://b/p/m.json` gives `s3://b/p` and `m.json`.

    Raises:
        UsageError: the URI has no name below a folder or a bucket.
    """
    scheme, separator, path = uri.rpartition("://")
    parent, slash, name = path.rstrip("/").rpartition("/")
    if not name or (scheme == "s3" and not slash):
        raise UsageError(f"'{uri}' names no object; add a name after the folder or the bucket")
    if not parent:
        parent = "/" if slash else "."
    return f"{scheme}{separator}{parent}", name


def printable(name: str) -> str:
    """The name of a file as text; bytes that are not UTF-8 as escapes such as `\\xe9`."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def is_local(uri: str) -> bool:
    """Whether the URI is a folder on this machine."""
    return not uri.startswith("s3://")


def sqlite_uri(path: Path) -> str:
    """The address of a SQLite file for SQLAlchemy, which decodes it and ends it at a question mark."""
    return f"sqlite:///{path.as_posix().replace('%', '%25').replace('?', '%3F')}"


def validate_key(key: str) -> str:
    if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise StorageError(
            f"{key!r} is not a key below the storage's root; use a relative path without '..' or '//'"
        )
    return key


def validate_prefix(prefix: str) -> str:
    # A prefix may end anywhere within a name, or at a slash.
    validate_key(f"{prefix}x")
    return prefix


@contextmanager
def wrap_os_errors(name: str | Path, action: str) -> Iterator[None]:
    """Turn an error of the operating system into a StorageError of one sentence."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"'{name}' cannot be {action} ({error.strerror or error}); "
            "check the path, the permissions and the free space",
            error.errno in _PASSING_ERRNOS,
        ) from error


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` if the block ends without an error."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
