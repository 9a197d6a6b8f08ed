"""The client of the endpoint, against the endpoint over HTTP, and against what networks and proxies do."""

from __future__ import annotations

import asyncio
import io
import logging
import socketserver
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image
from serve.api_keys import ApiKey, hash_key, write_keys

import glioray
from glioray.cases.nifti import encode_volume, read_volume
from glioray.client import AsyncClient, Client, parse_retry_after
from glioray.errors import DataError, EndpointError, GliorayError, UsageError

NAMES = {"t1": "t1n", "t1c": "t1c", "t2": "t2w", "flair": "t2f"}
PATIENT = "Mustermann_Erika_1970"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIORAY_API_KEY", raising=False)


@pytest.fixture
def serve_over_http() -> Iterator[Callable[[Any], str]]:
    """Serves an application over HTTP; returns its address."""
    started: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(app: Any) -> str:
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        started.append((server, thread))
        deadline = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join(60)


@pytest.fixture
def url(make_client: Callable[..., TestClient], serve_over_http: Callable[[Any], str]) -> str:
    """The address of an endpoint with a model."""
    return serve_over_http(make_client().app)


@pytest.fixture
def make_folder(tmp_path: Path, files: dict[str, bytes]) -> Callable[..., Path]:
    """Writes a case's folder below `cases`, files replaced as given; returns it."""

    def make(case_id: str = "BraTS-GLI-00001-000", **replaced: bytes) -> Path:
        folder = tmp_path / "cases" / case_id
        folder.mkdir(parents=True)
        for name, data in {**files, **replaced}.items():
            (folder / f"{case_id}-{NAMES[name]}.nii.gz").write_bytes(data)
        return folder

    return make


class _Endpoint:
    """Answers as it is scripted, without a network: an exception is raised, and the last item is repeated."""

    def __init__(self, *script: httpx.Response | Exception) -> None:
        self.script, self.requests, self.waits = list(script), [], []
        self.transport = httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, Exception):
            raise step
        return httpx.Response(step.status_code, headers=step.headers, content=step.content)

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    def client(self, **options: Any) -> Client:
        return Client(sleep=self.waits.append, transport=self.transport, **options)

    def call(self, is_async: bool, method: str, *args: Any, **options: Any) -> Any:
        """The result of a method of one of the two clients."""
        if not is_async:
            with self.client(**options) as client:
                return getattr(client, method)(*args)

        async def run() -> Any:
            async with AsyncClient(sleep=self._sleep, transport=self.transport, **options) as client:
                return await getattr(client, method)(*args)

        return asyncio.run(run())


def _refusal(status: int, detail: str = "the queue is full", **headers: str) -> httpx.Response:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers=headers, json={"detail": detail})


both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


def test_a_folder_becomes_its_mask(
    url: str, client: TestClient, make_folder: Callable[..., Path], files: dict[str, bytes], tmp_path: Path
) -> None:
    expected = read_volume(client.post("/v1/segment", files=files).content, name="mask")
    folder = make_folder()
    with Client(url) as endpoint:
        assert endpoint.ready()
        (model,) = endpoint.models()
        answers = [
            endpoint.segment(source)
            for source in (
                folder,
                str(folder),
                files,
                {"t1": folder / f"{folder.name}-t1n.nii.gz", **_but_t1(files)},
            )
        ]

        async def run() -> Any:
            async with AsyncClient(url) as other:
                assert await other.ready()
                assert await other.models() == [model]
                return await asyncio.gather(*(other.segment(folder) for _ in range(3)))

        answers += asyncio.run(run())
        case = glioray.load_case(folder)
        in_memory = endpoint.segment(case)
    for answer in answers:
        np.testing.assert_array_equal(answer.mask, expected.array)
        np.testing.assert_array_equal(answer.affine, expected.affine)
        assert answer.model == model["version"]
        assert answer.request_id
    assert in_memory.mask.shape == case.images.shape[1:]
    np.testing.assert_allclose(in_memory.affine, case.affine)
    saved = answers[0].save(tmp_path / "out" / "mask.nii.gz")
    assert Path(saved).read_bytes() == answers[0].data
    assert answers[0].save(f"{tmp_path}/new/") == f"{tmp_path}/new"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["segmentation.nii.gz"]
    with pytest.raises(UsageError, match=r"has segmentation.nii.gz and no report.json; ask for output='all'"):
        _ = answers[0].report


def _but_t1(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name != "t1"}


