"""Packages outside a registry: shipped with glioray, in a zip file, or behind an https address with their hash."""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import requests

from glioray.engine.package import SPEC_FILE, WEIGHTS_FILE
from glioray.errors import ModelError, StorageError, UsageError
from glioray.storage import open_storage, split_uri

SHIPPED_FOLDER = Path(__file__).resolve().parents[1] / "models"

_MAX_BYTES = 4 << 30
_TIMEOUT_S = 30
_FRAGMENT = "#sha256="
# A fixed time, so that the same package gives the same bytes.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def shipped_models() -> dict[str, Path]:
    """The models that are part of glioray: name -> folder of the package."""
    return {spec.parent.name: spec.parent for spec in sorted(SHIPPED_FOLDER.glob(f"*/{SPEC_FILE}"))}


def is_portable(uri: str) -> bool:
    """Whether a model's URI, without its hash, names a shipped model, a zip file or a web address."""
    return uri in shipped_models() or uri.endswith(".zip") or _is_web(uri)


def split_hash(uri: str) -> tuple[str, str | None]:
    """Split `URI#sha256=HEX` into the URI and the hash; None for a URI without one.

    Raises:
        UsageError: the hash is not 64 hexadecimal digits.
    """
    location, found, digest = uri.partition(_FRAGMENT)
    if not found:
        return uri, None
    if re.fullmatch(r"[0-9a-f]{64}", digest.lower()) is None:
        raise UsageError(
            f"the hash of '{location}' is '{digest}'; expected the 64 hexadecimal digits that jobs/share.py printed"
        )
    return location, digest.lower()


def package_hash(folder: Path) -> str:
    """The SHA-256 of a package, as of `cat model.json model.safetensors | sha256sum`."""
    digest = hashlib.sha256()
    for name in (SPEC_FILE, WEIGHTS_FILE):
        with open(folder / name, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def check_hash(folder: Path, expected: str | None, uri: str) -> None:
    """Compare a package with the hash that its URI states.

    Raises:
        ModelError: another one.
    """
    if expected is not None and (found := package_hash(folder)) != expected:
        raise ModelError(
            f"the model '{uri}' has the SHA-256 {found}, but {expected} was expected; ask its owner, or fetch it again"
        )


def fetch_portable(uri: str, folder: Path) -> None:
    """Put the two files of a portable package into a folder.

    Args:
        uri: for which `is_portable` holds, without its hash.
        folder: local, exists.

    Raises:
        ModelError: no zip file, or without a package.
        StorageError: it cannot be read.
    """
    shipped = shipped_models().get(uri)
    if shipped is not None:
        for name in (SPEC_FILE, WEIGHTS_FILE):
            shutil.copyfile(shipped / name, folder / name)
        return
    archive = folder / "package.zip"
    if _is_web(uri):
        _download(uri, archive)
    else:
        parent, name = split_uri(uri)
        storage = open_storage(parent)
        if not storage.exists(name):
            raise ModelError(f"there is no file '{uri}'; check the address")
        storage.download(name, archive)
    _unpack(archive, folder, uri)
    archive.unlink()


def check_web(uri: str, digest: str | None) -> None:
    """Refuse a web address without a hash: anybody between here and there could replace the model.

    Raises:
        UsageError: no hash.
    """
    if _is_web(uri) and digest is None:
        raise UsageError(
            f"'{uri}' has no hash; give '{uri}{_FRAGMENT}HEX' with the SHA-256 that jobs/share.py printed"
        )


def write_zip(files: Mapping[str, bytes], path: Path) -> None:
    """Write files by name into a zip file whose bytes depend on nothing else."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), data, compress_type=zipfile.ZIP_DEFLATED)


def _is_web(uri: str) -> bool:
    return uri.startswith(("https://", "http://"))


def _download(uri: str, target: Path) -> None:
    try:
        with requests.get(uri, stream=True, timeout=_TIMEOUT_S) as response, open(target, "wb") as file:
            response.raise_for_status()
            size = 0
            for block in response.iter_content(1 << 20):
                size += len(block)
                if size > _MAX_BYTES:
                    raise ModelError(f"'{uri}' is larger than {_MAX_BYTES >> 30} GiB, too large for a model")
                file.write(block)
    except requests.RequestException as error:
        raise StorageError(
            f"cannot download '{uri}' from {urlsplit(uri).hostname} ({error}); check the address and the network"
        ) from error


def _unpack(archive: Path, folder: Path, uri: str) -> None:
    """Take the package's two files out of a zip file, in whatever folder of it they lie."""
    try:
        with zipfile.ZipFile(archive) as files:
            for name in (SPEC_FILE, WEIGHTS_FILE):
                found = [info for info in files.infolist() if info.filename.rpartition("/")[2] == name]
                if len(found) != 1:
                    raise ModelError(
                        f"'{uri}' holds {len(found)} files {name}; expected one, as jobs/share.py writes it"
                    )
                if found[0].file_size > _MAX_BYTES:
                    raise ModelError(
                        f"{name} in '{uri}' is larger than {_MAX_BYTES >> 30} GiB, too large for a model"
                    )
                with files.open(found[0]) as source, open(folder / name, "wb") as target:
                    shutil.copyfileobj(source, target)
    # Encrypted files are a RuntimeError, unknown compressions a NotImplementedError.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"'{uri}' is not a zip file of a model ({error}); fetch it again") from error
