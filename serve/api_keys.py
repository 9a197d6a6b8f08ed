"""API keys of the endpoint: a file of their hashes, and pure ASGI middleware that asks for one."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import math
import time
from collections.abc import Callable, Mapping

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from glioray.errors import StorageError, UsageError
from glioray.storage import open_storage, split_uri

_log = logging.getLogger("glioray.serve")

KEYS_VARIABLE = "GLIORAY_API_KEYS"
KEY_NAME = "glioray.key"
"""Of the scope: the name of the key that a request came with."""

_RELOAD_S = 5.0
_PROTECTED = "/v1/"


class ApiKey(BaseModel):
    """A key as the file holds it.

    Attributes:
        sha256: of the key, which is random, so that a slow hash would add nothing.
        per_minute: requests in a minute at most; None for no limit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    per_minute: int | None = Field(None, ge=1)


Keys = Mapping[str, ApiKey]
_KEYS: TypeAdapter[dict[str, ApiKey]] = TypeAdapter(dict[str, ApiKey])


def hash_key(key: str) -> str:
    """The hash of a key that the file holds."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(uri: str, *, must_exist: bool = True) -> dict[str, ApiKey]:
    """The keys of a file, by their names.

    Raises:
        UsageError: the file is missing where it must exist, or holds something else.
    """
    parent, name = split_uri(uri)
    storage = open_storage(parent)
    try:
        if not must_exist and not storage.exists(name):
            return {}
        return _KEYS.validate_json(storage.read(name))
    except StorageError as error:
        raise UsageError(f"the file of API keys, by default {KEYS_VARIABLE}: {error}") from error
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        found = f"{uri} holds no API keys ({where or 'it is no JSON object'}: {error.errors()[0]['msg']})"
        raise UsageError(f"{found}; make it with serve/keys.py") from None


def write_keys(uri: str, keys: Keys) -> None:
    """Write a file of keys, atomically.

    Raises:
        StorageError: it cannot be written.
    """
    parent, name = split_uri(uri)
    values = {who: key.model_dump(exclude_none=True) for who, key in keys.items()}
    open_storage(parent).write(name, json.dumps(values, indent=2).encode())


class KeyFile:
    """The keys of a file, which is read again every few seconds; a file that cannot be read leaves them as they are.

    Raises:
        UsageError: as `read_keys`.
    """

    def __init__(self, uri: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.uri, self.clock = uri, clock
        self.keys: Keys = read_keys(uri)
        self.when = clock()

    async def find(self, key: str) -> tuple[str, ApiKey] | None:
        """Name and entry of a key; takes as long for any key."""
        if self.clock() - self.when >= _RELOAD_S:
            self.when = self.clock()
            try:
                self.keys = await asyncio.to_thread(read_keys, self.uri)
            except UsageError as error:
                _log.warning("the API keys are those of before (%s)", error)
        digest, found = hash_key(key), None
        for name, entry in self.keys.items():
            if hmac.compare_digest(digest, entry.sha256):
                found = name, entry
        return found


class RequireKey:
    """Answers requests below /v1/, and those that send something, with a key of the file only.

    The page and its files, and whether the endpoint is ready, need none.

    Args:
        app: behind it.
        keys: that are taken.
        clock: in seconds.
    """

    def __init__(self, app: ASGIApp, keys: KeyFile, clock: Callable[[], float] = time.monotonic) -> None:
        self.app, self.keys, self.clock = app, keys, clock
        self.buckets: dict[str, _Bucket] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_protected(scope):
            await self.app(scope, receive, send)
            return
        sent = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        scheme, _, key = (sent or b"").decode("latin-1").partition(" ")
        found = await self.keys.find(key.strip()) if scheme.lower() == "bearer" else None
        if found is None:
            what = "the API key is not known" if sent else "an API key is needed"
            detail = f"{what}; send the header 'Authorization: Bearer KEY' with one of this endpoint"
            await _refuse(401, detail, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
            return
        name, entry = found
        scope[KEY_NAME] = name
        wait_s = self._wait_s(name, entry)
        if wait_s > 0:
            wait = str(math.ceil(wait_s))
            detail = f"the API key has had its {entry.per_minute} requests a minute; retry in {wait} s"
            await _refuse(429, detail, {"Retry-After": wait})(scope, receive, send)
            return
        # No process behind this one needs the key.
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"authorization"]
        await self.app(scope, receive, send)

    def _wait_s(self, name: str, entry: ApiKey) -> float:
        """Take a request from a key's minute; the seconds until there is one, 0 where there is."""
        if entry.per_minute is None:
            return 0.0
        bucket = self.buckets.get(name)
        if bucket is None or bucket.per_minute != entry.per_minute:
            bucket = self.buckets[name] = _Bucket(entry.per_minute, self.clock())
        return bucket.take(self.clock())


class _Bucket:
    """A minute's requests, which come back evenly."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute, self.left, self.when = per_minute, float(per_minute), now

    def take(self, now: float) -> float:
        rate = self.per_minute / 60
        self.left = min(self.per_minute, self.left + rate * (now - self.when))
        self.when = now
        if self.left < 1:
            return (1 - self.left) / rate
        self.left -= 1
        return 0.0


def _is_protected(scope: Scope) -> bool:
    # Servers differ in whether the path has the prefix that the application is mounted at.
    paths = scope["path"], scope["path"].removeprefix(scope.get("root_path", ""))
    return scope["method"] not in ("GET", "HEAD") or any(path.startswith(_PROTECTED) for path in paths)


def _refuse(status: int, detail: str, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)
