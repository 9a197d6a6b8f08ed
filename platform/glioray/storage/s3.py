"""A storage that is a prefix of an S3 bucket."""

from __future__ import annotations

import io
import os
import re
import secrets
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from glioray.errors import StorageError, UsageError
from glioray.machine import bypass_proxies
from glioray.storage.interface import (
    ObjectInfo,
    Unlisted,
    join_uri,
    open_atomic,
    validate_key,
    validate_prefix,
    wrap_os_errors,
)

# Objects from this size on travel in parallel parts of it; one request can send at most 5 GiB.
_PART_BYTES = 16 << 20
DOWNLOAD_ATTEMPTS = 5
# A missing server fails within seconds; a busy one is tried three more times, with growing pauses.
REQUEST_ATTEMPTS, CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 4, 5.0, 60.0


# Beside status 5xx, with which S3 says that it is out of order or too busy.
_PASSING_STATUSES = (408, 409, 429)
_PASSING_CODES = (
    "RequestTimeout",
    "RequestTimeoutException",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
)


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
        full = f"{self.prefix}/{validate_prefix(prefix)}" if self.prefix else validate_prefix(prefix)
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
        with wrap_os_errors(path, "written"), open_atomic(path) as target, self._wrap_errors(key, "read"):
            self._fetch(key, target)

    def write(self, key: str, data: bytes | BinaryIO) -> None:
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        # The stream's own errors are not boto3's.
        with wrap_os_errors(join_uri(self.uri, key), "written"), self._wrap_errors(key, "written"):
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
        return f"{self.prefix}/{validate_key(key)}" if self.prefix else validate_key(key)

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
