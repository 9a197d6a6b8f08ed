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
        """Every object whose key starts with `prefix`, sorted by key; directory markers are left out."""

    def exists(self, key: str) -> bool:
        """Whether an object of that key is there."""

    def read(self, key: str) -> bytes:
        """The whole object. Raises: StorageError when it is not there."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """At most `length` bytes from `start` on; fewer at the object's end."""

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
    scheme = text.split("://", 1)[0].lower() if "://" in text else ""
    if scheme == "s3":
        return S3Storage(text)
    if scheme in ("", "file"):
        return FileStorage(text)
    raise UsageError(f"'{text}' has the scheme '{scheme}'; use a folder, file:// or s3://bucket/prefix")


def join_uri(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it, with single slashes between them."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts if part.strip("/"))])


def split_uri(uri: str) -> tuple[str, str]:
    """A URI as (its parent, its last part): where one object of a storage is named by a user."""
    parent, _, name = uri.rstrip("/").rpartition("/")
    return parent or "/" if uri.startswith("/") else parent or ".", name


def is_local(uri: str) -> bool:
    """Whether the URI names a folder of this machine."""
    return not uri.startswith("s3://")


def _checked_key(key: str) -> str:
    if key.startswith("/") or ".." in key.split("/") or not key:
        raise StorageError(f"'{key}' is not a key below the storage's root; use a relative path without '..'")
    return key


class FileStorage:
    """A folder. It need not exist before the first write."""

    def __init__(self, uri: str) -> None:
        path = unquote(urlsplit(uri).path) if uri.startswith("file://") else uri
        self.root = Path(path).expanduser().absolute()
        self.uri = str(self.root)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if not self.root.is_dir():
            raise StorageError(f"'{self.root}' is not a folder; check the path")
        start = self.root / prefix.rpartition("/")[0]
        paths = (Path(folder) / name for folder, _, names in os.walk(start) for name in names)
        found = ((path.relative_to(self.root).as_posix(), path) for path in paths if not _is_temporary(path.name))
        for key, path in sorted(found):
            if key.startswith(prefix) and path.is_file():
                yield ObjectInfo(key=key, size_bytes=path.stat().st_size)

    def exists(self, key: str) -> bool:
        return (self.root / _checked_key(key)).is_file()

    def read(self, key: str) -> bytes:
        try:
            return (self.root / _checked_key(key)).read_bytes()
        except OSError as error:
            raise StorageError(f"'{self.uri}/{key}' cannot be read: {error.strerror}; check path and rights") from error

    def read_range(self, key: str, start: int, length: int) -> bytes:
        try:
            with (self.root / _checked_key(key)).open("rb") as stream:
                stream.seek(start)
                return stream.read(length)
        except OSError as error:
            raise StorageError(f"'{self.uri}/{key}' cannot be read: {error.strerror}; check path and rights") from error

    def write(self, key: str, data: bytes) -> None:
        target = self.root / _checked_key(key)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StorageError(f"'{target}' cannot be written: {error.strerror}; check space and rights") from error

    def delete(self, key: str) -> None:
        (self.root / _checked_key(key)).unlink(missing_ok=True)


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
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"{self.prefix}/{prefix}" if self.prefix else prefix
        )
        skip = len(self.prefix) + 1 if self.prefix else 0
        with _told(f"{self.uri}/{prefix}", "listed"):
            for page in pages:
                for item in page.get("Contents", ()):
                    if not item["Key"].endswith("/"):
                        yield ObjectInfo(key=item["Key"][skip:], size_bytes=item["Size"])

    def exists(self, key: str) -> bool:
        from botocore.exceptions import ClientError

        with _told(f"{self.uri}/{key}", "looked up"):
            try:
                self._s3.head_object(Bucket=self.bucket, Key=self._full(key))
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return False
                raise
        return True

    def read(self, key: str) -> bytes:
        with _told(f"{self.uri}/{key}", "read"):
            body: bytes = self._s3.get_object(Bucket=self.bucket, Key=self._full(key))["Body"].read()
        return body

    def read_range(self, key: str, start: int, length: int) -> bytes:
        span = f"bytes={start}-{start + length - 1}"
        with _told(f"{self.uri}/{key}", "read"):
            body: bytes = self._s3.get_object(Bucket=self.bucket, Key=self._full(key), Range=span)["Body"].read(length)
        return body

    def write(self, key: str, data: bytes) -> None:
        with _told(f"{self.uri}/{key}", "written"):
            self._s3.put_object(Bucket=self.bucket, Key=self._full(key), Body=data)

    def delete(self, key: str) -> None:
        with _told(f"{self.uri}/{key}", "deleted"):
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
            config = Config(s3=style, retries={"mode": "standard", "max_attempts": 5}, connect_timeout=10)
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
            self._client = boto3.client("s3", config=config, region_name=region)
        return self._client


class _told:  # noqa: N801  (a context manager that reads as a verb)
    """Turns what botocore raises into one sentence."""

    def __init__(self, where: str, verb: str) -> None:
        self.where, self.verb = where, verb

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        if isinstance(error, ClientError):
            status = error.response.get("Error", {})
            found = f"{status.get('Code', 'error')}: {status.get('Message', '')}".strip(": ")
        elif isinstance(error, BotoCoreError):
            found = str(error).rstrip(".")
        else:
            return
        raise StorageError(
            f"'{self.where}' cannot be {self.verb} ({found}); check the name, AWS_ENDPOINT_URL and the AWS credentials"
        ) from error
