"""Work stops once nobody waits for it: the client has left, or time has run out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import torch
from fastapi import HTTPException
from fastapi.testclient import TestClient
from serve.request_queue import RequestQueue
from serve.schemas import Settings
from serve.watch import ModelWatch

from glioray.cancellation import raise_if_cancelled
from glioray.cases.load import load_case_from_bytes
from glioray.tasks.segmentation.predictor import Predictor

_PATIENCE_S = 60
_IN_WORK_S = 0.3


class _Gate(torch.nn.Module):
    """A network that counts its batches, and waits in the first one while it is closed.

    Args:
        net: that answers.
        num_copies: mirrored, of each batch.
    """

    def __init__(self, net: torch.nn.Module, num_copies: int) -> None:
        super().__init__()
        self.net, self.num_copies, self.num_calls = net, num_copies, 0
        self.entered, self.opened = threading.Event(), threading.Event()

    def forward(self, *inputs: Any) -> torch.Tensor:
        self.num_calls += 1
        self.entered.set()
        assert self.opened.wait(_PATIENCE_S)
        output: torch.Tensor = self.net(*inputs)
        return output

    def take_batches(self) -> int:
        """The number of batches since the last time."""
        number, self.num_calls = self.num_calls // self.num_copies, 0
        return number

    def close(self) -> None:
        self.opened.clear()
        self.entered.clear()


@pytest.fixture(params=["segmentation", "superres"])
def model(
    request: pytest.FixtureRequest,
    watch: ModelWatch[Predictor],
    make_superres_watch: Callable[..., ModelWatch[Any]],
    files: dict[str, bytes],
) -> tuple[_Gate, Callable[[], np.ndarray]]:
    """A model's network, closed, and its work on a case, of several batches."""
    is_segmentation = request.param == "segmentation"
    served: Any = watch.served if is_segmentation else make_superres_watch("psnr").served
    assert served is not None
    case = load_case_from_bytes(files)
    served.model.batch_size, served.model._precision = 8, "fp32"
    if is_segmentation:
        gate = served.model.net = _Gate(served.model.net, 2)
        return gate, lambda: served.model.predict(case)
    gate = served.model.nets["psnr"] = _Gate(served.model.nets["psnr"], 1)
    return gate, lambda: served.model.predict(case).images


@pytest.fixture
def queue() -> RequestQueue:
    return RequestQueue(Settings(max_pending=2, timeout_s=_PATIENCE_S))


def _request(queue: RequestQueue, work: Callable[[], Any], kind: str = "run") -> Awaitable[Any]:
    """A request with a place of its own, as a route works it off."""

    async def handle() -> Any:
        with queue.places.take():
            return await (queue.read(work) if kind == "read" else queue.run(work, done="worked on"))

    return handle()


async def _entered(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, _PATIENCE_S)


async def _give_up(queue: RequestQueue, work: Callable[[], Any], kind: str, entered: threading.Event) -> None:
    """Let a client leave, or time run out, while a request's work runs."""
    if kind == "the client leaves":
        request = asyncio.ensure_future(_request(queue, work))
        await _entered(entered)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        return
    queue.settings = Settings(timeout_s=_IN_WORK_S)
    with pytest.raises(HTTPException, match=f"503: the case was not worked on within {_IN_WORK_S} s"):
        await _request(queue, work)
    queue.settings = Settings(timeout_s=_PATIENCE_S)


def _take_all(queue: RequestQueue) -> None:
    """Wait until all places are free."""
    for _ in range(queue.places.number):
        assert queue.places.free.acquire(timeout=_PATIENCE_S)
    for _ in range(queue.places.number):
        queue.places.free.release()


@pytest.mark.parametrize("how", ["the client leaves", "time runs out"])
def test_the_work_ends_at_the_next_batch(
    how: str, model: tuple[_Gate, Callable[[], np.ndarray]], queue: RequestQueue
) -> None:
    gate, work = model
    gate.opened.set()
    expected = work()
    num_batches = gate.take_batches()
    assert num_batches > 2
    gate.close()

    async def run() -> np.ndarray:
        await _give_up(queue, work, how, gate.entered)
        assert queue.places.free._value == 1
        gate.opened.set()
        await asyncio.to_thread(_take_all, queue)
        # None where the machine was so busy that time ran out before the first one.
        assert gate.take_batches() <= 1
        found: np.ndarray = await _request(queue, work)
        return found

    np.testing.assert_array_equal(asyncio.run(run()), expected)
    assert gate.take_batches() == num_batches


@pytest.mark.parametrize("kind", ["read", "run"])
def test_what_waits_is_not_begun(kind: str, queue: RequestQueue) -> None:
    entered, go_on = threading.Event(), threading.Event()
    begun: list[str] = []

    def block() -> str:
        entered.set()
        assert go_on.wait(_PATIENCE_S)
        raise_if_cancelled()
        return "first"

    async def run() -> None:
        first = asyncio.ensure_future(_request(queue, block, kind))
        await _entered(entered)
        second = asyncio.ensure_future(_request(queue, lambda: begun.append("second"), kind))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert queue.places.free._value == 1
        go_on.set()
        assert await first == "first"
        assert await _request(queue, lambda: "third", kind) == "third"
        await asyncio.to_thread(_take_all, queue)

    asyncio.run(run())
    assert begun == []


def test_reading_ends_before_the_next_file(queue: RequestQueue, files: dict[str, bytes]) -> None:
    entered, go_on = threading.Event(), threading.Event()
    read: list[str] = []

    class Slow(dict[str, bytes]):
        def __getitem__(self, name: str) -> bytes:
            read.append(name)
            entered.set()
            assert go_on.wait(_PATIENCE_S)
            return super().__getitem__(name)

    async def run() -> None:
        request = asyncio.ensure_future(_request(queue, lambda: load_case_from_bytes(Slow(files)), "read"))
        await _entered(entered)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        go_on.set()
        await asyncio.to_thread(_take_all, queue)
        case = await _request(queue, lambda: load_case_from_bytes(files), "read")
        assert len(case.images) == len(files)

    asyncio.run(run())
    assert len(read) == 1


def test_a_cancelled_request_of_a_route(
    make_client: Callable[..., TestClient], watch: ModelWatch[Predictor], files: dict[str, bytes]
) -> None:
    """As Serve cancels it: the task that runs the application."""
    assert watch.served is not None
    predictor = watch.served.model
    predictor.batch_size, predictor._precision = 8, "fp32"
    gate = predictor.net = _Gate(predictor.net, 2)
    gate.opened.set()
    with make_client(max_pending=1) as client:
        expected = client.post("/v1/segment", files=files)
        num_batches = gate.take_batches()
        gate.close()
        request = client.build_request("POST", "/v1/segment", files=files)
        body = [request.read()]
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            await asyncio.sleep(_PATIENCE_S)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        async def leave() -> None:
            scope = {
                "type": "http",
                "method": "POST",
                "path": "/v1/segment",
                "query_string": b"",
                "headers": [(name.lower(), value) for name, value in request.headers.raw],
            }
            task = asyncio.ensure_future(client.app(scope, receive, send))
            await _entered(gate.entered)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(leave())
        assert sent == []
        gate.opened.set()
        while (answer := client.post("/v1/segment", files=files)).status_code == 429:
            pass  # a batch still holds the place
    assert answer.content == expected.content
    assert gate.take_batches() == 1 + num_batches
