"""MLflow's webhook makes the endpoint look at its aliases at once; nobody else can."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from mlflow.webhooks.delivery import _generate_hmac_signature
from serve.api import make_api
from serve.schemas import Settings
from serve.watch import ModelWatch

from glioray.errors import UsageError
from glioray.tasks.segmentation.predictor import Predictor

SECRET = "a secret of a webhook"
BODY = '{"entity": "model_version_alias", "action": "created", "data": {"name": "net", "alias": "champion"}}'


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    return path


def _headers(
    secret: str = SECRET, body: str = BODY, age_s: float = 0, signed_age_s: float | None = None
) -> dict[str, str]:
    """As MLflow's server sends them; `signed_age_s` is the age that was signed, where another one is stated."""
    stated, signed = (
        str(int(time.time() - age)) for age in (age_s, age_s if signed_age_s is None else signed_age_s)
    )
    return {
        "X-MLflow-Delivery-Id": "d1",
        "X-MLflow-Timestamp": stated,
        "X-MLflow-Signature": _generate_hmac_signature(secret, "d1", signed, body),
    }


def test_a_signed_call_brings_a_new_version_at_once(
    make_package: Callable[[int], Path], secret_file: Path
) -> None:
    served = [str(make_package(0))]
    watch: ModelWatch[Predictor] = ModelWatch(
        served[0], Predictor.load, poll_s=3600, device="cpu", resolve=lambda _: served[-1]
    )
    settings = Settings(webhook_secret=str(secret_file))

    def wait_for(version: str) -> None:
        end = time.monotonic() + 60
        while watch.served is None or watch.served.version != version:
            assert time.monotonic() < end
            time.sleep(0.02)

    with TestClient(make_api(settings, {"segmentation": watch})) as client:
        wait_for(served[0])
        served.append(str(make_package(1)))
        answer = client.post("/hooks/registry", content=BODY, headers=_headers())
        assert (answer.status_code, answer.json()) == (202, {"status": "following"})
        wait_for(served[1])


def test_calls_that_mlflow_did_not_sign_lately(
    watch: ModelWatch[Any], secret_file: Path, detail_of: Callable[[Any, int], str]
) -> None:
    client = TestClient(make_api(Settings(webhook_secret=str(secret_file)), {"segmentation": watch}))
    followed: list[None] = []
    watch.follow = lambda: followed.append(None)  # type: ignore[method-assign]
    for headers in (
        {},
        _headers("another secret"),
        _headers(body=BODY.replace("champion", "other")),
        _headers(age_s=301),
        _headers(age_s=-400),
        _headers(age_s=0, signed_age_s=301),
        {**_headers(), "X-MLflow-Signature": "v1,\xff"},
        {**_headers(), "X-MLflow-Timestamp": "1e9"},
        {**_headers(), "X-MLflow-Timestamp": "1" * 5000},
        {**_headers(), "X-MLflow-Timestamp": "²"},
    ):
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        answer = client.post("/hooks/registry", content=BODY, headers=encoded)
        assert "not signed with this endpoint's secret" in detail_of(answer, 401)
    assert not followed
    assert client.post("/hooks/registry", content=BODY, headers=_headers(age_s=290)).status_code == 202
    assert len(followed) == 1


def test_without_a_secret_there_is_no_such_route(watch: ModelWatch[Any]) -> None:
    client = TestClient(make_api(Settings(), {"segmentation": watch}))
    assert client.post("/hooks/registry", content=BODY, headers=_headers()).status_code == 404


@pytest.mark.parametrize(
    ("content", "expected"), [(None, "no such"), (b"short\n", "of 5 characters"), (b"\xff" * 20, "utf-8")]
)
def test_a_secret_that_cannot_be_used_is_a_sentence(
    watch: ModelWatch[Any], tmp_path: Path, content: bytes | None, expected: str
) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        make_api(Settings(webhook_secret=str(path)), {"segmentation": watch})
    assert expected in str(caught.value).lower()
