"""One interface over a folder and an S3 bucket.

A `Storage` is rooted at a URI; keys are relative, use forward slashes and never leave the root.
`write` is atomic: a reader sees the old object or the new one, never a part. The endpoint and the
credentials come from the standard AWS environment variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...).
A `Storage` holds no secrets, so it can be pickled and sent to a worker.
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import unquote

from glioray.errors import StorageError, UsageError
from glioray.machine import bypass_proxies, expand_path

# Objects from this size on travel in parallel parts of it; one request can send at most 5 GiB.
_PART_BYTES = 16 << 20
DOWNLOAD_ATTEMPTS = 5
# A missing server fails within seconds; a busy one is tried three more times, with growing pauses.
REQUEST_ATTEMPTS, CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 4, 5.0, 60.0

# Of a file system that is elsewhere; any other error stays until somebody acts.
_PASSING_ERRNOS = {
    errno.EAGAIN, errno.EBUSY, errno.EIO, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.EREMOTEIO,
}  # fmt: skip
# Beside status 5xx, with which S3 says that it is out of order or too busy.
_PASSING_STATUSES = (408, 409, 429)
_PASSING_CODES = (
    "RequestTimeout",
    "RequestTimeoutException",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
)


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """An object in a listing.

    Attributes:
        key: relative to the storage's root.
        size_bytes: of its content.
        stamp: differs after every change that the store notices: a file's times, an object's ETag.
    """

    key: str
    size_bytes: int
    stamp: str = ""


@dataclass(frozen=True, kw_only=True)
class Unlisted:
    """A file or a folder that a listing cannot give.

    Attributes:
        key: of the file or folder, printable.
        found: why, continuing a sentence that begins with the name.
        advice: what to do about it.
    """

    key: str
    found: str
    advice: str


class Storage(Protocol):
    """A tree of objects below one URI."""

    uri: str

    def list(
        self, prefix: str = "", *, unlisted: MutableSequence[Unlisted] | None = None
    ) -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, sorted by key, without directory markers.

        Args:
            prefix: of the keys.
            unlisted: collects what cannot be listed: unreadable folders and files, links to nothing, names that are
                not UTF-8. By default the first one is raised.

        Raises: StorageError if the folder or the bucket does not exist, or a part of it cannot be listed.
        """

    def exists(self, key: str) -> bool:
        """Whether the object exists."""

    def read(self, key: str) -> bytes:
        """The whole object. Raises: StorageError if it does not exist."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """At most `length` bytes from offset `start`; fewer at the object's end, none past it."""

    def download(self, key: str, path: Path) -> None:
        """Stream the object into a local file, atomically and without holding all of it in memory.

        Raises: StorageError if the object does not exist or the file cannot be written.
        """

    def write(self, key: str, data: bytes | BinaryIO) -> None:
        """Publish `data` under `key`, atomically; streams are not held in memory as a whole.

        The stream may be left closed.
        """

    def delete(self, key: str) -> None:
        """Delete the object, if it exists."""

    def check_writable(self) -> None:
        """Try whether objects can be written; leaves none, and no folder that was not there.

        Raises: StorageError if not.
        """


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


def join_uri(uri: str, *parts: str) -> str:
    """`uri` followed by `parts`, joined by single slashes."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts if part.strip("/"))])


def split_uri(uri: str) -> tuple[str, str]:
    """Split an object's URI into its parent's URI and its name.

    `s3://b/p/m.json` gives `s3://b/p` and `m.json`.

    Raises:
        UsageError: the URI has no name below a folder or a bucket.
    """
    scheme, separator, path = uri.rpartition("://")
    parent, slash, name = path.rstrip("/").rpartition("/")
    if not name or (scheme == "s3" and not slash):
        raise UsageError(f"'{uri}' names no object; add a name after the folder or the bucket")
    if not parent:
        parent = "/" if slash else "."
    return f"{scheme}{separator}{parent}", name


def printable(name: str) -> str:
    """The name of a file as text; bytes that are not UTF-8 as escapes such as `\\xe9`."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def is_local(uri: str) -> bool:
    """Whether the URI is a folder on this machine."""
    return not uri.startswith("s3://")


def sqlite_uri(path: Path) -> str:
    """The address of a SQLite file for SQLAlchemy, which decodes it and ends it at a question mark."""
    return f"sqlite:///{path.as_posix().replace('%', '%25').replace('?', '%3F')}"


def _file_path(uri: str) -> str:
    """The path of a `file:` URI, which may have '#' and '?' as they are.

    Raises:
        UsageError: it names another host, as `file://data/x` does where `file:///data/x` is meant.
    """
    host, path = re.fullmatch("file:(?://([^/]*))?(/.*)?", uri, re.DOTALL).groups()  # type: ignore[union-attr]
    if host not in (None, "", "localhost") or path is None:
        raise UsageError(f"'{uri}' is not a path on this machine; write it as file:///{host}{path or ''}")
    return unquote(path)


