"""How much a replica takes in, for how long it waits, and what it shows when it fails."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from serve.watch import ModelWatch

from glioray.cases.nifti import encode_volume, read_volume
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


def _form(files: dict[str, bytes], **texts: str) -> bytes:
    """A form with the boundary x, its files first."""
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'.encode() + data
        for name, data in files.items()
    ]
    parts += [
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}'.encode()
        for name, text in texts.items()
    ]
    return b"\r\n".join([*parts, b"--x--\r\n"])


def _post_form(client: TestClient, body: bytes) -> Any:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    return client.post("/v1/segment", content=body, headers=headers)


def test_a_form_is_refused_wherever_it_is_cut_off(
    client: TestClient, files: dict[str, bytes], detail_of: Callable[[Any, int], str]
) -> None:
    whole = _form(files, labels="brats-et3")
    assert _post_form(client, whole).status_code == 200
    assert _post_form(client, whole[:-2]).status_code == 200  # the last line break may be missing
    assert _post_form(client, whole + b"epilogue").status_code == 200
    last_field = whole.index(b"brats-et3") + len(b"brats-et3")
    in_a_file = whole.index(b"--x", 100) - 50
    between = whole.index(b"--x", 100) - 2
    for length in (len(whole) - 3, len(whole) - 7, last_field, last_field - 4, in_a_file, between):
        detail = detail_of(_post_form(client, whole[:length]), 400)
        assert detail == (
            "the body is not a whole multipart form (it ends before its closing boundary); send it again"
        )


def test_a_file_without_a_filename_is_named(
    client: TestClient, files: dict[str, bytes], detail_of: Callable[[Any, int], str]
) -> None:
    for data in (files["t1"], b"here.nii", b""):
        body = _form({"t2": files["t2"], "t1": data}).replace(b'; filename="t1"', b"")
        assert detail_of(_post_form(client, body), 422) == (
            "the field 't1' is text: its part has no filename; send it as a file, with curl: -F t1=@FILE"
        )


def test_a_bad_input_is_refused_while_another_case_is_worked_on(
    make_client: Callable[..., TestClient],
    watch: ModelWatch[Predictor],
    make_superres_watch: Callable[..., Any],
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    detail_of: Callable[[Any, int], str],
) -> None:
    assert watch.served is not None
    predictor = watch.served.model
    entered, go_on = threading.Event(), threading.Event()
    probs = predictor.probs

    def slow(case: Any, **options: Any) -> Any:
        entered.set()
        assert go_on.wait(60)
        return probs(case, **options)

    monkeypatch.setattr(predictor, "probs", slow)
    answers: list[Any] = []
    truncated = files["t1"][: len(files["t1"]) // 2]
    thick = encode_volume(read_volume(files["t1"], name="t1").array, np.diag([1.0, 1, 3, 1]))
    forms = {
        "t1 is truncated": {**files, "t1": truncated},
        "t1 is not NIfTI: it is a JPEG picture": {**files, "t1": b"\xff\xd8\xff" + bytes(900)},
        "3.00 mm along Z": dict.fromkeys(files, thick),
    }
    with make_client(make_superres_watch(), max_pending=2, timeout_s=60) as client:
        first = threading.Thread(target=lambda: answers.append(client.post("/v1/segment", files=files)))
        first.start()
        assert entered.wait(60)
        for found, sent in forms.items():
            assert found in detail_of(client.post("/v1/segment", files=sent), 422)
        superres = client.post("/v1/superresolve", files={"t1": truncated})
        assert "t1 is truncated" in detail_of(superres, 422)
        larger = client.post("/v1/superresolve", files={"t1": files["t1"]}, data={"size": "2000x2000"})
        assert "expected 1 to 8 times" in detail_of(larger, 422)
        finer = client.post("/v1/segment", files=files, data={"superresolve": "true", "size": "2000x2000"})
        assert "expected 1 to 8 times" in detail_of(finer, 422)
        assert not answers
        go_on.set()
        first.join(60)
        # All places are free again.
        assert [client.post("/v1/segment", files=files).status_code for _ in range(3)] == [200] * 3
    assert answers[0].status_code == 200


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
    probs = predictor.probs

    def slow(case: Any, **options: Any) -> Any:
        entered.set()
        assert go_on.wait(60)
        return probs(case, **options)

    monkeypatch.setattr(predictor, "probs", slow)
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
    monkeypatch.setattr(watch.served.model, "probs", lambda _, **options: go_on.wait(60))
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
    def broken(_: object, **options: object) -> None:
        raise RuntimeError("a secret of the server")

    assert watch.served is not None
    monkeypatch.setattr(watch.served.model, "probs", broken)
    detail = detail_of(client.post("/v1/segment", files=files), 500)
    assert "secret" not in detail
    monkeypatch.undo()
    assert client.post("/v1/segment", files=files).status_code == 200
