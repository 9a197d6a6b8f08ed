"""API keys: who is let in, how often, what is kept of a key, and what an endpoint without keys may listen on."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serve import app as serve_app
from serve.api_keys import ApiKey, KeyFile, RequireKey, hash_key, read_keys, write_keys
from serve.schemas import Settings

from glioray.errors import UsageError

KEY, OTHER = "glioray_one", "glioray_two"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A file with one key without a limit, and one with two requests a minute."""
    path = tmp_path / "keys.json"
    keys = {
        "pipeline": ApiKey(sha256=hash_key(KEY)),
        "guest": ApiKey(sha256=hash_key(OTHER), per_minute=2),
    }
    write_keys(str(path), keys)
    return path


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_is_asked_for_where_cases_are_sent(
    make_client: Callable[..., TestClient],
    key_file: Path,
    files: dict[str, bytes],
    detail_of: Callable[[Any, int], str],
) -> None:
    with make_client(api_keys=str(key_file)) as client:
        for path in ("/", "/healthz", "/readyz"):
            assert client.get(path).status_code == 200
        for headers in (
            {},
            _bearer("glioray_three"),
            {"Authorization": KEY},
            {"Authorization": f"Basic {KEY}"},
        ):
            answer = client.post("/v1/segment", files=files, headers=headers)
            detail = detail_of(answer, 401)
            assert "send the header 'Authorization: Bearer KEY'" in detail
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/v1/models").status_code == 401
        assert client.head("/v1/models").status_code == 401
        # Whatever is sent needs a key, wherever it goes.
        assert client.post("/nowhere").status_code == 401
        assert client.get("/v1/models", headers=_bearer(KEY)).status_code == 200
        assert client.post("/v1/segment", files=files, headers=_bearer(KEY)).status_code == 200


def test_a_mounted_prefix_hides_no_route(key_file: Path) -> None:
    middleware = RequireKey(_never, KeyFile(str(key_file)))  # type: ignore[arg-type]
    for path, root in (("/brain/v1/models", "/brain"), ("/v1/models", "/brain"), ("/v1/models", "/v1")):
        scope = {"type": "http", "method": "GET", "path": path, "root_path": root, "headers": []}
        assert _status(middleware, scope) == 401


async def _never(*_: object) -> None:
    raise AssertionError("a request without a key went through")


def _status(middleware: RequireKey, scope: dict[str, Any]) -> int:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(middleware(scope, None, send))  # type: ignore[arg-type]
    status: int = sent[0]["status"]
    return status


def test_a_key_has_its_requests_a_minute(key_file: Path) -> None:
    now = [100.0]
    requests = RequireKey(_never, KeyFile(str(key_file)), clock=lambda: now[0])  # type: ignore[arg-type]
    guest = ApiKey(sha256=hash_key(OTHER), per_minute=2)
    assert [requests._wait_s("guest", guest) for _ in range(3)] == [0, 0, 30]
    assert requests._wait_s("other guest", guest) == 0
    now[0] += 29
    assert requests._wait_s("guest", guest) == pytest.approx(1)
    now[0] += 1
    assert requests._wait_s("guest", guest) == 0
    now[0] += 3600  # an hour of rest is no more than a minute's
    assert [requests._wait_s("guest", guest) > 0 for _ in range(3)] == [False, False, True]
    assert [requests._wait_s("pipeline", ApiKey(sha256=hash_key(KEY))) for _ in range(100)] == [0] * 100


def test_a_key_above_its_limit_gets_429(
    make_client: Callable[..., TestClient], key_file: Path, detail_of: Callable[[Any, int], str]
) -> None:
    client = make_client(api_keys=str(key_file))
    assert [client.get("/v1/models", headers=_bearer(OTHER)).status_code for _ in range(2)] == [200, 200]
    refused = client.get("/v1/models", headers=_bearer(OTHER))
    assert "has had its 2 requests a minute; retry in 30 s" in detail_of(refused, 429)
    assert refused.headers["retry-after"] == "30"
    assert client.get("/v1/models", headers=_bearer(KEY)).status_code == 200


