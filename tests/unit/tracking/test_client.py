"""The address of the server, and what is said when nothing answers."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import ipaddress
import os
import sqlite3
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import glioray
from glioray.engine.on_mlflow.client import connect, shown, tracking_uri, unreachable
from glioray.errors import StorageError, UsageError

_LOG_A_RUN = """
import sys
from glioray.api.places import use_tracking
from glioray.engine.on_mlflow.client import artifact_location, connect

with use_tracking(sys.argv[1]) as address:
    client = connect(address)
    run = client.create_run(client.create_experiment("x", artifact_location(address)))
    client.log_text(run.info.run_id, "text", "a file.txt")
"""


def test_no_address_is_a_usage_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI is not set"):
        tracking_uri()


@pytest.mark.parametrize(
    "value", ["sqlite:///m.db", "sqlite://", "./mlruns", "file:///tmp/x", "http://", "databricks"]
)
def test_only_http_servers_and_absolute_sqlite_files_are_taken(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
    with pytest.raises(UsageError, match="expected http"):
        tracking_uri()


def test_a_trailing_slash_does_not_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000/")
    assert tracking_uri() == "http://host:5000"


def test_a_closed_port_is_told_without_the_password(free_port: int):
    with pytest.raises(StorageError, match="connection refused") as caught:
        connect(f"http://me:secret@127.0.0.1:{free_port}", attempts=1)
    assert f"http://127.0.0.1:{free_port} does not answer" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_addresses_are_shown_without_credentials():
    assert shown("https://me:pa:ss@host/mlflow") == "https://host/mlflow"
    assert shown("http://host:5000") == "http://host:5000"


class _Quiet(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _self_signed(folder: Path) -> Path:
    """A file with the key and the certificate of 127.0.0.1."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    path = folder / "server.pem"
    path.write_bytes(private + certificate.public_bytes(encoding))
    return path


def test_a_server_on_loopback_is_not_asked_through_a_proxy(
    server: http.server.HTTPServer, free_port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port}")
    connect(f"http://127.0.0.1:{server.server_port}", attempts=1)


def test_the_probe_uses_mlflows_own_certificates(
    server: http.server.HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pem = _self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    address = f"https://127.0.0.1:{server.server_port}"
    with pytest.raises(
        StorageError, match=r"cannot be verified: name the authority.*MLFLOW_TRACKING_INSECURE_TLS"
    ):
        connect(address, attempts=1)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(pem))
    assert unreachable(address) is None
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path / "none.pem"))
    assert (
        unreachable(address)
        == f"no certificates at MLFLOW_TRACKING_SERVER_CERT_PATH: {tmp_path / 'none.pem'}"
    )
    monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    with pytest.warns(Warning, match="Unverified HTTPS"):
        assert unreachable(address) is None


@pytest.mark.contracts
def test_a_sqlite_file_lies_in_a_folder_of_any_name(tmp_path: Path):
    folder = tmp_path / "100%20 of a?b#c; ä'\"&=+"
    # In a process of its own, whose environment no thread of another test reads.
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    env["PYTHONPATH"] = str(Path(glioray.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", _LOG_A_RUN, str(folder)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "mlflow.db").is_file()
    (found,) = (folder / "mlartifacts").rglob("a file.txt")
    assert found.read_text() == "text"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.contracts
def test_a_database_that_was_never_finished_is_a_sentence(tmp_path: Path):
    path = tmp_path / "mlflow.db"
    # What a process leaves that was killed during the migrations: tables, and the version before them.
    with contextlib.closing(sqlite3.connect(path)) as half, half:
        half.executescript(
            "create table alembic_version (version_num varchar(32)); create table experiments (x int);"
        )
    with pytest.raises(StorageError, match=r"mlflow.db is no whole database of MLflow .*; move it away"):
        connect(f"sqlite:///{path}")
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match=r"mlflow.db is no whole database of MLflow"):
        connect(f"sqlite:///{path}")
