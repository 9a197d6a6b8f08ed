"""Request ids, log lines and measurements: what is kept of a request, and what is not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serve.api import make_api
from serve.schemas import Settings
from serve.watch import ModelWatch

from glioray.tasks.segmentation.predictor import Predictor

PATIENT = "Mustermann_Erika_1970"


class _Recorder:
    """Keeps what is measured."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str]] = []
        self.latencies: list[tuple[str, str]] = []
        self.seconds: list[float] = []
        self.in_flight: list[tuple[str, int]] = []

    def count_request(self, route: str, task: str, status: str) -> None:
        self.requests.append((route, task, status))

    def observe_latency(self, stage: str, task: str, seconds: float) -> None:
        self.latencies.append((stage, task))
        self.seconds.append(seconds)

    def set_in_flight(self, task: str, number: int) -> None:
        self.in_flight.append((task, number))

    def set_model(self, task: str, version: str | None, before: str | None) -> None:
        raise AssertionError("only a replica says so")


@pytest.fixture
def log(log: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the endpoint logs."""
    log.set_level(logging.WARNING, "glioray.engine")
    log.set_level(logging.INFO, "glioray.serve")  # and of the handler
    return log


def _wait_for(items: Callable[[], Sequence[Any]], number: int) -> None:
    """Wait until there are so many: a client has its answer before the request has ended."""
    deadline = time.monotonic() + 30
    while len(items()) < number:
        assert time.monotonic() < deadline, items()
        time.sleep(0.005)


def test_an_id_is_taken_or_made_and_comes_back(client: TestClient, files: dict[str, bytes]) -> None:
    made = [
        client.get(path).headers.get_list("x-request-id") for path in ("/healthz", "/healthz", "/nowhere")
    ]
    assert all(len(ids) == 1 and len(ids[0]) == 16 for ids in made)
    assert len({ids[0] for ids in made}) == 3
    for sent in ("a-pipeline.0001", "12345678"):
        answer = client.post("/v1/segment", files=files, headers={"X-Request-Id": sent})
        assert answer.headers.get_list("x-request-id") == [sent]
    for sent in (
        "short",
        "with space 1234",
        "tab\t12345678",
        "x" * 65,
        "ümlaut-1234".encode().decode("latin-1"),
    ):
        assert (
            client.get("/healthz", headers={"X-Request-Id": sent.encode("latin-1")}).headers["x-request-id"]
            != sent
        )


def test_a_refusal_is_logged_by_its_id_and_without_what_was_sent(
    client: TestClient, files: dict[str, bytes], log: pytest.LogCaptureFixture
) -> None:
    sent = {"X-Request-Id": "pipeline-0001"}
    named = {name: (f"{PATIENT}_{name}.nii.gz", data) for name, data in files.items()}
    assert client.post("/v1/segment", files=named, headers=sent).status_code == 200
    assert [record for record in log.records if record.name == "glioray.serve"] == []
    forms: list[dict[str, Any]] = [
        {"files": {**named, PATIENT: b"x"}},
        {"files": {**named, "t1": (f"{PATIENT}.nii", b"x")}},
        {"files": named, "data": {"labels": PATIENT}},
    ]
    for form in forms:
        log.clear()
        assert client.post("/v1/segment", headers=sent, **form).status_code == 422
        _wait_for(lambda: log.messages, 1)
        assert len(log.messages) == 1
        assert log.messages[0].startswith("request pipeline-0001: POST /v1/segment: 422 after ")
    client.get(f"/{PATIENT}", headers=sent)
    _wait_for(lambda: log.messages, 2)
    assert log.messages[-1].startswith("request pipeline-0001: GET other: 404 after ")
    assert PATIENT not in log.text


def test_a_failure_is_logged_by_its_id(
    client: TestClient,
    watch: ModelWatch[Predictor],
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    log: pytest.LogCaptureFixture,
    detail_of: Callable[[Any, int], str],
) -> None:
    def broken(*_: object, **options: object) -> None:
        raise RuntimeError("unforeseen")

    assert watch.served is not None
    monkeypatch.setattr(watch.served.model, "probs", broken)
    detail_of(client.post("/v1/segment", files=files, headers={"X-Request-Id": "pipeline-0002"}), 500)
    _wait_for(lambda: log.messages, 2)
    assert "request pipeline-0002: the case could not be worked on" in log.messages
    assert any(line.startswith("request pipeline-0002: POST /v1/segment: 500") for line in log.messages)


def test_a_failure_of_the_gateway_has_a_sentence_and_an_id(
    client: TestClient,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    log: pytest.LogCaptureFixture,
    detail_of: Callable[[Any, int], str],
) -> None:
    async def broken(*_: object, **options: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("serve.endpoint.ForwardingEndpoint.handle", broken)
    from serve import api

    endpoint = TestClient(
        api.make_gateway(Settings(), api.LocalStatus({}, {}), {}), raise_server_exceptions=False
    )
    answer = endpoint.post("/v1/segment", files=files)
    assert detail_of(answer, 500) == "the server failed on this request; its log says why"
    _wait_for(lambda: log.messages, 1)
    assert f"request {answer.headers['x-request-id']} failed" in log.messages


def test_what_is_measured(watch: ModelWatch[Predictor], files: dict[str, bytes]) -> None:
    recorder = _Recorder()
    client = TestClient(make_api(Settings(max_body_mb=50), {"segmentation": watch}, recorder))
    assert client.post("/v1/segment", files=files).status_code == 200
    _wait_for(lambda: recorder.latencies, 2)
    assert recorder.requests == [("/v1/segment", "segmentation", "200")]
    assert recorder.latencies == [("upload", "segmentation"), ("work", "segmentation")]
    assert all(0 <= seconds < 60 for seconds in recorder.seconds)
    assert recorder.seconds[1] > 0
    assert recorder.in_flight == [("segmentation", 1), ("segmentation", 0)]
    client.post("/v1/segment", files={"t1": b"x"})
    client.post("/v1/superresolve", files={"t1": b"x"})
    client.get("/healthz")
    client.get("/a-name")
    _wait_for(lambda: recorder.requests, 5)
    assert recorder.requests[1:] == [
        ("/v1/segment", "segmentation", "422"),
        ("/v1/superresolve", "superres", "503"),
        ("/healthz", "", "200"),
        ("other", "", "404"),
    ]
    assert recorder.in_flight[-1] == ("superres", 0)
