"""What any HTTP client may expect: HEAD, Accept with weights, a front page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi.testclient import TestClient

from glioray.engine.serving import NOTICE, accepts_json

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def test_json_is_sent_where_it_is_named_and_nothing_is_preferred_to_it() -> None:
    answers = {
        "": False,
        "*/*": False,
        "application/*": False,
        "application/gzip": False,
        BROWSER: False,
        "application/json": True,
        "Application/JSON": True,
        "application/json; charset=utf-8": True,
        "application/json, text/plain, */*": True,  # as axios asks
        "application/json;q=0.9, */*;q=0.1": True,
        "text/html, application/json;q=0.2": True,
        "application/json ; Q=0.5 , image/png ; q=0.4": True,
        "application/json;q=0": False,
        "application/json;q=0, */*": False,
        "application/json;q=0.0,*/*;q=0.5": False,
        "application/json;q=0.5, application/gzip": False,
        "application/json;q=0.5, */*": False,
        "application/json;q=0.5, application/*;q=0.7": False,
        "application/json, application/gzip;q=0.5": True,
        "application/json;q=often": True,
    }
    assert {accept: accepts_json(accept) for accept in answers} == answers


def test_the_answer_follows_accept(client: TestClient, files: dict[str, bytes]) -> None:
    for accept, kind in {
        "application/json;q=0, */*": "application/gzip",
        "APPLICATION/JSON": "application/json",
        "application/gzip, application/json;q=0.5": "application/gzip",
    }.items():
        answer = client.post("/v1/segment", files=files, headers={"Accept": accept})
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)


def test_head_is_get_without_the_body(client: TestClient, make_client: Callable[..., TestClient]) -> None:
    for path in ("/", "/healthz", "/readyz", "/v1/models", "/openapi.json"):
        sent = {"X-Request-Id": "head-and-get"}
        head, get = client.head(path, headers=sent), client.get(path, headers=sent)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert dict(head.headers) == dict(get.headers)
    assert client.head("/v1/segment").status_code == 405
    assert client.head("/nowhere").status_code == 404


def test_the_front_page_says_what_there_is(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    assert (found["service"], found["notice"], found["state"]) == ("glioray", NOTICE, "ready")
    assert found["models"] == client.get("/v1/models").json()["models"]
    routes = {(route["method"], route["path"]): route["summary"] for route in found["routes"]}
    assert {("GET", "/"), ("GET", "/readyz"), ("POST", "/v1/segment"), ("POST", "/v1/superresolve")} < set(
        routes
    )
    assert all(routes.values())
    described = client.get(found["openapi"]).json()["paths"]
    assert {path for _, path in routes} == set(described)
    for accept in (BROWSER, "TEXT/HTML"):
        page = client.get("/", headers={"Accept": accept})
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "Research use only. Not for clinical decisions." in page.text
    assert client.get("/", headers={"Accept": "text/html;q=0.5, application/json"}).json() == found


def test_the_front_page_without_a_model(make_client: Callable[..., TestClient], watch: Any) -> None:
    watch.served = None
    client = make_client()
    answer = client.get("/")
    assert answer.status_code == 200
    assert watch.reason in answer.text
    assert client.get("/", headers={"Accept": "text/html"}).status_code == 200
    refused = client.get("/web/example.zip")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert watch.reason in refused.json()["detail"]
