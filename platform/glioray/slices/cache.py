"""A cache of preprocessed slices on a node's disk, mapped by every process of the node.

An entry is a folder `<root>/<preprocessing>/<case>-<checksum>/` of uncompressed `.npy` files, so that ranks
share one copy in the page cache and reading a random slice costs a page fault rather than decompression.
Entries are published by renaming a finished folder, so two trials may write the same entry at once; `fill` makes an
entry under a lock, so that they do not decode it twice. If the cache exceeds its disk budget, the least recently used entries are removed; a mapping stays valid after its
file is unlinked, so runs that read a removed entry are not affected.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from glioray.cases.manifest import CaseEntry
from glioray.config import PreprocessConfig
from glioray.errors import StorageError, UsageError
from glioray.machine import expand_path
from glioray.slices.preprocess import SliceStack

_log = logging.getLogger(__name__)
_STALE_S = 3600.0
# Increased whenever the same settings give other slices, so that entries of older versions are not used.
_VERSION = 2
_METADATA = ("origin", "shape", "spacing_mm", "label_voxels")


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The location and the limits of the cache.

    Attributes:
        folder: its root on each node; where it begins with a variable, as in "$TMPDIR/slices", that of the node.
        disk_bytes: the budget of the whole folder, over all preprocessing settings.
        memory_bytes: how much a reader loads into memory before the first epoch; the rest is read on demand.
    """

    folder: str
    disk_bytes: int = 100 << 30
    memory_bytes: int = 8 << 30

    @classmethod
    def from_environment(cls) -> CacheConfig:
        """The settings of the environment, or the defaults; a variable that is empty counts as not set.

        Reads GLIORAY_CACHE (by default ~/.cache/glioray), GLIORAY_CACHE_DISK_GB and GLIORAY_CACHE_MEMORY_GB.

        Raises:
            UsageError: a size that is not a number of GB.
        """
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = os.environ.get("GLIORAY_CACHE") or f"{home}/glioray"
        return cls(
            folder=folder if folder.startswith("$") else str(expand_path(folder)),
            disk_bytes=_gigabytes("GLIORAY_CACHE_DISK_GB", cls.disk_bytes),
            memory_bytes=_gigabytes("GLIORAY_CACHE_MEMORY_GB", cls.memory_bytes),
        )


