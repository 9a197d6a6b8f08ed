"""Jobs by the client, against the endpoint's own routes, and against what networks do."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from serve.api import make_api
from serve.jobs import JobStore
from serve.schemas import Settings
from serve.watch import ModelWatch

from glioray.client import AsyncClient, Client, Job
from glioray.errors import EndpointError, UsageError

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


class _Launcher:
    """Runs no job; a test writes the states that a job's process would."""

    def __init__(self) -> None:
        self.running: list[str] = []

    def start(self, root: str, job_id: str) -> None:
        self.running.append(job_id)

    def stop(self, job_id: str) -> None:
        self.running.remove(job_id)

    def list_running(self) -> list[str]:
        return self.running


@pytest.fixture
def launcher() -> _Launcher:
    return _Launcher()


@pytest.fixture
def endpoint(watch: ModelWatch[Any], launcher: _Launcher, tmp_path: Path) -> Any:
    """An endpoint that runs jobs below `tmp_path`."""
    return make_api(Settings(job_roots=(str(tmp_path),)), {"segmentation": watch}, launcher=launcher)


class _Transport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Answers by an application in this process; calls `before` with each request first."""

    def __init__(self, app: Any, before: Callable[[httpx.Request], None] = lambda request: None) -> None:
        self.http, self.before = TestClient(app), before

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.before(request)
        headers = {name: value for name, value in request.headers.items() if name != "host"}
        answer = self.http.request(request.method, request.url.path, content=request.read(), headers=headers)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await asyncio.to_thread(self.handle_request, request)


def _call(is_async: bool, transport: Any, waits: list[float], method: str, *args: Any, **options: Any) -> Any:
    """The result of a method of one of the two clients."""
    if not is_async:
        with Client(transport=transport, sleep=waits.append) as client:
            return getattr(client, method)(*args, **options)

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def run() -> Any:
        async with AsyncClient(transport=transport, sleep=sleep) as client:
            return await getattr(client, method)(*args, **options)

    return asyncio.run(run())


def _update(root: Path, job_id: str, **fields: Any) -> None:
    store = JobStore([str(root)])
    store.save(str(root), store.load(str(root), job_id).model_copy(update=fields))


@both
def test_a_job_is_started_and_waited_for(
    is_async: bool,
    endpoint: Any,
    launcher: _Launcher,
    watch: ModelWatch[Any],
    tmp_path: Path,
    log: pytest.LogCaptureFixture,
) -> None:
    log.set_level(logging.INFO, "glioray")
    waits: list[float] = []
    assert watch.served is not None
    job = _call(
        is_async,
        _Transport(endpoint),
        waits,
        "start_job",
        tmp_path / "new",
        labels="brats-et3",
        uncertainty=True,
        resample=True,
    )
    assert isinstance(job, Job)
    assert (job.state, job.model, job.is_over) == ("waiting", watch.served.version, False)
    assert (job.data, job.labels, job.uncertainty, job.resample) == (
        f"{tmp_path}/new",
        "brats-et3",
        True,
        True,
    )
    assert job.out == f"{tmp_path}/.glioray-jobs/{job.id}/masks"
    assert launcher.running == [job.id]
    states: list[dict[str, Any]] = [
        {},
        {"state": "running", "num_cases": 3},
        {"num_done": 1},
        {},
        {"num_done": 2, "failed": {"c": "t1 is damaged"}},
        {"state": "done"},
    ]
    left = list(states)

    def before(request: httpx.Request) -> None:
        _update(tmp_path, job.id, **left.pop(0))

    seen: list[Job] = []
    result = _call(
        is_async,
        _Transport(endpoint, before),
        waits,
        "wait_for_job",
        job.id,
        poll_s=7,
        on_progress=seen.append,
    )
    assert (result.state, result.num_done, result.failed) == ("done", 2, {"c": "t1 is damaged"})
    assert result == _call(is_async, _Transport(endpoint), waits, "get_job", job.id)
    assert waits == [7.0] * 5
    assert [(one.state, one.num_done, len(one.failed)) for one in seen] == [
        ("waiting", 0, 0),
        ("running", 0, 0),
        ("running", 1, 0),
        ("running", 2, 1),
        ("done", 2, 1),
    ]
    lines = [line for line in log.messages if line.startswith(f"job {job.id}: ")]
    assert [line.partition(": ")[2].partition(" done")[0] for line in lines[2:4]] == ["33 %", "99 %"]
    assert lines[-1].endswith("; 2 masks, 1 failed")
    elsewhere = _call(
        is_async, _Transport(endpoint), waits, "start_job", tmp_path / "new", tmp_path / "masks"
    )
    assert (elsewhere.out, elsewhere.labels, elsewhere.uncertainty) == (f"{tmp_path}/masks", None, False)


@both
def test_a_job_that_does_not_end_well_is_an_error(is_async: bool, endpoint: Any, tmp_path: Path) -> None:
    def call(method: str, *args: Any) -> Any:
        return _call(is_async, _Transport(endpoint), [], method, *args)

    job_id = call("start_job", tmp_path).id
    _update(tmp_path, job_id, state="running", num_cases=3, num_done=1)
    assert call("cancel_job", job_id).state == "cancelled"
    assert call("cancel_job", job_id).num_done == 1
    with pytest.raises(
        EndpointError, match=f"the job {job_id} was cancelled; 1 of its cases have their mask"
    ):
        call("wait_for_job", job_id)
    job_id = call("start_job", tmp_path).id
    _update(tmp_path, job_id, state="failed", error="'new' holds no case")
    with pytest.raises(EndpointError, match=f"the job {job_id} failed: 'new' holds no case"):
        call("wait_for_job", job_id)
    assert call("get_job", job_id).error == "'new' holds no case"


@both
def test_what_is_refused(is_async: bool, endpoint: Any, tmp_path: Path) -> None:
    def call(method: str, *args: Any, **options: Any) -> Any:
        return _call(is_async, _Transport(endpoint), [], method, *args, **options)

    with pytest.raises(EndpointError, match="data is '/etc'; expected an absolute folder") as caught:
        call("start_job", "/etc")
    assert caught.value.status == 422
    for method in ("get_job", "wait_for_job", "cancel_job"):
        with pytest.raises(EndpointError, match="there is no such job") as caught:
            call(method, "0" * 16)
        assert caught.value.status == 404
        for job_id in ("", "..", "a/b", "é", "x?y"):
            with pytest.raises(UsageError, match="expected the id of a job, as start_job returns it"):
                call(method, job_id)
    with pytest.raises(UsageError, match="poll_s is 0; expected seconds above 0"):
        call("wait_for_job", "0" * 16, poll_s=0)


@both
def test_a_job_waits_until_others_have_ended(
    is_async: bool, endpoint: Any, launcher: _Launcher, tmp_path: Path
) -> None:
    launcher.running = ["one", "two"]
    num_sent = 0

    def before(request: httpx.Request) -> None:
        nonlocal num_sent
        num_sent += 1
        if num_sent == 3:
            launcher.running = ["one"]

    waits: list[float] = []
    job = _call(is_async, _Transport(endpoint, before), waits, "start_job", tmp_path)
    assert launcher.running == ["one", job.id]
    assert [60 <= wait <= 72 for wait in waits] == [True, True]


_JOB = {"id": "a" * 16, "state": "done", "model": "m", "data": "d", "out": "o"}


def _job(**fields: Any) -> httpx.Response:
    times = {"created_at": NOW.isoformat(), "updated_at": (NOW + timedelta(seconds=5)).isoformat()}
    return httpx.Response(200, json={**_JOB, **times, **fields})


def _scripted(*script: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """Answers in turn, without a network."""
    left, sent = list(script), []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        step = left.pop(0)
        if isinstance(step, Exception):
            raise step
        return httpx.Response(step.status_code, headers=step.headers, content=step.content)

    return httpx.MockTransport(answer), sent


@both
@pytest.mark.parametrize(
    "lost",
    [
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("closed"),
        httpx.ReadTimeout("slow"),
        httpx.Response(502, content=b"<html>Bad Gateway</html>"),
    ],
    ids=lambda step: type(step).__name__,
)
def test_a_job_that_may_have_begun_is_not_started_twice(
    is_async: bool, lost: httpx.Response | Exception
) -> None:
    transport, sent = _scripted(httpx.ConnectError("refused"), lost)
    with pytest.raises(EndpointError, match="but may have carried out POST /v1/jobs; look for what it made"):
        _call(is_async, transport, [], "start_job", "s3://studies/new")
    assert [json.loads(request.content) for request in sent] == [{"data": "s3://studies/new"}] * 2


@both
def test_a_look_at_a_job_is_repeated(is_async: bool) -> None:
    later = _job(a_field_of_a_later_version=1)
    transport, sent = _scripted(httpx.ReadError("reset"), httpx.Response(502), later)
    waits: list[float] = []
    job = _call(is_async, transport, waits, "wait_for_job", _JOB["id"])
    assert (job.state, len(sent), len(waits)) == ("done", 3, 2)
    transport, _ = _scripted(httpx.Response(200, content=b"<html>"))
    with pytest.raises(EndpointError, match="expected glioray's endpoint"):
        _call(is_async, transport, [], "get_job", _JOB["id"])
