"""Looking for secrets in what jobs on a cluster leave behind."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from glioray.storage import open_storage

Found = Iterator[tuple[str, bytes]]
"""Names and contents."""


def read_folder(folder: Path) -> Found:
    """The files below a folder."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            # Ray removes files of its own meanwhile.
            with contextlib.suppress(FileNotFoundError):
                yield str(path), path.read_bytes()


def read_objects(uri: str) -> Found:
    """The objects of a bucket."""
    storage = open_storage(uri)
    for item in storage.list():
        yield f"{uri}/{item.key}", storage.read(item.key)


class Arguments(threading.Thread):
    """Collects the command lines of a process and its descendants, until `end`."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process, self._seen, self._ended = psutil.Process(pid), set[str](), threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.2):
            for process in [self._process, *self._process.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):  # it has ended
                    self._seen.add("\0".join(process.cmdline()))

    def end(self) -> Found:
        """Stop, and return the command lines."""
        self._ended.set()
        self.join()
        for line in self._seen:
            yield "arguments", line.encode()


def find_secrets(places: Mapping[str, Found], secrets: Mapping[str, str], *, named: str) -> list[str]:
    """Where a secret was found; each place must hold the bytes `named` somewhere, or it is not what was written."""
    leaks = []
    for place, found in places.items():
        is_named = False
        for name, data in found:
            is_named = is_named or named.encode() in data
            leaks += [
                f"{what} is in {name} ({place})" for what, value in secrets.items() if value.encode() in data
            ]
        assert is_named, f"{place} does not speak of {named}"
    return leaks
