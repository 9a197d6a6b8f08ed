"""How much a replica takes in, for how long it waits, and what it shows when it fails."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serve.watch import ModelWatch

from glioray.tasks.segmentation.predictor import Predictor


def test_a_large_body_is_refused_before_it_is_read(
    make_client: Callable[..., TestClient], files: dict[str, bytes], detail_of: Callable[[Any, int], str]
) -> None:
    with make_client(max_body_mb=0.01) as client:
        assert "larger than 0.01 MB" in detail_of(client.post("/v1/segment", files=files), 413)


def _stream(client: TestClient, receive: Callable[[], Awaitable[dict[str, Any]]]) -> tuple[int, str]:
    """Status and detail of a request whose body comes from `receive`, piece by piece."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/segment",
        "query_string": b"",
        "headers": [(b"content-type", b"multipart/form-data; boundary=x")],
    }
    asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type]
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], json.loads(body)["detail"]


_HEAD = b'--x\r\nContent-Disposition: form-data; name="t1"; filename="t1"\r\n\r\n'


def test_a_large_body_of_unknown_length_is_read_to_the_limit_only(
    make_client: Callable[..., TestClient],
) -> None:
    taken: list[bytes] = []

    async def receive() -> dict[str, Any]:
        taken.append(bytes(1000) if taken else _HEAD)
        return {"type": "http.request", "body": taken[-1], "more_body": True}

    status, detail = _stream(make_client(max_body_mb=0.02), receive)
    assert status == 413
    assert "larger than 0.02 MB" in detail
    assert sum(map(len, taken)) <= 21_000


def test_a_body_that_does_not_arrive_gives_its_place_back(
    make_client: Callable[..., TestClient], files: dict[str, bytes]
) -> None:
    pieces = [_HEAD]

    async def slow() -> dict[str, Any]:
        if not pieces:
            await asyncio.sleep(600)
        return {"type": "http.request", "body": pieces.pop(), "more_body": True}

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    client = make_client(max_pending=1, timeout_s=2)
    status, detail = _stream(client, slow)
    assert status == 408
    assert "had not arrived after 2 s" in detail
    assert _stream(client, gone)[0] == 400
    assert client.post("/v1/segment", files={"t1": files["t1"]}).status_code == 422


def test_no_more_cases_at_once_than_there_are_places(
    make_client: Callable[..., TestClient],
    watch: ModelWatch[Predictor],
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    detail_of: Callable[[Any, int], str],
) -> None:
    assert watch.served is not None
    predictor = watch.served.model
    entered, go_on = threading.Event(), threading.Event()
    predict = predictor.predict

    def slow(case: Any) -> Any:
        entered.set()
        assert go_on.wait(60)
        return predict(case)

    monkeypatch.setattr(predictor, "predict", slow)
    answers: list[Any] = []
    with make_client(max_pending=1) as client:
        first = threading.Thread(target=lambda: answers.append(client.post("/v1/segment", files=files)))
        first.start()
        assert entered.wait(60)
        refused = client.post("/v1/segment", files=files)
        assert client.get("/healthz").json() == {"status": "ok"}
        go_on.set()
        first.join(60)
        again = client.post("/v1/segment", files=files)
    assert "the queue is full (cases: 1); retry in 5 s" in detail_of(refused, 429)
    assert int(refused.headers["retry-after"]) > 0
    assert [answers[0].status_code, again.status_code] == [200, 200]


def test_a_case_that_takes_too_long(
    make_client: Callable[..., TestClient],
    watch: ModelWatch[Predictor],
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    detail_of: Callable[[Any, int], str],
) -> None:
    assert watch.served is not None
    go_on = threading.Event()
    monkeypatch.setattr(watch.served.model, "predict", lambda _: go_on.wait(60))
    with make_client(timeout_s=0.5) as client:
        answer = client.post("/v1/segment", files=files)
        go_on.set()
    assert "not segmented within 0.5 s" in detail_of(answer, 503)


def test_a_failure_of_the_servers_own_shows_nothing_of_it(
    client: TestClient,
    watch: ModelWatch[Predictor],
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    detail_of: Callable[[Any, int], str],
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("a secret of the server")

    assert watch.served is not None
    monkeypatch.setattr(watch.served.model, "predict", broken)
    detail = detail_of(client.post("/v1/segment", files=files), 500)
    assert "secret" not in detail
    monkeypatch.undo()
    assert client.post("/v1/segment", files=files).status_code == 200
