"""Work that ends early once nobody waits for its result."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_stop: ContextVar[threading.Event | None] = ContextVar("stop", default=None)


class WorkCancelledError(Exception):
    """Nobody waits for the work any more."""


@contextmanager
def stop_on(event: threading.Event) -> Iterator[None]:
    """Let `raise_if_cancelled` end the work of a block once the event is set.

    It holds for the thread that enters it, and not for threads that the work starts.
    """
    token = _stop.set(event)
    try:
        yield
    finally:
        _stop.reset(token)


def raise_if_cancelled() -> None:
    """End work that nobody waits for: long work calls this between its parts, such as batches of slices.

    Raises:
        WorkCancelledError: the event of `stop_on` is set; never outside of it.
    """
    event = _stop.get()
    if event is not None and event.is_set():
        raise WorkCancelledError