def _validate_key(key: str) -> str:
    if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise StorageError(
            f"{key!r} is not a key below the storage's root; use a relative path without '..' or '//'"
        )
    return key


def _validate_prefix(prefix: str) -> str:
    # A prefix may end anywhere within a name, or at a slash.
    _validate_key(f"{prefix}x")
    return prefix


@contextmanager
def _wrap_os_errors(name: str | Path, action: str) -> Iterator[None]:
    """Turn an error of the operating system into a StorageError of one sentence."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"'{name}' cannot be {action} ({error.strerror or error}); "
            "check the path, the permissions and the free space",
            error.errno in _PASSING_ERRNOS,
        ) from error


def list_written(storage: Storage) -> dict[str, int]:
    """Key -> size in bytes of the objects of a place that need not have been written to yet.

    Raises:
        StorageError: it cannot be listed.
    """
    if isinstance(storage, FileStorage) and not storage.root.exists():
        return {}
    return {info.key: info.size_bytes for info in storage.list()}


@contextmanager
def _open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` if the block ends without an error."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class FileStorage:
    """A folder. It need not exist before the first write."""

    def __init__(self, uri: str) -> None:
        self.root = expand_path(_file_path(uri) if uri.startswith("file:/") else uri)
        self.uri = str(self.root)

    def list(
        self, prefix: str = "", *, unlisted: MutableSequence[Unlisted] | None = None
    ) -> Iterator[ObjectInfo]:
        with _wrap_os_errors(self.root, "listed"):
            is_folder = self.root.is_dir()
        if not is_folder:
            raise StorageError(f"'{self.root}' is not a folder; check the path")
        failed: list[Unlisted] = []
        start = _validate_prefix(prefix).rpartition("/")[0]
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
            return (self.root / _validate_key(key)).is_file()

    def read(self, key: str) -> bytes:
        with self._wrap_errors(key, "read"):
            return (self.root / _validate_key(key)).read_bytes()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with self._wrap_errors(key, "read"), (self.root / _validate_key(key)).open("rb") as stream:
            stream.seek(start)
            return stream.read(length)

    def download(self, key: str, path: Path) -> None:
        with (
            self._wrap_errors(key, "read"),
            (self.root / _validate_key(key)).open("rb") as source,
            _wrap_os_errors(path, "written"),
            _open_atomic(path) as target,
        ):
            shutil.copyfileobj(source, target)

    def write(self, key: str, data: bytes | BinaryIO) -> None:
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        path = self.root / _validate_key(key)
        with self._wrap_errors(key, "written"), _open_atomic(path) as target:
            shutil.copyfileobj(source, target)

    def delete(self, key: str) -> None:
        with self._wrap_errors(key, "deleted"):
            (self.root / _validate_key(key)).unlink(missing_ok=True)

    def check_writable(self) -> None:
        made: list[Path] = []
        try:
            with _wrap_os_errors(self.root, "written"):
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
        return _wrap_os_errors(f"{self.uri}/{key}", action)


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


class S3Storage:
    """A prefix of an S3 bucket; each process creates its own client on first use."""

    def __init__(self, uri: str) -> None:
        match = re.fullmatch(r"s3://([^/]+)/*(.*?)/*", uri)
        if match is None:
            raise UsageError(f"'{uri}' names no bucket; use s3://bucket/prefix")
        self.bucket, self.prefix = match.groups()
        self.uri = f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")
        self._client: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def list(
        self, prefix: str = "", *, unlisted: MutableSequence[Unlisted] | None = None
    ) -> Iterator[ObjectInfo]:
        full = f"{self.prefix}/{_validate_prefix(prefix)}" if self.prefix else _validate_prefix(prefix)
        skip = len(self.prefix) + 1 if self.prefix else 0
        with self._wrap_errors(prefix, "listed"):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=full)
            found = [
                ObjectInfo(key=item["Key"][skip:], size_bytes=item["Size"], stamp=item.get("ETag", ""))
                for page in pages
                for item in page.get("Contents", ())
                if not item["Key"].endswith("/")
            ]
        # Not every server sorts by the whole key: some sort folder by folder.
        yield from sorted(found, key=lambda info: info.key)

    def exists(self, key: str) -> bool:
        from botocore.exceptions import ClientError

        with self._wrap_errors(key, "looked up"):
            try:
                self._s3.head_object(Bucket=self.bucket, Key=self._full_key(key))
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return False
                raise
        return True

    def read(self, key: str) -> bytes:
        def ask() -> bytes:
            reply = self._s3.get_object(Bucket=self.bucket, Key=self._full_key(key))
            if reply["ContentLength"] <= _PART_BYTES:  # one request, where `_fetch` needs two
                body: bytes = reply["Body"].read()
                return body
            reply["Body"].close()
            buffer = io.BytesIO()
            self._fetch(key, buffer)
            return buffer.getvalue()

        with self._wrap_errors(key, "read"):
            return _whole(ask)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        from botocore.exceptions import ClientError, IncompleteReadError

        if length <= 0:
            return b""
        span = f"bytes={start}-{start + length - 1}"

        def ask() -> bytes:
            reply = self._s3.get_object(Bucket=self.bucket, Key=self._full_key(key), Range=span)
            body: bytes = reply["Body"].read(length)
            expected = min(length, reply["ContentLength"])
            if len(body) < expected:
                raise IncompleteReadError(actual_bytes=len(body), expected_bytes=expected)
            return body

        with self._wrap_errors(key, "read"):
            try:
                return _whole(ask)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 416:
                    return b""
                raise

    def download(self, key: str, path: Path) -> None:
        with _wrap_os_errors(path, "written"), _open_atomic(path) as target, self._wrap_errors(key, "read"):
            self._fetch(key, target)

    def write(self, key: str, data: bytes | BinaryIO) -> None:
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        # The stream's own errors are not boto3's.
        with _wrap_os_errors(join_uri(self.uri, key), "written"), self._wrap_errors(key, "written"):
            self._s3.upload_fileobj(source, self.bucket, self._full_key(key), Config=_transfer_config())

    def delete(self, key: str) -> None:
        with self._wrap_errors(key, "deleted"):
            self._s3.delete_object(Bucket=self.bucket, Key=self._full_key(key))

    def check_writable(self) -> None:
        # An upload that is never completed asks for the right to write, and leaves nothing.
        key = self._full_key(f".{secrets.token_hex(8)}.tmp")
        with self._wrap_errors("", "written"):
            self._s3.head_bucket(Bucket=self.bucket)  # some servers make a bucket that is missing
            upload = self._s3.create_multipart_upload(Bucket=self.bucket, Key=key)
            self._s3.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload["UploadId"])

    def _fetch(self, key: str, target: BinaryIO) -> None:
        """Stream an object into `target`, in parallel ranges if it is large."""
        from s3transfer.exceptions import S3DownloadFailedError

        for attempt in range(DOWNLOAD_ATTEMPTS):
            target.seek(0)
            target.truncate()
            try:
                return self._s3.download_fileobj(
                    self.bucket, self._full_key(key), target, Config=_transfer_config()
                )
            # The object was replaced between two ranges.
            except S3DownloadFailedError:
                if attempt == DOWNLOAD_ATTEMPTS - 1:
                    raise

    def _full_key(self, key: str) -> str:
        return f"{self.prefix}/{_validate_key(key)}" if self.prefix else _validate_key(key)

    @property
    def _s3(self) -> Any:
        if self._client is None:
            import boto3
            from botocore.config import Config

            bypass_proxies()
            # Path style: self-hosted stores rarely resolve a host name per bucket.
            style = {"addressing_style": "path"} if os.environ.get("AWS_ENDPOINT_URL") else {}
            config = Config(
                s3=style,
                retries={"mode": "standard", "max_attempts": REQUEST_ATTEMPTS},
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
            )
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
            self._client = boto3.client("s3", config=config, region_name=region)
        return self._client

    @contextmanager
    def _wrap_errors(self, key: str, action: str) -> Iterator[None]:
        """Turn an error of boto3 into a StorageError of one sentence."""
        from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError
        from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError

        try:
            yield
        except ClientError as error:
            status = error.response.get("Error", {})
            code, number = status.get("Code", "error"), error.response["ResponseMetadata"]["HTTPStatusCode"]
            found = f"{code}: {status.get('Message', '')}".strip(": ").rstrip(".")
            may_pass = number >= 500 or number in _PASSING_STATUSES or code in _PASSING_CODES
            cause: Exception = error
        # boto3 raises a ValueError if AWS_ENDPOINT_URL is not a URL.
        except (BotoCoreError, RetriesExceededError, S3DownloadFailedError, ValueError) as error:
            found, cause = str(error).rstrip("."), error
            may_pass = isinstance(
                error,
                (
                    ConnectionError,
                    HTTPClientError,
                    RetriesExceededError,
                    S3DownloadFailedError,
                    *_broken_off(),
                ),
            )
        else:
            return
        raise StorageError(
            f"'{join_uri(self.uri, key)}' cannot be {action} ({found}); check the name, AWS_ENDPOINT_URL and the "
            "AWS credentials",
            may_pass,
        ) from cause


def _broken_off() -> tuple[type[Exception], ...]:
    """The errors of a reply of which only a part came."""
    from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

    return (IncompleteReadError, ReadTimeoutError, ResponseStreamingError)


def _whole(ask: Callable[[], bytes]) -> bytes:
    """The body of a reply, asked for again where it breaks off: boto3 tries requests again, but not their bodies."""
    for _ in range(DOWNLOAD_ATTEMPTS - 1):
        with suppress(*_broken_off()):
            return ask()
    return ask()


def _transfer_config() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES)
