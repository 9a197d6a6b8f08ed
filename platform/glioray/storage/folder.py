"""A storage that is a folder."""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, MutableSequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from glioray.errors import StorageError, UsageError
from glioray.machine import expand_path
from glioray.storage.interface import (
    ObjectInfo,
    Unlisted,
    open_atomic,
    printable,
    validate_key,
    validate_prefix,
    wrap_os_errors,
)


class FileStorage:
    """A folder. It need not exist before the first write."""

    def __init__(self, uri: str) -> None:
        self.root = expand_path(_file_path(uri) if uri.startswith("file:/") else uri)
        self.uri = str(self.root)

    def list(
        self, prefix: str = "", *, unlisted: MutableSequence[Unlisted] | None = None
    ) -> Iterator[ObjectInfo]:
        with wrap_os_errors(self.root, "listed"):
            is_folder = self.root.is_dir()
        if not is_folder:
            raise StorageError(f"'{self.root}' is not a folder; check the path")
        failed: list[Unlisted] = []
        start = validate_prefix(prefix).rpartition("/")[0]
        found = [info for info in _walk(self.root, start, failed) if info.key.startswith(prefix)]
        failed = [item for item in failed if item.key.startswith(prefix) or prefix.startswith(f"{item.key}/")]
        if unlisted is None:
            # Links to nothing are only of interest to those who look for files that should be there.
            for item in failed:
                if item.found != _LINK_TO_NOTHING:
                    raise StorageError(f"'{self.root}/{item.key}' {item.found}; {item.advice}")
        else:
            unlisted.extend(sorted(failed, key=lambda item: item.key))
        yield from sorted(found, key=lambda info: info.key)

    def exists(self, key: str) -> bool:
        with self._wrap_errors(key, "looked up"):
            return (self.root / validate_key(key)).is_file()

    def read(self, key: str) -> bytes:
        with self._wrap_errors(key, "read"):
            return (self.root / validate_key(key)).read_bytes()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with self._wrap_errors(key, "read"), (self.root / validate_key(key)).open("rb") as stream:
            stream.seek(start)
            return stream.read(length)

    def download(self, key: str, path: Path) -> None:
        with (
            self._wrap_errors(key, "read"),
            (self.root / validate_key(key)).open("rb") as source,
            wrap_os_errors(path, "written"),
            open_atomic(path) as target,
        ):
            shutil.copyfileobj(source, target)

    def write(self, key: str, data: bytes | BinaryIO) -> None:
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        path = self.root / validate_key(key)
        with self._wrap_errors(key, "written"), open_atomic(path) as target:
            shutil.copyfileobj(source, target)

    def delete(self, key: str) -> None:
        with self._wrap_errors(key, "deleted"):
            (self.root / validate_key(key)).unlink(missing_ok=True)

    def check_writable(self) -> None:
        made: list[Path] = []
        try:
            with wrap_os_errors(self.root, "written"):
                made += [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
                self.root.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.root):
                    pass
        finally:
            for folder in made:
                # Not made after all, or used by another process since.
                with suppress(OSError):
                    folder.rmdir()

    def _wrap_errors(self, key: str, action: str) -> AbstractContextManager[None]:
        return wrap_os_errors(f"{self.uri}/{key}", action)


_LINK_TO_NOTHING = "is a link to a file that does not exist"
_ACCESS = "check the permissions, or move it elsewhere"


def _walk(root: Path, start: str, failed: list[Unlisted]) -> Iterator[ObjectInfo]:
    """The files below `root`/`start`, following links; `failed` collects what cannot be listed."""
    seen: set[str] = set()
    folders = [start]
    while folders:
        folder = folders.pop()
        real = os.path.realpath(root / folder)
        if real in seen:  # a link back to a parent
            continue
        seen.add(real)
        try:
            with os.scandir(root / folder) as scan:
                items = sorted(scan, key=lambda item: item.name)
        except (FileNotFoundError, NotADirectoryError):
            continue  # deleted meanwhile, or a prefix of no key
        except OSError as error:
            if not folder:
                raise StorageError(
                    f"'{root}' cannot be listed ({error.strerror or error}); {_ACCESS}"
                ) from error
            failed.append(_unlisted(folder, error))
            continue
        for item in items:
            key = f"{folder}/{item.name}".lstrip("/")
            if (name := printable(key)) != key:
                advice = "rename it, with convmv for instance"
                failed.append(Unlisted(key=name, found="has a name that is not UTF-8", advice=advice))
                continue
            try:
                status = item.stat()
            except FileNotFoundError:
                if item.is_symlink():
                    advice = "fetch what it points to (git annex get, datalad get), or delete it"
                    failed.append(Unlisted(key=key, found=_LINK_TO_NOTHING, advice=advice))
                continue
            except OSError as error:
                failed.append(_unlisted(key, error))
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append(key)
            elif stat.S_ISREG(status.st_mode) and not _is_temporary(item.name):
                # The time of the last change of state too: a copy may keep the time of modification.
                stamp = f"{status.st_mtime_ns} {status.st_ctime_ns}"
                yield ObjectInfo(key=key, size_bytes=status.st_size, stamp=stamp)


def _unlisted(key: str, error: OSError) -> Unlisted:
    return Unlisted(key=key, found=f"cannot be read ({error.strerror or error})", advice=_ACCESS)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _file_path(uri: str) -> str:
    """The path of a `file:` URI, which may have '#' and '?' as they are.

    Raises:
        UsageError: it names another host, as `file://data/x` does where `file:///data/x` is meant.
    """
    host, path = re.fullmatch("file:(?://([^/]*))?(/.*)?", uri, re.DOTALL).groups()  # type: ignore[union-attr]
    if host not in (None, "", "localhost") or path is None:
        raise UsageError(f"'{uri}' is not a path on this machine; write it as file:///{host}{path or ''}")
    return unquote(path)
