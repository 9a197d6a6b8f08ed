"""A further task's routes are mounted, limited and described without a change of the endpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import pytest
from fastapi import File, Form, Response, UploadFile
from fastapi.testclient import TestClient
from pydantic import BaseModel
from serve.api import make_api
from serve.schemas import Settings
from serve.watch import ModelWatch

from glioray import tasks
from glioray.engine.serving import Endpoint, Routes, Served


class Count(BaseModel):
    task: Literal["count"] = "count"
    version: str


class CountTask:
    """Counts the bytes of a file, times a factor; its model is a factor in a file."""

    name = "count"
    package_format = "test-count-1"
    output: Literal["labels", "images"] = "labels"

    def load(self, folder: Path, device: str | None = None) -> int:
        return int((folder / "factor.txt").read_text())

    def routes(self, endpoint: Endpoint) -> Routes:
        router = endpoint.make_router()

        @router.post("/v1/count", response_model=None)
        async def count(
            data: Annotated[UploadFile | None, File()] = None,
            times: Annotated[int, Form(ge=1, le=9)] = 1,
        ) -> Response:
            served: Served[int] = endpoint.served
            size = 0 if data is None else len(await data.read())
            return await endpoint.run(lambda: Response(str(size * times * served.model)), done="counted")

        return Routes(router, Count, lambda uri, served: Count(version=served.version))


@pytest.fixture
def client(watch: ModelWatch[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """An endpoint with the tasks of glioray and one more."""
    monkeypatch.setitem(sys.modules, "count_task", SimpleNamespace(CountTask=CountTask))
    monkeypatch.setitem(tasks.TASKS, "count", "count_task:CountTask")
    (tmp_path / "factor.txt").write_text("10")
    settings = Settings(model=watch.uri, superres=None, models={"count": str(tmp_path)}, max_body_mb=0.01)
    assert settings.uris == {"segmentation": watch.uri, "count": str(tmp_path)}
    further = ModelWatch(settings.uris["count"], tasks.load_task("count").load, poll_s=3600, device="cpu")
    further.refresh()
    assert further.served is None  # a folder without a package
    further.served = Served("models:/count/1", CountTask().load(tmp_path))
    return TestClient(make_api(settings, {"segmentation": watch, "count": further}))


def test_its_routes_answer_beside_the_others(client: TestClient, files: dict[str, bytes]) -> None:
    answer = client.post("/v1/count", files={"data": b"12345"}, data={"times": "3"})
    assert (answer.status_code, answer.text) == (200, "150")
    models = client.get("/v1/models").json()["models"]
    assert [model["task"] for model in models] == ["segmentation", "count"]
    assert models[1]["version"] == "models:/count/1"
    assert client.get("/readyz").json()["count"] == "serving models:/count/1"
    described = client.get("/openapi.json").json()
    assert {"/v1/segment", "/v1/superresolve", "/v1/count"} < set(described["paths"])
    assert "count" in described["components"]["schemas"]["Readiness"]["properties"]


def test_its_forms_have_the_limits_of_the_endpoint(client: TestClient, detail_of: Any) -> None:
    def refusal(status: int, **form: Any) -> str:
        detail: str = detail_of(client.post("/v1/count", **form), status)
        return detail

    assert "times is '10'; expected a number from 1 to 9" in refusal(
        422, data={"times": "10"}, files={"data": b""}
    )
    assert "times is 'x'; expected a number from 1 to 9" in refusal(
        422, data={"times": "x"}, files={"data": b""}
    )
    unknown = refusal(422, files={"date": b""})
    assert unknown == "the field 'date' is not known; send some of the files data, and times if you wish"
    assert "larger than 0.01 MB" in refusal(413, files={"data": bytes(20_000)})
    assert "Too many files" in refusal(400, files=[("data", b"")] * 17)
    assert "Too many fields" in refusal(400, files=[("times", (None, "1"))] * 17)
    assert "exceeded maximum size" in refusal(400, files={"times": (None, "1" * 2000)})
