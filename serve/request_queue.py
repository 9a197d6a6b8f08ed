"""The queue of a process: a bounded number of requests at once, read and then worked off one after the other."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from fastapi import HTTPException

from glioray.cancellation import WorkCancelledError, stop_on
from glioray.errors import CaseError, ModelError
from serve.observe import request_id
from serve.schemas import Settings

_log = logging.getLogger("glioray.serve")

RETRY_AFTER = {"Retry-After": "5"}

T = TypeVar("T")


class _Place:
    """A request's place: held until the request and its work have ended, also after the client has gone."""

    def __init__(self, places: threading.BoundedSemaphore) -> None:
        self.places = places
        self.num_holders = 1
        self.lock = threading.Lock()

    def hold(self, work: Future[Any]) -> None:
        with self.lock:
            self.num_holders += 1
        work.add_done_callback(lambda _: self.leave())

    def leave(self) -> None:
        with self.lock:
            self.num_holders -= 1
            is_last = self.num_holders == 0
        if is_last:
            self.places.release()


_place: ContextVar[_Place] = ContextVar("place")


class Places:
    """A bounded number of requests at once."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.free = threading.BoundedSemaphore(number)

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold a place from before a request's body is read, so that the memory of a process stays bounded.

        Raises:
            HTTPException: 429, none is free.
        """
        if not self.free.acquire(blocking=False):
            retry = f"retry in {RETRY_AFTER['Retry-After']} s"
            raise HTTPException(429, f"the queue is full (cases: {self.number}); {retry}", RETRY_AFTER)
        place = _Place(self.free)
        token = _place.set(place)
        try:
            yield
        finally:
            _place.reset(token)
            place.leave()


class RequestQueue:
    """Admits as many requests as settings allow, and works on them beside the event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.places = Places(settings.max_pending)
        self.reader = ThreadPoolExecutor(1, "reader")
        self.worker = ThreadPoolExecutor(1, "worker", _set_threads, (settings.num_threads,))

    def close(self) -> None:
        """Start no further work."""
        for pool in (self.reader, self.worker):
            pool.shutdown(wait=False, cancel_futures=True)

    async def read(self, work: Callable[[], T]) -> T:
        """Run `work` beside the worker thread, within `places.take`; see `engine.serving.Endpoint.read`.

        Where the request is cancelled or its time runs out, work that waits is not begun, and work that runs ends by
        `glioray.cancellation.raise_if_cancelled`; the request's place is free after that.

        Raises:
            HTTPException: as `run`.
        """
        return await self._wait(self.reader, work, "read")

    async def run(self, work: Callable[[], T], *, done: str) -> T:
        """Run `work` on the worker thread as `read` does; see `engine.serving.Endpoint.run`.

        Raises:
            HTTPException: 503 where time ran out; for whatever went wrong in `work`, one sentence.
        """
        return await self._wait(self.worker, work, done)

    async def _wait(self, pool: ThreadPoolExecutor, work: Callable[[], T], done: str) -> T:
        stop = threading.Event()
        future = pool.submit(_answer, work, request_id.get(), stop)
        _place.get().hold(future)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.settings.timeout_s)
        except TimeoutError as error:
            found = f"the case was not {done} within {self.settings.timeout_s:g} s"
            raise HTTPException(503, f"{found}; try again when there is less to do", RETRY_AFTER) from error
        finally:
            # Also where the client has left, which cancels this and `future`, but not what runs already.
            stop.set()


def _set_threads(num_threads: int | None) -> None:
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def _answer(work: Callable[[], T], number: str, stop: threading.Event) -> T:
    """Run the work of a request until `stop`; its errors become HTTPExceptions of one sentence."""
    try:
        with stop_on(stop):
            return work()
    except HTTPException:
        raise
    except WorkCancelledError:
        _log.info("request %s: its work was stopped, as nobody waits for it", number)
        raise
    except CaseError as error:
        where = f"{error.file} " if error.file else ""
        raise HTTPException(422, f"{where}{error.found}; {error.advice}") from error
    except ModelError as error:
        raise HTTPException(422, str(error)) from error
    except MemoryError as error:
        raise HTTPException(413, "the case needs more memory than this server has; crop it") from error
    except Exception as error:
        _log.exception("request %s: the case could not be worked on", number)
        raise HTTPException(500, "the server failed on this case; its log says why") from error
