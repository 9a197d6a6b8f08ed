"""One small interface over a folder and an S3 bucket.

A `Storage` is rooted at a URI; keys are relative, with forward slashes, and never leave the root.
`write` publishes atomically: a reader sees the old object or the new one, never a half. Endpoint and
credentials come from the standard AWS environment variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...);
no secret is ever kept in an object, so a `Storage` may be pickled to a worker.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from glioray.errors import StorageError, UsageError


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """One object: its key relative to the storage's root, and its size."""

    key: str
    size_bytes: int


class Storage(Protocol):
    """A tree of objects below one URI."""

    uri: str

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, sorted by key; directory markers are left out.

        Raises: StorageError when the folder or the bucket is not there.
        """

    def exists(self, key: str) -> bool:
        """Whether an object of that key is there."""

    def read(self, key: str) -> bytes:
        """The whole object. Raises: StorageError when it is not there."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """At most `length` bytes from `start` on; fewer at the object's end, none past it."""

    def write(self, key: str, data: bytes) -> None:
        """Publish `data` under `key`, atomically."""

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""


def open_storage(uri: str | os.PathLike[str]) -> Storage:
    """The storage at a URI: a path, `file://…` or `s3://bucket/prefix`.

    Raises:
        UsageError: another scheme, or an `s3://` without a bucket.
    """
    text = os.fspath(uri)
    scheme = text.split("://", 1)[0] if "://" in text else ""
    if scheme == "s3":
        return S3Storage(text)
    if scheme in ("", "file"):
        return FileStorage(text)
    raise UsageError(f"'{text}' has the scheme '{scheme}'; use a folder, file:// or s3://bucket/prefix")


