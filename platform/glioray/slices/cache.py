"""Preprocessed slices on a node's disk, decoded once and mapped by every process of the node.

An entry is a folder `<root>/<preprocessing>/<case>-<checksum>/` of plain `.npy` files, so that ranks
share one copy in the page cache and a random slice costs a page fault instead of an inflate. Entries are
published by renaming a finished folder: two trials that fill the same entry at once both end with a
whole one. Past the disk budget the entries used longest ago go; a mapping stays valid after its file is
unlinked, so a run that still reads an evicted entry is not disturbed.
"""

from __future__ import annotations

import contextlib
import json
import logging
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
from glioray.errors import StorageError
from glioray.slices.preprocess import SliceStack

_log = logging.getLogger(__name__)
_STALE_S = 3600.0
# Raised whenever the code makes other slices of the same settings: what an older version left is not used then.
_VERSION = 2
_PLAIN = ("origin", "shape", "spacing_mm", "label_voxels")


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Where the cache is and what it may take.

    Attributes:
        folder: its root on each node.
        disk_bytes: budget of the whole folder, over all preprocessings.
        memory_bytes: mapped bytes that a reader brings into memory ahead of the first epoch; what is
            past it is read from disk on demand.
    """

    folder: str
    disk_bytes: int = 100 << 30
    memory_bytes: int = 8 << 30

    @classmethod
    def from_environment(cls) -> CacheConfig:
        """GLIORAY_CACHE, GLIORAY_CACHE_DISK_GB and GLIORAY_CACHE_MEMORY_GB, or the user's cache folder."""
        home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
        return cls(
            folder=os.environ.get("GLIORAY_CACHE") or str(Path(home) / "glioray"),
            disk_bytes=int(float(os.environ.get("GLIORAY_CACHE_DISK_GB", "100")) * (1 << 30)),
            memory_bytes=int(float(os.environ.get("GLIORAY_CACHE_MEMORY_GB", "8")) * (1 << 30)),
        )


class SliceCache:
    """The entries of one preprocessing."""

    def __init__(self, config: CacheConfig, preprocess: PreprocessConfig) -> None:
        self.config = config
        self.root = Path(config.folder)
        self.folder = self.root / f"{preprocess.cache_key}-v{_VERSION}"

    def has(self, entry: CaseEntry) -> bool:
        """Whether the case is there."""
        return (self._path(entry) / "meta.json").is_file()

    def get(self, entry: CaseEntry) -> tuple[SliceStack, ...] | None:
        """The case's stacks, their arrays mapped read-only; None when it is not there (or was evicted this moment).

        Raises:
            StorageError: the entry is damaged or may not be read.
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
                    **{name: tuple(meta[name]) for name in _PLAIN},
                )
                for meta in json.loads((path / "meta.json").read_text())
            )
            # What somebody else wrote may be read, but its time not set.
            with contextlib.suppress(PermissionError):
                os.utime(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise StorageError(
                f"the entry '{path}' of the slice cache cannot be read ({error}); delete it, and it is made again"
            ) from error
        return stacks

    def put(self, entry: CaseEntry, stacks: Sequence[SliceStack]) -> None:
        """Publish a case's stacks; whoever comes second leaves the first one's entry in place."""
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
                plain = {name: getattr(stack, name) for name in _PLAIN}
                rows.append({"plane": stack.plane, "has_mask": stack.mask is not None, **plain})
            (temporary / "meta.json").write_text(json.dumps(rows))
            temporary.rename(path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not self.has(entry):
                raise StorageError(
                    f"the slice cache '{self.folder}' cannot be written ({error.strerror}); free space there or point "
                    "GLIORAY_CACHE at another folder"
                ) from error
        self._evict()

    def _path(self, entry: CaseEntry) -> Path:
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in entry.case_id)
        # The checksum is of bytes; what numbers in a mask mean is the convention's business.
        return self.folder / f"{name}-{entry.checksum[:12]}-{entry.convention or 'unlabelled'}"

    def _evict(self) -> None:
        """Remove entries, longest unused first, until the budget holds; and what crashed writers left."""
        entries = []
        for path in self.root.glob("*/*"):
            try:
                used = path.stat().st_mtime
                size = sum(file.stat().st_size for file in path.iterdir())
            except (FileNotFoundError, NotADirectoryError):
                continue  # another process removed it
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
                "slice cache over its budget of %.1f GB: dropping %s", self.config.disk_bytes / 1e9, path.name
            )
            # Renamed first: a reader never meets half an entry.
            doomed = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
            try:
                path.rename(doomed)
            except FileNotFoundError:
                continue
            shutil.rmtree(doomed, ignore_errors=True)
            excess -= size