def test_every_output_is_typed_and_saved(url: str, files: dict[str, bytes], tmp_path: Path) -> None:
    with Client(url) as endpoint:
        report = endpoint.segment(files, "report").report
        everything = endpoint.segment(files, "all", labels="brats-et3")
        probabilities = endpoint.segment(files, "probabilities")
        overlay = endpoint.segment(files, "overlay").overlay
    assert everything.report.voxels == report.voxels
    assert report.voxels["wt"] == np.count_nonzero(everything.mask)
    assert set(np.unique(everything.mask)) <= {0, 1, 2, 3}
    assert set(everything.probabilities) == {"wt", "tc", "et"}
    for region, values in probabilities.probabilities.items():
        np.testing.assert_array_equal(values, everything.probabilities[region])
        assert values.shape == everything.mask.shape
    assert everything.uncertainty.shape == everything.mask.shape
    assert 0 < everything.uncertainty.max() <= 1
    assert overlay.startswith(b"\x89PNG")
    assert everything.overlay.startswith(b"\x89PNG")
    everything.save(tmp_path / "case.zip")
    assert zipfile.ZipFile(tmp_path / "case.zip").namelist() == list(everything.files)
    everything.save(tmp_path / "case")
    assert {path.name for path in (tmp_path / "case").iterdir()} == set(everything.files)


def test_images_are_super_resolved(
    make_client: Callable[..., TestClient],
    make_superres_watch: Callable[..., Any],
    serve_over_http: Callable[[Any], str],
    make_folder: Callable[..., Path],
    tmp_path: Path,
    files: dict[str, bytes],
) -> None:
    url = serve_over_http(make_client(make_superres_watch()).app)
    affine = np.diag([4.0, 4, 1, 1])
    arrays = {name: read_volume(data, name=name).array[10:22, 10:24, 14:18] for name, data in files.items()}
    low = {name: encode_volume(array, affine) for name, array in arrays.items()}
    path = tmp_path / "t1.nii.gz"
    path.write_bytes(low["t1"])
    picture = io.BytesIO()
    Image.fromarray(arrays["t1"][..., 0].astype(np.uint8)).save(picture, "PNG")
    with Client(url) as endpoint:
        one = endpoint.superresolve(path, size=(56, 48), blend=0.0)
        four = endpoint.superresolve(make_folder(**low), scale=4.0)
        png = endpoint.superresolve({"image": picture.getvalue()})
        both_models = endpoint.segment(low, superresolve=True, grid="input", scale=4.0)
        with pytest.raises(EndpointError, match="expected 1 to 8 times") as caught:
            endpoint.superresolve(path, size=(2000, 2000))
    assert one.images["superres"].shape == (48, 56, 4)
    np.testing.assert_allclose(np.diag(one.affine), [1, 1, 1, 1], atol=1e-5)
    assert {name: image.shape for name, image in four.images.items()} == dict.fromkeys(NAMES, (48, 56, 4))
    assert (png.media_type, png.images) == ("image/png", {})
    assert Image.open(io.BytesIO(png.data)).size == (56, 48)
    with pytest.raises(UsageError, match="a PNG has no affine"):
        _ = png.affine
    assert both_models.mask.shape == (12, 14, 4)
    assert both_models.superres_model == one.model
    assert (caught.value.status, caught.value.may_pass) == (422, False)