def join_uri(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it, with single slashes between them."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts if part.strip("/"))])


def split_uri(uri: str) -> tuple[str, str]:
    """A URI of one object as (the URI of what it lies in, its name): `s3://b/p/m.json` is `s3://b/p` and `m.json`.

    Raises:
        UsageError: there is no name below a folder or a bucket.
    """
    scheme, separator, path = uri.rpartition("://")
    parent, slash, name = path.rstrip("/").rpartition("/")
    if not name or (scheme == "s3" and not slash):
        raise UsageError(f"'{uri}' names no object; put a name behind the folder or the bucket")
    if not parent:
        parent = "/" if slash else "."
    return f"{scheme}{separator}{parent}", name


def is_local(uri: str) -> bool:
    """Whether the URI names a folder of this machine."""
    return not uri.startswith("s3://")


def _checked_key(key: str) -> str:
    if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise StorageError(
            f"{key!r} is not a key below the storage's root; use a relative path without '..' or '//'"
        )
    return key


def _checked_prefix(prefix: str) -> str:
    # A prefix may end anywhere in a name, and at a slash.
    _checked_key(f"{prefix}x")
    return prefix


class FileStorage:
    """A folder. It need not exist before the first write."""

    def __init__(self, uri: str) -> None:
        path = unquote(urlsplit(uri).path) if uri.startswith("file://") else uri
        self.root = Path(path).expanduser().absolute()
        self.uri = str(self.root)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if not self.root.is_dir():
            raise StorageError(f"'{self.root}' is not a folder; check the path")
        start = self.root / _checked_prefix(prefix).rpartition("/")[0]
        paths = (folder / name for folder, names in _walk(start) for name in names)
        found = (
            (path.relative_to(self.root).as_posix(), path) for path in paths if not _is_temporary(path.name)
        )
        for key, path in sorted(found):
            if key.startswith(prefix) and path.is_file():
                yield ObjectInfo(key=key, size_bytes=path.stat().st_size)

    def exists(self, key: str) -> bool:
        with self._told(key, "looked up"):
            return (self.root / _checked_key(key)).is_file()

    def read(self, key: str) -> bytes:
        with self._told(key, "read"):
            return (self.root / _checked_key(key)).read_bytes()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with self._told(key, "read"), (self.root / _checked_key(key)).open("rb") as stream:
            stream.seek(start)
            return stream.read(length)

    def write(self, key: str, data: bytes) -> None:
        target = self.root / _checked_key(key)
        temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
        with self._told(key, "written"):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with temporary.open("wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def delete(self, key: str) -> None:
        with self._told(key, "deleted"):
            (self.root / _checked_key(key)).unlink(missing_ok=True)

    @contextmanager
    def _told(self, key: str, verb: str) -> Iterator[None]:
        """Turns what the operating system raises into one sentence."""
        try:
            yield
        except OSError as error:
            found = error.strerror or str(error)
            raise StorageError(
                f"'{self.uri}/{key}' cannot be {verb} ({found}); check the path, the rights and the space"
            ) from error


def _walk(start: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders below `start` with their files, links followed (data sets are often put together by links)."""
    seen: set[str] = set()
    for folder, below, names in os.walk(start, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up
            below.clear()
            continue
        seen.add(real)
        yield Path(folder), names


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


class S3Storage:
    """A prefix of an S3 bucket, through boto3; each process makes its own client on first use."""

    def __init__(self, uri: str) -> None:
        match = re.fullmatch(r"s3://([^/]+)/*(.*?)/*", uri)
        if match is None:
            raise UsageError(f"'{uri}' names no bucket; use s3://bucket/prefix")
        self.bucket, self.prefix = match.groups()
        self.uri = f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")
        self._client: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        full = f"{self.prefix}/{_checked_prefix(prefix)}" if self.prefix else _checked_prefix(prefix)
        skip = len(self.prefix) + 1 if self.prefix else 0
        with self._told(prefix, "listed"):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=full)
            found = [
                ObjectInfo(key=item["Key"][skip:], size_bytes=item["Size"])
                for page in pages
                for item in page.get("Contents", ())
                if not item["Key"].endswith("/")
            ]
        # Not every server sorts by the whole key: some go folder by folder.
        yield from sorted(found, key=lambda info: info.key)

    def exists(self, key: str) -> bool:
        from botocore.exceptions import ClientError

        with self._told(key, "looked up"):
            try:
                self._s3.head_object(Bucket=self.bucket, Key=self._full(key))
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return False
                raise
        return True

    def read(self, key: str) -> bytes:
        with self._told(key, "read"):
            body: bytes = self._s3.get_object(Bucket=self.bucket, Key=self._full(key))["Body"].read()
        return body

    def read_range(self, key: str, start: int, length: int) -> bytes:
        from botocore.exceptions import ClientError

        if length <= 0:
            return b""
        span = f"bytes={start}-{start + length - 1}"
        with self._told(key, "read"):
            try:
                reply = self._s3.get_object(Bucket=self.bucket, Key=self._full(key), Range=span)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 416:
                    return b""
                raise
            body: bytes = reply["Body"].read(length)
        return body

    def write(self, key: str, data: bytes) -> None:
        with self._told(key, "written"):
            self._s3.put_object(Bucket=self.bucket, Key=self._full(key), Body=data)

    def delete(self, key: str) -> None:
        with self._told(key, "deleted"):
            self._s3.delete_object(Bucket=self.bucket, Key=self._full(key))

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{_checked_key(key)}" if self.prefix else _checked_key(key)

    @property
    def _s3(self) -> Any:
        if self._client is None:
            import boto3
            from botocore.config import Config

            # Path style: self-hosted stores rarely have a name for every bucket.
            style = {"addressing_style": "path"} if os.environ.get("AWS_ENDPOINT_URL") else {}
            # A store that is not there is told in seconds; one that is busy gets three more tries.
            retries = {"mode": "standard", "max_attempts": 4}
            config = Config(s3=style, retries=retries, connect_timeout=5)
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
            self._client = boto3.client("s3", config=config, region_name=region)
        return self._client

    @contextmanager
    def _told(self, key: str, verb: str) -> Iterator[None]:
        """Turns what botocore raises into one sentence."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            status = error.response.get("Error", {})
            found = f"{status.get('Code', 'error')}: {status.get('Message', '')}".strip(": ").rstrip(".")
            cause: Exception = error
        # A ValueError is how boto3 says that AWS_ENDPOINT_URL is not a URL.
        except (BotoCoreError, ValueError) as error:
            found, cause = str(error).rstrip("."), error
        else:
            return
        raise StorageError(
            f"'{join_uri(self.uri, key)}' cannot be {verb} ({found}); check the name, AWS_ENDPOINT_URL and the AWS "
            f"credentials"
        ) from cause
