"""Limits of a request's body, as pure ASGI middleware: how large it is, and how long it takes to arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SMALL_BYTES = 2**16


class BodyLimits:
    """Refuses a body while it is read: as larger than `max_bytes` (413), or as not here after `timeout_s` (408).

    Args:
        app: behind it.
        max_bytes: of a body that is sent to one of `paths`; others have 64 KiB.
        timeout_s: seconds for it to arrive.
        paths: of routes that take files.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float, paths: Collection[str]) -> None:
        self.app, self.max_bytes, self.timeout_s, self.paths = app, max_bytes, timeout_s, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = _Body(self, scope, receive).receive
        await self.app(scope, receive, send)


class _Body:
    """Counts and times what the application receives; its errors are raised where the application reads."""

    def __init__(self, limits: BodyLimits, scope: Scope, receive: Receive) -> None:
        self.limits, self.source = limits, receive
        stated = dict(scope["headers"]).get(b"content-length", b"")
        self.stated_bytes = int(stated) if stated.isdigit() else 0
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        self.max_bytes = limits.max_bytes if path in limits.paths else _SMALL_BYTES
        self.num_bytes = 0
        self.deadline: float | None = None
        self.complete = False

    async def receive(self) -> Message:
        if self.complete:  # what follows the body, such as the client's end, has all the time it wants
            return await self.source()
        self._check_size(self.stated_bytes)
        if self.deadline is None:
            self.deadline = asyncio.get_running_loop().time() + self.limits.timeout_s
        try:
            async with asyncio.timeout_at(self.deadline):
                message = await self.source()
        except TimeoutError as error:
            limit = f"{self.limits.timeout_s:g} s"
            raise HTTPException(408, f"the body had not arrived after {limit}; send it again") from error
        self.num_bytes += len(message.get("body", b""))
        self._check_size(self.num_bytes)
        self.complete = not message.get("more_body", False)
        return message

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            limit = f"{self.max_bytes / 1e6:g} MB"
            raise HTTPException(
                413, f"the body is larger than {limit}; compress the files as .nii.gz or crop them"
            )
