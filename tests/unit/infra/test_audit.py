"""The audit of the pinned packages, against an advisory service on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import audit
import pytest

ADVISORY = {
    "id": "GHSA-aaaa-bbbb-cccc",
    "published": "2026-01-01T00:00:00Z",
    "affected": [
        {
            "package": {"name": "leaky", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.3"}]}],
        }
    ],
}


class _Osv(BaseHTTPRequestHandler):
    """Knows one advisory, on `leaky` before 1.3, as api.osv.dev would answer."""

    def do_POST(self) -> None:
        asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        hit = asked["package"]["name"] == "leaky" and asked["version"] < "1.3"
        body = json.dumps({"vulns": [ADVISORY]} if hit else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[list[str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Osv)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield ["-s", "osv", "--osv-url", f"http://127.0.0.1:{server.server_port}/v1/query"]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.contracts
def test_an_advisory_on_a_pinned_version_fails_until_it_is_mended_or_accepted(
    service: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("leaky==1.2\nsound==1.0\n")
    assert audit.audit([pins], service) == 1
    said = capsys.readouterr().out
    assert "leaky 1.2: GHSA-aaaa-bbbb-cccc, mended in 1.3" in said
    assert "2 of 2 packages looked up, advisories: 1" in said
    with monkeypatch.context() as context:
        context.setitem(audit.ACCEPTED, "GHSA-aaaa-bbbb-cccc", "leaks nothing that we put in")
        assert audit.audit([pins], service) == 0
    pins.write_text("leaky==1.3\nsound==1.0\n")
    assert audit.audit([pins], service) == 0


def test_without_a_service_it_says_that_nothing_was_audited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("sound==1.0\n")
    assert audit.audit([pins], ["-s", "osv", "--osv-url", "http://127.0.0.1:9/v1/query"]) == 0
    assert capsys.readouterr().out.startswith("NOT AUDITED: ")


def test_an_audit_that_fails_for_another_reason_is_no_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.audit([tmp_path / "nowhere.txt"]) == 1
    assert capsys.readouterr().out.startswith("pip-audit failed: ")
