"""On a real Ray Serve, a client that leaves ends the work for it in every process behind the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from ray import serve
from ray.exceptions import RayActorError
from serve.deployments import Gateway, make_forward
from serve.forward import WholeRequest
from serve.replica import ModelReplica, RemoteEnhancement
from serve.request_queue import RequestQueue
from serve.schemas import Settings
from serve.status import ModelState

from glioray.cancellation import raise_if_cancelled
from glioray.machine import free_port

pytestmark = pytest.mark.usefixtures("ray_local")

_APPLICATION = "cancelled"
_PATIENCE_S = 120


class _Champions:
    """Says that both models are served."""

    async def states(self) -> dict[str, ModelState]:
        return dict.fromkeys(("segmentation", "superres"), ModelState("ready", "serving a test"))


class _Replica(ModelReplica):
    """A replica whose work ends by its cancellation alone, counted as it begins and ends."""

    def __init__(self, enhancer: Any = None) -> None:
        self.queue = RequestQueue(Settings(timeout_s=10 * _PATIENCE_S))
        self.counts = {"begun": 0, "ended": 0}
        self.remote = RemoteEnhancement("superres", enhancer)
        self.routes: Any = SimpleNamespace(
            enhancement=SimpleNamespace(begin=lambda options: lambda case: self._work)
        )
        self.api = FastAPI()

        @self.api.post("/v1/segment")
        async def segment(request: Request) -> Response:
            if "timeout_s" in request.query_params:
                self.queue.settings = Settings(timeout_s=float(request.query_params["timeout_s"]))
            with self.queue.places.take():
                work: Any = self._work
                if "enhance" in request.query_params:
                    work = await self.queue.read(lambda: self.remote.begin(None)(None))  # type: ignore[arg-type]
                return await self.queue.run(work, done="worked on")

    def _work(self) -> Any:
        self.counts["begun"] += 1
        try:
            while True:
                raise_if_cancelled()
                time.sleep(0.01)
        finally:
            self.counts["ended"] += 1

    async def count(self) -> dict[str, int]:
        return self.counts


@pytest.fixture(scope="module")
def port(repo: Path, ray_local: None) -> Iterator[int]:
    """Of a gateway before a replica that segments and one that super-resolves."""
    port = free_port()
    # On a busy machine Serve gives its proxy up and starts another one by itself.
    with contextlib.suppress(RayActorError, TimeoutError):
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "WARNING"})
    deploy: Any = serve.deployment
    # Their processes import this module.
    path = os.pathsep.join(str(folder) for folder in (repo / "platform", repo, Path(__file__).parent))
    actor = {"num_cpus": 0, "runtime_env": {"env_vars": {"PYTHONPATH": path}}}
    options = {"num_replicas": 1, "ray_actor_options": actor}
    enhancer = deploy(_Replica, name="superres", **options).bind()
    model = deploy(_Replica, name="segmentation", **options).bind(enhancer)
    champions = deploy(_Champions, name="Champions", **options).bind()
    models = {"segmentation": model, "superres": enhancer}
    gateway = deploy(Gateway, name="Gateway", **options).bind(Settings(no_keys=True), champions, models)
    serve.run(gateway, name=_APPLICATION)
    deadline = time.monotonic() + _PATIENCE_S
    while not _answers(port):
        assert time.monotonic() < deadline, serve.status()
        time.sleep(0.5)
    yield port
    serve.shutdown()


def _answers(port: int) -> bool:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    try:
        client.request("GET", "/healthz")
        return client.getresponse().status == 200
    except OSError:
        return False


def _count(task: str) -> dict[str, int]:
    handle: Any = serve.get_deployment_handle(task, _APPLICATION)
    counts: dict[str, int] = handle.count.remote().result(timeout_s=_PATIENCE_S)
    return counts


def _wait(task: str, until: Callable[[dict[str, int]], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not until(counts := _count(task)):
        assert time.monotonic() < deadline, f"{task}: {counts}"
        time.sleep(0.05)


def _send(port: int, query: str) -> http.client.HTTPConnection:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    client.request("POST", f"/v1/segment?{query}", body=b"a case")
    return client


@pytest.mark.parametrize(("query", "worker"), [("", "segmentation"), ("enhance=1", "superres")])
def test_a_client_that_leaves_ends_its_work(port: int, query: str, worker: str) -> None:
    before = _count(worker)
    assert before["begun"] == before["ended"]
    client = _send(port, query)
    _wait(worker, lambda counts: counts["begun"] == before["begun"] + 1)
    assert _count(worker)["ended"] == before["ended"]
    client.close()
    _wait(worker, lambda counts: counts["ended"] == before["ended"] + 1)


def test_a_gateway_that_gives_up_ends_the_work(port: int) -> None:
    before = _count("segmentation")
    handle: Any = serve.get_deployment_handle("segmentation", _APPLICATION)
    forward = make_forward(handle, _PATIENCE_S)

    async def give_up() -> None:
        request: Any = asyncio.ensure_future(forward(WholeRequest("POST", "/v1/segment", b"", [], b"a case")))
        while (await handle.count.remote())["begun"] == before["begun"]:
            await asyncio.sleep(0.05)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    asyncio.run(give_up())
    _wait("segmentation", lambda counts: counts["ended"] == counts["begun"] == before["begun"] + 1)


def test_time_that_runs_out_ends_the_work_on_another_replica_too(port: int) -> None:
    before = _count("superres")
    client = _send(port, "enhance=1&timeout_s=2")
    answer = client.getresponse()
    assert answer.status == 503
    detail = json.loads(answer.read())["detail"]
    assert "within 2 s" in detail
    client.close()
    _wait("superres", lambda counts: counts["ended"] == counts["begun"] >= before["begun"])
