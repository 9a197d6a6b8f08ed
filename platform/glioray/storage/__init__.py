"""One interface over a folder and an S3 bucket.

A `Storage` is rooted at a URI; keys are relative, use forward slashes and never leave the root.
`write` is atomic: a reader sees the old object or the new one, never a part. The endpoint and the
credentials come from the standard AWS environment variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...).
A `Storage` holds no secrets, so it can be pickled and sent to a worker.
"""

from __future__ import annotations

import os

from glioray.errors import UsageError
from glioray.storage.folder import FileStorage as FileStorage
from glioray.storage.interface import ObjectInfo as ObjectInfo
from glioray.storage.interface import Storage as Storage
from glioray.storage.interface import Unlisted as Unlisted
from glioray.storage.interface import is_local as is_local
from glioray.storage.interface import join_uri as join_uri
from glioray.storage.interface import printable as printable
from glioray.storage.interface import split_uri as split_uri
from glioray.storage.interface import sqlite_uri as sqlite_uri
from glioray.storage.s3 import CONNECT_TIMEOUT_S as CONNECT_TIMEOUT_S
from glioray.storage.s3 import DOWNLOAD_ATTEMPTS as DOWNLOAD_ATTEMPTS
from glioray.storage.s3 import READ_TIMEOUT_S as READ_TIMEOUT_S
from glioray.storage.s3 import REQUEST_ATTEMPTS as REQUEST_ATTEMPTS
from glioray.storage.s3 import S3Storage as S3Storage


def open_storage(uri: str | os.PathLike[str]) -> Storage:
    """The storage at a URI: a path, `file://…` or `s3://bucket/prefix`.

    Raises:
        UsageError: another scheme, or `s3://` without a bucket.
    """
    text = os.fspath(uri)
    scheme = text.split("://", 1)[0] if "://" in text else ""
    if (readable := printable(text)) != text:
        raise UsageError(f"'{readable}' is not a name in UTF-8; rename the folder")
    if scheme == "s3":
        return S3Storage(text)
    if not scheme or text.startswith("file:/"):
        return FileStorage(text)
    raise UsageError(f"'{text}' has the scheme '{scheme}'; use a folder, file:// or s3://bucket/prefix")


def list_written(storage: Storage) -> dict[str, int]:
    """Key -> size in bytes of the objects of a place that need not have been written to yet.

    Raises:
        StorageError: it cannot be listed.
    """
    if isinstance(storage, FileStorage) and not storage.root.exists():
        return {}
    return {info.key: info.size_bytes for info in storage.list()}