def _gigabytes(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    try:
        size = float(text or default / (1 << 30))
    except ValueError:
        size = math.nan
    if not 0 <= size < math.inf:
        raise UsageError(f"{name} is '{text}'; expected a number of GB, such as 20")
    return int(size * (1 << 30))


def _lock(path: Path) -> IO[str]:
    """The file at a path, once this process holds its lock; closing it gives the lock back."""
    while True:
        # For reading, so that a lock of another user can be waited for.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CREAT, 0o666))
        fcntl.flock(file, fcntl.LOCK_EX)
        # The holder before may have removed the file that this process waited for.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


class SliceCache:
    """The entries of one set of preprocessing settings.

    Raises:
        UsageError: the folder begins with a variable that this node does not have.
    """

    def __init__(self, config: CacheConfig, preprocess: PreprocessConfig) -> None:
        self.config = config
        folder = os.path.expandvars(config.folder) if config.folder.startswith("$") else config.folder
        if folder.startswith("$"):
            raise UsageError(
                f"GLIORAY_CACHE is '{folder}' but that variable is not set on this node; set it there, or give a folder"
            )
        self.root = Path(folder)
        self.folder = self.root / f"{preprocess.cache_key}-v{_VERSION}"

    def has(self, entry: CaseEntry) -> bool:
        """Whether the case is in the cache."""
        return (self._path(entry) / "meta.json").is_file()

    def get(self, entry: CaseEntry) -> tuple[SliceStack, ...] | None:
        """The case's stacks, with arrays mapped read-only; None if it is not in the cache.

        Raises:
            StorageError: the entry is damaged or cannot be read.
        """
        path = self._path(entry)
        try:
            stacks = tuple(
                SliceStack(
                    case_id=entry.case_id,
                    plane=meta["plane"],
                    images=np.load(path / f"images-{meta['plane']}.npy", mmap_mode="r"),
                    mask=np.load(path / f"mask-{meta['plane']}.npy", mmap_mode="r")
                    if meta["has_mask"]
                    else None,
                    **{name: tuple(meta[name]) for name in _METADATA},
                )
                for meta in json.loads((path / "meta.json").read_text())
            )
            # Another user's entry can be read, but its time cannot be set.
            with contextlib.suppress(PermissionError):
                os.utime(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise StorageError(
                f"'{path}' in the slice cache cannot be read ({error}); delete it, and it will be created again"
            ) from error
        return stacks

    def put(self, entry: CaseEntry, stacks: Sequence[SliceStack]) -> None:
        """Publish a case's stacks, unless another process has done so."""
        path = self._path(entry)
        if self.has(entry):
            return
        temporary = self.folder / f".{path.name}.{secrets.token_hex(6)}.tmp"
        try:
            temporary.mkdir(parents=True)
            rows = []
            for stack in stacks:
                np.save(temporary / f"images-{stack.plane}.npy", stack.images)
                if stack.mask is not None:
                    np.save(temporary / f"mask-{stack.plane}.npy", stack.mask)
                metadata = {name: getattr(stack, name) for name in _METADATA}
                rows.append({"plane": stack.plane, "has_mask": stack.mask is not None, **metadata})
            (temporary / "meta.json").write_text(json.dumps(rows))
            temporary.rename(path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not self.has(entry):
                raise self._unwritable(error) from error
        self._evict()

    def fill(
        self, entry: CaseEntry, make: Callable[[], tuple[SliceStack, ...]]
    ) -> tuple[tuple[SliceStack, ...], bool]:
        """The case's stacks, and whether they were made now because the cache did not have them.

        Processes of a node that ask for the same case at once wait for the first one, and take what it made.

        Args:
            entry: the case.
            make: decodes it.

        Raises:
            StorageError: as `get` and `put`.
        """
        found = self.get(entry)
        if found is not None:
            return found, False
        with self._hold(entry):
            found = self.get(entry)
            if found is not None:
                return found, False
            stacks = make()
            self.put(entry, stacks)
        return stacks, True

    @contextlib.contextmanager
    def _hold(self, entry: CaseEntry) -> Iterator[None]:
        """Hold the lock of a case; the system gives it back where a process dies."""
        path = self.folder / f".{self._path(entry).name}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held = _lock(path)
        except OSError as error:
            raise self._unwritable(error) from error
        with held:
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(
            f"the slice cache '{self.folder}' cannot be written ({error.strerror or error}); free space there or set "
            "GLIORAY_CACHE to another folder"
        )

    def _path(self, entry: CaseEntry) -> Path:
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in entry.case_id)
        # The checksum covers the bytes; the meaning of a mask also depends on the convention.
        return self.folder / f"{name}-{entry.checksum[:12]}-{entry.convention or 'unlabelled'}"

    def _evict(self) -> None:
        """Remove the least recently used entries beyond the budget, and stale leftovers."""
        entries = []
        for path in self.root.glob("*/*"):
            try:
                used = path.stat().st_mtime
                size = sum(file.stat().st_size for file in path.iterdir())
            except (FileNotFoundError, NotADirectoryError):
                continue  # removed by another process
            if path.name.endswith(".tmp"):
                if time.time() - used > _STALE_S:
                    shutil.rmtree(path, ignore_errors=True)
            else:
                entries.append((used, size, path))
        excess = sum(size for _, size, _ in entries) - self.config.disk_bytes
        for _, size, path in sorted(entries)[:-1]:
            if excess <= 0:
                break
            _log.info(
                "slice cache over its budget of %.1f GB: removing %s", self.config.disk_bytes / 1e9, path.name
            )
            # Renamed first, so that no reader sees a part of an entry.
            doomed = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
            try:
                path.rename(doomed)
            except FileNotFoundError:
                continue
            shutil.rmtree(doomed, ignore_errors=True)
            excess -= size
