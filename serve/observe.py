"""Request ids, one log line for each refusal or failure, and measurements, as pure ASGI middleware."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from contextvars import ContextVar

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api_keys import KEY_NAME
from serve.metrics import Recorder

_log = logging.getLogger("glioray.serve")

REQUEST_ID_HEADER = "X-Request-Id"
request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""Of the request that is worked on, for log lines."""

_ID = REQUEST_ID_HEADER.lower().encode()
_OTHER = "other"


class Observe:
    """Gives each request an id, and says and measures how it ended.

    A log line names the id, the method, the route and the status, and nothing that the client sent: the name of a file
    or an unknown field may be a patient's.

    Args:
        app: behind it.
        recorder: takes the measurements.
        tasks: path of a task's route -> the task.
        sends_id: put the id on the answer; Serve's proxy does so itself.
    """

    def __init__(
        self, app: ASGIApp, recorder: Recorder, tasks: Mapping[str, str], sends_id: bool = True
    ) -> None:
        self.app, self.recorder, self.tasks, self.sends_id = app, recorder, tasks, sends_id
        self.in_flight: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self.sends_id)
        task = self.tasks.get(exchange.path, "")
        self._add_in_flight(task, 1)
        token = request_id.set(exchange.id)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except Exception:
            _log.exception("request %s failed", exchange.id)
            if exchange.status is not None:
                raise
            detail = "the server failed on this request; its log says why"
            await JSONResponse({"detail": detail}, 500)(scope, receive, exchange.send)
        finally:
            request_id.reset(token)
            self._add_in_flight(task, -1)
            self._close(exchange, task)

    def _add_in_flight(self, task: str, number: int) -> None:
        if task:
            self.in_flight[task] += number
            self.recorder.set_in_flight(task, self.in_flight[task])

    def _close(self, exchange: _Exchange, task: str) -> None:
        route = exchange.path if task else getattr(exchange.scope.get("route"), "path", _OTHER)
        status = "cancelled" if exchange.status is None else str(exchange.status)
        self.recorder.count_request(route, task, status)
        if task and exchange.complete_s is not None and exchange.answer_s is not None:
            self.recorder.observe_latency("upload", task, exchange.complete_s - exchange.began_s)
            self.recorder.observe_latency("work", task, exchange.answer_s - exchange.complete_s)
        if exchange.status is None or exchange.status >= 400:
            level = logging.INFO if (exchange.status or 0) < 500 else logging.WARNING
            key = exchange.scope.get(KEY_NAME)
            # fmt: off
            _log.log(
                level, "request %s: %s %s: %s after %.2f s%s", exchange.id, exchange.scope["method"], route, status,
                time.monotonic() - exchange.began_s, f", key {key}" if key else "",
            )
            # fmt: on


class _Exchange:
    """A request and its answer as they pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, sends_id: bool) -> None:
        self.scope, self.source, self.target, self.sends_id = scope, receive, send, sends_id
        self.path = scope["path"].removeprefix(scope.get("root_path", ""))
        self.id = _take_id(scope)
        self.began_s = time.monotonic()
        self.complete_s: float | None = None
        self.answer_s: float | None = None
        self.status: int | None = None

    async def receive(self) -> Message:
        message = await self.source()
        if message["type"] == "http.request" and not message.get("more_body") and self.complete_s is None:
            self.complete_s = time.monotonic()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.answer_s = message["status"], time.monotonic()
            others = [header for header in message.get("headers", ()) if header[0].lower() != _ID]
            message["headers"] = [*others, (_ID, self.id.encode())] if self.sends_id else others
        await self.target(message)


def _take_id(scope: Scope) -> str:
    """The id that a client sent, or else a new one; processes behind this one find it among the headers."""
    sent = next((value for name, value in scope["headers"] if name == _ID), b"").decode("latin-1")
    found = sent if re.fullmatch(r"[A-Za-z0-9._-]{8,64}", sent) else secrets.token_hex(8)
    scope["headers"] = [
        *(header for header in scope["headers"] if header[0] != _ID),
        (_ID, found.encode()),
    ]
    return found
