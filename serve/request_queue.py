"""Where requests wait: so many at once, worked off one after the other, each within its time."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from fastapi import HTTPException, Response

from glioray.errors import CaseError, ModelError
from serve.schemas import Settings
from serve.watch import ModelWatch, Served

_log = logging.getLogger("glioray.serve")

_RETRY_AFTER = {"Retry-After": "5"}

T = TypeVar("T")
M = TypeVar("M")


class RequestQueue:
    """Takes cases in, as many as settings allow, and has them worked on one after the other beside the event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        # Counts from before the body is read until the work has ended, also after the client has gone:
        # what a replica holds stays bounded.
        self.places = threading.BoundedSemaphore(settings.max_pending)
        self.pool = ThreadPoolExecutor(1, "worker", _set_threads, (settings.num_threads,))

    def close(self) -> None:
        """Begin nothing more."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    async def handle(
        self, read: Callable[[], Awaitable[T]], work: Callable[[T], Response], *, done: str
    ) -> Response:
        """The answer to one request.

        Args:
            read: brings in the request's body; runs on the event loop.
            work: makes the answer of what was read; runs on the one thread of this desk.
            done: what then has happened to the case, for messages: "segmented".

        Raises:
            HTTPException: what `read` raises; 408, 429 and 503 where time or places run out; and of `work` whatever
                went wrong, in one sentence.
        """
        if not self.places.acquire(blocking=False):
            found = f"as many cases are being worked on as fit ({self.settings.max_pending})"
            raise HTTPException(429, f"{found}; try again in some seconds", _RETRY_AFTER)
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                body = await read()
            future = self.pool.submit(_answer, work, body)
        except TimeoutError as error:
            self.places.release()
            limit = f"{self.settings.timeout_s:g} s"
            raise HTTPException(408, f"the body had not arrived after {limit}; send it again") from error
        except BaseException:
            self.places.release()
            raise
        future.add_done_callback(lambda _: self.places.release())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.settings.timeout_s)
        except TimeoutError as error:
            found = f"the case was not {done} within {self.settings.timeout_s:g} s"
            raise HTTPException(503, f"{found}; try again when there is less to do", _RETRY_AFTER) from error


def served_by(watch: ModelWatch[M]) -> Served[M]:
    """The model that a watch holds now.

    Raises:
        HTTPException: 503 with the watch's reason, where it holds none.
    """
    if watch.served is None:
        raise HTTPException(503, watch.reason, _RETRY_AFTER)
    return watch.served


def _set_threads(num_threads: int | None) -> None:
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def _answer(work: Callable[[T], Response], body: T) -> Response:
    """What `work` makes; what cannot be done becomes an HTTPException of one sentence."""
    try:
        return work(body)
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