def test_a_refusal_is_the_endpoints_sentence(
    url: str, files: dict[str, bytes], make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    with Client(url) as endpoint:
        with pytest.raises(GliorayError) as caught:
            endpoint.segment({**files, "t1": b"not NIfTI"})
        assert isinstance(caught.value, EndpointError)
        assert str(caught.value).startswith("t1 is not NIfTI")
        assert caught.value.status == 422
        assert caught.value.request_id
        with pytest.raises(EndpointError, match="nonsense"):
            endpoint.segment(files, labels="nonsense")
        with pytest.raises(DataError, match="holds no case"):
            endpoint.segment(tmp_path)
        make_folder("BraTS-GLI-00001-000"), make_folder("BraTS-GLI-00002-000")
        with pytest.raises(UsageError, match=r"holds 2 cases.*; give case_id"):
            endpoint.segment(tmp_path / "cases")
        assert endpoint.segment(tmp_path / "cases", "report", case_id="BraTS-GLI-00002-000").report.voxels
    with Client(f"{url}/elsewhere") as wrong, pytest.raises(EndpointError) as caught:
        wrong.models()
    assert caught.value.status == 404
    for address in ("ftp://host", "host:8000", ""):
        with pytest.raises(UsageError, match="expected http://HOST:PORT"):
            Client(address)


def test_only_what_the_model_takes_is_sent_and_no_name(
    make_folder: Callable[..., Path], files: dict[str, bytes], tmp_path: Path
) -> None:
    models = httpx.Response(200, json={"models": [{"task": "segmentation", "modalities": ["t1c", "flair"]}]})
    endpoint = _Endpoint(models, httpx.Response(200, content=b"mask"))
    folder = make_folder(PATIENT)
    with endpoint.client() as client:
        assert client.segment(folder).data == b"mask"
        endpoint.script = [httpx.Response(200)]
        client.segment({name: folder / f"{PATIENT}-{NAMES[name]}.nii.gz" for name in files})
    listed, folders, mapped = (request.content for request in endpoint.requests)
    assert listed == b""
    assert [name for name in NAMES if f'name="{name}"'.encode() in folders] == ["t1c", "flair"]
    assert [name for name in NAMES if f'name="{name}"'.encode() in mapped] == list(NAMES)
    for request in endpoint.requests:
        assert PATIENT.encode() not in request.content
        assert PATIENT not in str(request.url) + str(request.headers)


@both
def test_it_waits_as_long_as_the_endpoint_says(is_async: bool, files: dict[str, bytes]) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    endpoint = _Endpoint(
        _refusal(429, Retry_After="7"), _refusal(503, Retry_After=soon), httpx.Response(200, content=b"mask")
    )
    assert endpoint.call(is_async, "segment", files).data == b"mask"
    assert len(endpoint.requests) == 3
    assert all(files["flair"] in request.content for request in endpoint.requests)
    assert 7 <= endpoint.waits[0] <= 7 * 1.2
    assert 15 <= endpoint.waits[1] <= 20 * 1.2


@both
def test_it_gives_up_after_a_while(is_async: bool, files: dict[str, bytes]) -> None:
    endpoint = _Endpoint(_refusal(429, Retry_After="7"))
    with pytest.raises(EndpointError, match="the queue is full") as caught:
        endpoint.call(is_async, "segment", files, "mask", retry_s=30)
    assert (caught.value.status, caught.value.may_pass) == (429, True)
    assert len(endpoint.waits) == 4


@both
@pytest.mark.parametrize("status", [401, 404, 413, 422, 500, 503])
def test_it_asks_once_where_waiting_does_not_help(
    is_async: bool, status: int, files: dict[str, bytes]
) -> None:
    endpoint = _Endpoint(_refusal(status, "why not"))
    with pytest.raises(EndpointError, match="why not"):
        endpoint.call(is_async, "segment", files)
    assert (len(endpoint.requests), endpoint.waits) == (1, [])


@both
@pytest.mark.parametrize(
    "broken",
    [
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("closed"),
        httpx.ConnectTimeout("slow"),
        httpx.Response(502, content=b"<html>Bad Gateway</html>"),
        httpx.Response(500, content=b"Internal Server Error"),
    ],
    ids=lambda step: type(step).__name__ + str(getattr(step, "status_code", "")),
)
def test_a_broken_connection_is_made_again(
    is_async: bool, broken: httpx.Response | Exception, files: dict[str, bytes]
) -> None:
    endpoint = _Endpoint(broken, broken, httpx.Response(200, content=b"mask"))
    assert endpoint.call(is_async, "segment", files).data == b"mask"
    assert [round(wait / 1.1, 1) for wait in endpoint.waits] == pytest.approx([0.5, 1.0], abs=0.15)
    endpoint = _Endpoint(broken)
    with pytest.raises(EndpointError) as caught:
        endpoint.call(is_async, "segment", files)
    assert len(endpoint.requests) == 6
    assert "does not answer" in str(caught.value) or "expected glioray's endpoint" in str(caught.value)


@both
def test_a_slow_answer_is_not_asked_for_twice(is_async: bool, files: dict[str, bytes]) -> None:
    endpoint = _Endpoint(httpx.ReadTimeout("slow"))
    with pytest.raises(EndpointError, match="gave no answer for 3 s; try again later"):
        endpoint.call(is_async, "segment", files, timeout_s=3)
    assert len(endpoint.requests) == 1


def test_a_connection_that_breaks_within_an_answer(files: dict[str, bytes]) -> None:
    """A server that closes its first two connections, one without a byte and one within the body."""
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmask"
    answers = [b"", whole[:-2], whole]

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            received = b""
            while not received.rstrip().endswith(b"--"):
                received += self.request.recv(2**20)
            self.request.sendall(answers.pop(0))

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        waits: list[float] = []
        try:
            with Client(f"http://127.0.0.1:{server.server_address[1]}", sleep=waits.append) as client:
                assert client.segment(files).data == b"mask"
        finally:
            server.shutdown()
            thread.join()
    assert (answers, len(waits)) == ([], 2)


@both
def test_whether_it_is_ready(is_async: bool) -> None:
    loading = httpx.Response(503, json={"state": "loading", "detail": "the model is being loaded"})
    endpoint = _Endpoint(httpx.ConnectError("refused"), loading, httpx.Response(200))
    assert endpoint.call(is_async, "ready", 10.0) is True
    assert endpoint.waits == [1.0, 1.0]
    assert _Endpoint(loading).call(is_async, "ready") is False
    endpoint = _Endpoint(loading)
    assert endpoint.call(is_async, "ready", 3.0) is False
    assert len(endpoint.requests) == 4
    with pytest.raises(EndpointError, match="expected glioray's endpoint"):
        _Endpoint(httpx.Response(404)).call(is_async, "ready")


def test_the_stated_wait_is_read() -> None:
    assert [parse_retry_after(text) for text in ("0", "12", " 5 ", "soon")] == [0, 12, 5, 5]
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_a_key_goes_with_each_request(
    make_client: Callable[..., TestClient],
    serve_over_http: Callable[[Any], str],
    tmp_path: Path,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    log: pytest.LogCaptureFixture,
) -> None:
    key = "glioray_secret"
    write_keys(str(tmp_path / "keys.json"), {"pipeline": ApiKey(sha256=hash_key(key))})
    url = serve_over_http(make_client(api_keys=str(tmp_path / "keys.json")).app)
    with Client(url) as client:
        assert client.ready()
        with pytest.raises(EndpointError, match="an API key is needed") as caught:
            client.segment(files)
    assert caught.value.status == 401
    with Client(url, api_key=key) as client:
        assert client.segment(files).data
    monkeypatch.setenv("GLIORAY_API_KEY", f"{key}\n")
    with Client(url) as client:
        assert client.models()
    log.set_level(logging.WARNING, "glioray")
    Client("http://far.example.org")
    sent = [message for message in log.messages if "API key" in message]
    assert sent == ["the API key goes to far.example.org unencrypted; use https"]
    with pytest.raises(UsageError, match="has characters that no key has") as refused:
        Client(url, api_key="clé")
    assert "clé" not in str(refused.value)


@both
def test_every_case_of_a_folder(
    is_async: bool,
    url: str,
    make_folder: Callable[..., Path],
    files: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: pytest.LogCaptureFixture,
) -> None:
    cases = [f"BraTS-GLI-{number:05}-000" for number in range(4)]
    for case_id in cases[:2]:
        make_folder(case_id)
    make_folder(cases[2], t1=b"damaged")
    (make_folder(cases[3]) / f"{cases[3]}-t2w.nii.gz").unlink()
    log.set_level(logging.INFO, "glioray")
    out = tmp_path / "out"

    def run(**options: Any) -> Any:
        if not is_async:
            with Client(url) as client:
                return client.segment_folder(tmp_path / "cases", out, **options)

        async def segment() -> Any:
            async with AsyncClient(url) as client:
                return await client.segment_folder(tmp_path / "cases", out, **options)

        return asyncio.run(segment())

    result = run(concurrency=2)
    assert result.files == {case_id: f"{out}/{case_id}_seg.nii.gz" for case_id in cases[:2]}
    assert sorted(result.failed) == cases[2:]
    assert result.failed[cases[2]].startswith("t1 is not NIfTI")
    assert "has no t2" in result.failed[cases[3]]
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{case}_seg.nii.gz" for case in cases[:2])
    with Client(url) as client:
        expected = client.segment(files).data
    assert {path.read_bytes() for path in out.iterdir()} == {expected}
    assert sum(line.startswith("segmenting 3 cases: ") for line in log.messages) == 3
    log.clear()
    assert run(skip_existing=True) == result
    assert "2 of 3 cases have their answer already" in log.messages
    assert sum(line.startswith("segmenting 1 case: done") for line in log.messages) == 1
    reports = run(output="report").files
    assert Path(reports[cases[0]]).name == f"{cases[0]}_report.json"
    with pytest.raises(UsageError, match="concurrency is 0"):
        run(concurrency=0)
    with pytest.raises(UsageError, match="output is 'masks'; expected one of mask, report"):
        run(output="masks")


@both
def test_no_more_cases_at_once_than_asked_for(
    is_async: bool, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    for number in range(8):
        make_folder(f"BraTS-GLI-{number:05}-000")
    at_once, most = 0, 0
    lock = threading.Lock()

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"models": []})

    def count(number: int) -> None:
        nonlocal at_once, most
        with lock:
            at_once += number
            most = max(most, at_once)

    class Transport(httpx.BaseTransport, httpx.AsyncBaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            count(1)
            time.sleep(0.02)
            count(-1)
            return answer(request)

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            count(1)
            await asyncio.sleep(0.02)
            count(-1)
            return answer(request)

    async def run() -> Any:
        async with AsyncClient(transport=Transport()) as client:
            return await client.segment_folder(tmp_path / "cases", tmp_path / "out", concurrency=3)

    if is_async:
        result = asyncio.run(run())
    else:
        with Client(transport=Transport()) as client:
            result = client.segment_folder(tmp_path / "cases", tmp_path / "out", concurrency=3)
    assert len(result.files) == 8
    assert most == 3
