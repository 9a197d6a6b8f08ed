"""A cache of preprocessed slices on a node's disk, mapped by every process of the node.

An entry is a folder `<root>/<preprocessing>/<case>-<checksum>/` of uncompressed `.npy` files, so that ranks
share one copy in the page cache and reading a random slice costs a page fault rather than decompression.
Entries are published by renaming a finished folder, so two trials may write the same entry at once. If the
cache exceeds its disk budget, the least recently used entries are removed; a mapping stays valid after its
file is unlinked, so runs that read a removed entry are not affected.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
        folder: its root on each node.
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
        return cls(
            folder=str(expand_path(os.environ.get("GLIORAY_CACHE") or f"{home}/glioray")),
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


class SliceCache:
    """The entries of one set of preprocessing settings."""

    def __init__(self, config: CacheConfig, preprocess: PreprocessConfig) -> None:
        self.config = config
        self.root = Path(config.folder)
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
                raise StorageError(
                    f"the slice cache '{self.folder}' cannot be written ({error.strerror}); free space there or set "
                    "GLIORAY_CACHE to another folder"
                ) from error
        self._evict()

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
