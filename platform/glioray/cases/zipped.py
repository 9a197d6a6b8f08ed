"""A case's folder as a zip in memory: opened within limits, and never unpacked to files."""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from collections.abc import Collection, Iterator, MutableSequence
from pathlib import Path
from typing import BinaryIO, NoReturn

from glioray.cases.dataset_json import MSD_CHANNELS
from glioray.cases.layouts import discover_cases
from glioray.cases.nifti import DEFAULT_LIMITS, Limits
from glioray.config import MODALITIES
from glioray.errors import CaseError, StorageError
from glioray.storage import ObjectInfo, Unlisted

_MAX_ENTRIES = 1000
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar", ".bz2", ".xz", ".zst")


def read_zipped_case(
    data: bytes, *, name: str, modalities: Collection[str], limits: Limits = DEFAULT_LIMITS
) -> dict[str, bytes]:
    """The files of the one case in a zip, by modality or as one 4-D "image"; recognised as in a bucket.

    Args:
        data: the zip.
        name: of it, for messages.
        modalities: that are wanted; others are left out.
        limits: `max_bytes` holds for all files together, unpacked.

    Raises:
        CaseError: it is damaged, encrypted, too large or nested, has entries that leave its folder, or holds no case,
            several, or one whose files no form takes.
    """
    storage = ZipStorage(data, name=name, max_bytes=limits.max_bytes)
    cases, problems = discover_cases(storage)
    if len(cases) != 1:
        found = (
            f"holds {len(cases)} cases" if cases else f"holds no case{f': {problems[0]}' if problems else ''}"
        )
        advice = "zip the folder of one case, with files named as in CASE_t1.nii.gz"
        raise CaseError("", name, found, advice)
    files = cases[0]
    if files.images:
        return {role: storage.read(key) for role, key in files.images.items() if role in modalities}
    if files.image is not None and files.channels == MSD_CHANNELS and set(modalities) == set(MODALITIES):
        return {"image": storage.read(files.image)}
    kind = "tif slices" if files.slices else f"one file with the channels {', '.join(files.channels)}"
    raise CaseError("", name, f"holds a case in {kind}", "store each modality in its own .nii.gz")


class ZipStorage:
    """The files of a zip as a storage that is read only (`storage.Storage`).

    Args:
        data: the zip.
        name: of it, for messages.
        max_bytes: of all files together, unpacked.

    Raises:
        CaseError: the zip is not one that may be opened.
    """

    def __init__(self, data: bytes, *, name: str, max_bytes: int) -> None:
        self.uri = self.name = name
        try:
            self.archive = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, OSError, NotImplementedError) as error:
            self._fail(f"is no zip or a damaged one ({error})")
        entries = [info for info in self.archive.infolist() if not info.is_dir()]
        if len(entries) > _MAX_ENTRIES:
            self._fail(f"has {len(entries)} files; expected at most {_MAX_ENTRIES}")
        for info in entries:
            self._check(info)
        self.entries = {info.filename: info for info in entries}
        if len(self.entries) < len(entries):
            self._fail("has two files of the same name")
        size = sum(info.file_size for info in entries)
        if size > max_bytes:
            self._fail(f"unpacks to {size} bytes; expected at most {max_bytes}", "crop the images")

    def list(
        self, prefix: str = "", *, unlisted: MutableSequence[Unlisted] | None = None
    ) -> Iterator[ObjectInfo]:
        for key in sorted(self.entries):
            if key.startswith(prefix):
                yield ObjectInfo(key=key, size_bytes=self.entries[key].file_size)

    def exists(self, key: str) -> bool:
        return key in self.entries

    def read(self, key: str) -> bytes:
        if key not in self.entries:
            raise StorageError(f"'{key}' is not in {self.name}; check the name")
        try:
            # `ZipFile.read` unpacks all that there is, whatever the entry states.
            with self.archive.open(self.entries[key]) as stream:
                return stream.read(self.entries[key].file_size)
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError) as error:
            self._fail(f"is damaged at '{key}' ({error})")

    def read_range(self, key: str, start: int, length: int) -> bytes:
        return self.read(key)[start : start + length]

    def download(self, key: str, path: Path) -> None:
        self._refuse_writing()

    def write(self, key: str, data: bytes | BinaryIO) -> None:
        self._refuse_writing()

    def delete(self, key: str) -> None:
        self._refuse_writing()

    def check_writable(self) -> None:
        self._refuse_writing()

    def _check(self, info: zipfile.ZipInfo) -> None:
        shown = info.filename[:100]
        parts = info.filename.split("/")
        is_drive = ":" in parts[0]
        if (
            "\\" in info.orig_filename
            or "\0" in info.orig_filename
            or is_drive
            or {"", ".", ".."} & set(parts)
        ):
            self._fail(f"has the entry '{shown}', which is no plain path below its folder")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            self._fail(f"has '{shown}', which is a link or a device", "put the file itself into it")
        if info.flag_bits & 0x1:
            self._fail("is encrypted", "zip the case's folder without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            self._fail(f"compresses '{shown}' by an unusual method", "zip it with deflate")
        if info.filename.lower().endswith(_ARCHIVES):
            self._fail(f"holds another archive, '{shown}'", "zip the images themselves")

    def _refuse_writing(self) -> NoReturn:
        raise StorageError(f"{self.name} is a zip that is only read; write to a folder")

    def _fail(self, found: str, advice: str = "zip the case's folder again") -> NoReturn:
        raise CaseError("", self.name, found, advice)
