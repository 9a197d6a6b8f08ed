"""The queue of a replica: a bounded number of requests at once, worked off one after the other."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from fastapi import HTTPException, Response

from glioray.errors import CaseError, ModelError
from serve.schemas import Settings

_log = logging.getLogger("glioray.serve")

RETRY_AFTER = {"Retry-After": "5"}


class _Place:
    """A request's place: held until its work has ended, also after the client has gone."""

    def __init__(self, places: threading.BoundedSemaphore) -> None:
        self.places = places
        self.is_passed_on = False

    def pass_on(self, work: Future[Response]) -> None:
        self.is_passed_on = True
        work.add_done_callback(lambda _: self.places.release())


_place: ContextVar[_Place] = ContextVar("place")


class RequestQueue:
    """Admits as many requests as settings allow, and works on them beside the event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.places = threading.BoundedSemaphore(settings.max_pending)
        self.pool = ThreadPoolExecutor(1, "worker", _set_threads, (settings.num_threads,))

    def close(self) -> None:
        """Start no further work."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place from before a request's body is read, so that the memory of a replica stays bounded.

        Raises:
            HTTPException: 429, the queue is full.
        """
        if not self.places.acquire(blocking=False):
            retry = f"retry in {RETRY_AFTER['Retry-After']} s"
            raise HTTPException(
                429, f"the queue is full (cases: {self.settings.max_pending}); {retry}", RETRY_AFTER
            )
        place = _Place(self.places)
        token = _place.set(place)
        try:
            yield
        finally:
            _place.reset(token)
            if not place.is_passed_on:
                self.places.release()

    async def run(self, work: Callable[[], Response], *, done: str) -> Response:
        """Run `work` on the worker thread, within `place`; see `engine.serving.Endpoint.run`.

        Raises:
            HTTPException: 503 where time ran out; for whatever went wrong in `work`, one sentence.
        """
        future = self.pool.submit(_answer, work)
        _place.get().pass_on(future)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.settings.timeout_s)
        except TimeoutError as error:
            found = f"the case was not {done} within {self.settings.timeout_s:g} s"
            raise HTTPException(503, f"{found}; try again when there is less to do", RETRY_AFTER) from error


def _set_threads(num_threads: int | None) -> None:
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def _answer(work: Callable[[], Response]) -> Response:
    """Run `work`; its errors become HTTPExceptions of one sentence."""
    try:
        return work()
    except HTTPException:
        raise
    except CaseError as error:
        where = f"{error.file} " if error.file else ""
        raise HTTPException(422, f"{where}{error.found}; {error.advice}") from error
    except ModelError as error:
        raise HTTPException(422, str(error)) from error
    except MemoryError as error:
        raise HTTPException(413, "the case needs more memory than this server has; crop it") from error
    except Exception as error:
        _log.exception("a case could not be worked on")
        raise HTTPException(500, "the server failed on this case; its log says why") from error
