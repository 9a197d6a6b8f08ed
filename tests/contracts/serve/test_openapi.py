"""Every answer of the endpoint fits its OpenAPI description, whatever is sent: checked by Schemathesis."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serve.api import make_api
from serve.schemas import Settings
from serve.watch import ModelWatch

_EXAMPLES = 30


class _NoCluster:
    """Begins no job."""

    def start(self, root: str, job_id: str) -> None: ...

    def stop(self, job_id: str) -> None: ...

    def list_running(self) -> list[str]:
        return []


@pytest.fixture
def client(
    watch: ModelWatch[Any], make_superres_watch: Callable[..., ModelWatch[Any]], tmp_path: Path
) -> Iterator[TestClient]:
    """A client of both tasks' routes and of the jobs below `tmp_path`."""
    settings = Settings(job_roots=[str(tmp_path)])
    watches = {"segmentation": watch, "superres": make_superres_watch(**{"channels": "each"})}
    with TestClient(make_api(settings, watches, launcher=_NoCluster())) as client:
        yield client


def _operations(client: TestClient) -> dict[str, Any]:
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    return {found.ok().label: found.ok() for found in schema.get_all_operations()}


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_whatever_is_sent(client: TestClient) -> None:
    num_answers: dict[int, int] = {}

    for operation in _operations(client).values():
        # What has no body cannot be sent a wrong one: any text is a job's id, and most are not there.
        for mode in GenerationMode if operation.body.items else [GenerationMode.POSITIVE]:

            @hypothesis_settings(
                max_examples=_EXAMPLES,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: schemathesis.Case) -> None:
                # A form that fits the description can still hold bytes that are no image.
                answer = case.call_and_validate(excluded_checks=[positive_data_acceptance])
                num_answers[answer.status_code] = num_answers.get(answer.status_code, 0) + 1

            check()
    assert {200, 400, 404, 415, 422} <= num_answers.keys()


def test_good_requests(client: TestClient, files: dict[str, bytes], tmp_path: Path) -> None:
    operations = _operations(client)

    sent: set[str] = set()

    def send(method: str, route: str, path: str | None = None, **request: Any) -> Any:
        answer = client.request(method, path or route, **request)
        assert answer.is_success, answer.text
        sent.add(f"{method} {route}")
        operations[f"{method} {route}"].validate_response(answer)
        return answer

    for output in ("mask", "report", "probabilities", "overlay", "all"):
        for labels in ("brats-et4", "brats-et3"):
            send("POST", "/v1/segment", files=files, data={"output": output, "labels": labels})
    send("POST", "/v1/segment", files=files, headers={"Accept": "application/json"})
    send("POST", "/v1/segment", files=files, data={"resample": "true"})
    send("POST", "/v1/superresolve", files={"t1": files["t1"]}, data={"force": "true"})
    send(
        "POST", "/v1/superresolve", files={"image": _png(np.arange(20 * 28, dtype=np.uint8).reshape(20, 28))}
    )
    names = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair"}
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"BraTS2021_00001_{names[name]}.nii.gz", data)
    for route in ("/v1/segment", "/v1/superresolve"):
        fields = {"force": "true"} if route.endswith("superresolve") else {}
        send("POST", route, files={"case": zipped.getvalue()}, data=fields)
    job = send("POST", "/v1/jobs", json={"data": str(tmp_path)}).json()
    for method in ("GET", "DELETE"):
        send(method, "/v1/jobs/{job_id}", f"/v1/jobs/{job['id']}")
    for accepted in ("application/json", "text/html"):
        send("GET", "/", headers={"Accept": accepted})
    for route in ("/v1/models", "/healthz", "/readyz"):
        send("GET", route)
    assert not operations.keys() - sent


def test_a_body_that_is_no_text_is_a_sentence(
    client: TestClient, detail_of: Callable[[Any, int], str]
) -> None:
    for body in (b"\xef\xbf", b"[" * 60_000):
        answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
        assert "the body is no JSON object" in detail_of(answer, 422)