def test_a_change_of_the_file_is_taken_and_a_damaged_one_is_not(key_file: Path) -> None:
    now = [0.0]
    keys = KeyFile(str(key_file), clock=lambda: now[0])

    def find(key: str) -> str | None:
        found = asyncio.run(keys.find(key))
        return None if found is None else found[0]

    assert (find(KEY), find(OTHER), find("glioray_three")) == ("pipeline", "guest", None)
    write_keys(str(key_file), {"guest": ApiKey(sha256=hash_key("glioray_three"))})
    assert find(KEY) == "pipeline"
    now[0] += 6
    assert (find(KEY), find(OTHER), find("glioray_three")) == (None, None, "guest")
    key_file.write_text("[]")
    now[0] += 6
    assert find("glioray_three") == "guest"


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"a": "b"}', '{"a": {"sha256": "b"}}', '{"a": {"sha256": "' + "0" * 64 + '", "x": 1}}'],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"holds no API keys .*; make it with serve/keys\.py") as caught:
        read_keys(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="file of API keys, by default GLIORAY_API_KEYS"):
        read_keys(str(tmp_path / "absent.json"))


def test_the_script_makes_lists_and_removes_keys(repo: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"

    def run(*words: str) -> tuple[int, dict[str, Any], str]:
        command = [sys.executable, str(repo / "serve" / "keys.py"), *words]
        env = {**os.environ, "GLIORAY_API_KEYS": str(path)}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
        return done.returncode, json.loads(done.stdout or "{}"), done.stderr

    code, made, _ = run("add", "pipeline", "--per-minute", "30")
    assert code == 0
    assert len(made["key"]) > 43  # 32 bytes and a prefix
    assert made["key"] not in path.read_text()
    assert read_keys(str(path)) == {"pipeline": ApiKey(sha256=hash_key(made["key"]), per_minute=30)}
    code, _, said = run("add", "pipeline")
    assert (code, "there is a key 'pipeline'" in said) == (2, True)
    assert run("list")[1] == {"keys": {"pipeline": 30}}
    assert run("remove", "pipeline")[1] == {"removed": "pipeline"}
    assert read_keys(str(path)) == {}


def test_without_keys_an_endpoint_listens_on_loopback_alone(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIORAY_API_KEYS", raising=False)

    def settings(*flags: str) -> Settings:
        endpoint = serve_app.parse_endpoint(["--model", "folder", "--superres", "none", *flags])
        assert endpoint is not None
        return serve_app._settings(endpoint)

    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        assert settings("--host", host).api_keys is None
    for host in ("0.0.0.0", "10.0.0.5", "::", "example.org"):
        with pytest.raises(UsageError, match=f"--host is {host} and there are no API keys; give --api-keys"):
            settings("--host", host)
        assert settings("--host", host, "--no-keys").api_keys is None
        assert settings("--host", host, "--api-keys", str(key_file)).api_keys == str(key_file)
    with pytest.raises(UsageError, match="both --api-keys and --no-keys"):
        settings("--no-keys", "--api-keys", str(key_file))
    monkeypatch.setenv("GLIORAY_API_KEYS", str(key_file))
    assert settings("--host", "0.0.0.0").api_keys == str(key_file)
    assert settings("--no-keys").api_keys is None
    monkeypatch.setenv("GLIORAY_API_KEYS", str(key_file.with_name("absent")))
    with pytest.raises(UsageError, match="absent"):
        settings()


def test_a_serve_config_states_its_keys_or_that_there_are_none(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIORAY_API_KEYS", raising=False)
    with pytest.raises(UsageError, match="the endpoint has no API keys; name their file in api_keys"):
        serve_app.build_app(Settings())
    assert serve_app.build_app(Settings(no_keys=True)) is not None
    assert serve_app.build_app(Settings(api_keys=str(key_file))) is not None


def test_scripts_of_other_pages_are_let_in_by_name(make_client: Callable[..., TestClient]) -> None:
    page = "https://viewer.example.org"
    preflight = {
        "Origin": page,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "Authorization",
    }
    closed, opened = make_client(), make_client(allowed_origins=(page,))
    assert "access-control-allow-origin" not in closed.get("/healthz", headers={"Origin": page}).headers
    assert "access-control-allow-origin" not in closed.options("/v1/segment", headers=preflight).headers
    answer = opened.options("/v1/segment", headers=preflight)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, page)
    assert opened.get("/healthz", headers={"Origin": page}).headers["access-control-allow-origin"] == page
    other = opened.get("/healthz", headers={"Origin": "https://other.example.org"})
    assert "access-control-allow-origin" not in other.headers
    endpoint = serve_app.parse_endpoint(
        ["--model", "folder", "--superres", "none", "--allowed-origins", f"{page},*"]
    )
    assert endpoint is not None
    with pytest.raises(
        UsageError, match=r"'\*' is no origin; expected one such as https://viewer\.example\.org"
    ):
        serve_app._settings(endpoint)
    for origin in ("*", "viewer.example.org", "https://viewer.example.org/page"):
        with pytest.raises(ValueError, match="is no origin"):
            Settings(allowed_origins=(origin,))
