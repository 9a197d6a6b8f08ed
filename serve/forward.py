"""Whole HTTP requests as values, so that one process can pass them to another's routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class WholeRequest:
    """A request with its body."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes


@dataclass(frozen=True)
class WholeAnswer:
    """An answer with its body."""

    status: int
    headers: Headers
    body: bytes


Forward = Callable[[WholeRequest], Awaitable[WholeAnswer]]
"""Sends a request to the routes of one task, wherever they are."""


async def call_app(app: ASGIApp, request: WholeRequest) -> WholeAnswer:
    """Answer a request by an ASGI application in this process."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode(),
        "query_string": request.query,
        "root_path": "",
        "headers": request.headers,
        "client": None,
        "server": None,
    }
    bodies = [request.body]
    parts: list[bytes] = []
    started: list[Message] = []

    async def receive() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            started.append(message)
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return WholeAnswer(started[0]["status"], list(started[0]["headers"]), b"".join(parts))
