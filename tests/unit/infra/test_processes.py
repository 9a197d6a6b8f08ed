"""Servers are started, waited for and ended, together with what they started and nothing else."""

from __future__ import annotations

import http.server
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import processes
import psutil
import pytest
import services

# Starts a child in a session of its own, as Ray does for a job's driver, and prints both.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("child", child.pid, flush=True)
time.sleep(600)
"""


def _start(tmp_path: Path, code: str, **options: object) -> processes.Service:
    log = tmp_path / "log"
    settings: dict[str, object] = {
        "env": {},
        "log": log,
        "cwd": tmp_path,
        "address": "nowhere",
        "client_env": {},
        "timeout_s": 60,
        "ready": lambda: bool(log.read_text()),
    }
    return processes.start_process(
        "the test's server", [sys.executable, "-c", code], **{**settings, **options}
    )  # type: ignore[arg-type]


@pytest.mark.contracts
def test_a_service_ends_with_its_descendants(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    service = _start(tmp_path, PARENT, scratch=(scratch,))
    child = psutil.Process(int(service.log.read_text().split()[1]))
    assert service.alive()
    service.stop(timeout_s=10)
    assert not service.alive()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running()
    assert not scratch.exists()
    service.stop()


def test_a_service_that_ignores_the_term_signal_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    service = _start(tmp_path, code)
    service.stop(timeout_s=0.4)
    assert not service.alive()


def test_a_stranger_with_the_same_number_is_left_alone() -> None:
    stranger = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
    )
    try:
        started = psutil.Process(stranger.pid).create_time()
        processes.end_processes(stranger.pid, started - 3600)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.contracts
def test_what_a_dead_leader_left_is_ended(tmp_path: Path) -> None:
    code = "import os, sys, time\nif os.fork():\n    time.sleep(600)\nprint(os.getpid(), flush=True)\ntime.sleep(600)"
    service = _start(tmp_path, code)
    orphan = psutil.Process(int(service.log.read_text()))
    leader = psutil.Process(service.pid)
    leader.kill()
    leader.wait(timeout=10)
    service.stop(timeout_s=10)
    psutil.wait_procs([orphan], timeout=10)
    assert not orphan.is_running()


def test_a_server_that_ends_at_once_is_said_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(
        processes.ServiceError, match=r"test's server ended at once with status 3.*no such luck"
    ) as caught:
        _start(tmp_path, "import sys; print('no such luck'); sys.exit(3)", ready=lambda: False)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "log") in str(caught.value)


@pytest.mark.contracts
def test_a_server_that_never_answers_is_ended_and_said(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with pytest.raises(processes.ServiceError, match="was not ready after"):
        _start(tmp_path, code, ready=lambda: time.sleep(0.5) or False, timeout_s=1, scratch=(scratch,))
    assert not psutil.pid_exists(int((tmp_path / "log").read_text()))
    assert not scratch.exists()


def test_the_environment_is_passed_on_and_an_empty_value_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEPT", "")
    monkeypatch.setenv("REMOVED", "1")
    code = textwrap.dedent(
        """
        import os, time
        print([os.environ.get(name) for name in ("GIVEN", "KEPT", "REMOVED")], flush=True)
        time.sleep(600)
        """
    )
    service = _start(tmp_path, code, env={"GIVEN": "x", "REMOVED": ""})
    service.stop()
    assert service.log.read_text().strip() == "['x', '', None]"


def test_a_server_of_this_machine_is_never_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.HTTPServer((processes.LOOPBACK, 0), http.server.SimpleHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{processes.free_port()}")
        address = f"http://127.0.0.1:{server.server_port}"
        assert processes.answers(f"{address}/")
        assert not processes.answers(f"{address}/none")
        server.shutdown()
        thread.join()


def test_free_ports_differ_and_are_free() -> None:
    ports = processes.free_ports(8)
    assert len(set(ports)) == 8
    for port in ports:
        with socket.create_server((processes.LOOPBACK, port)):
            assert not processes._is_free(port)


def test_a_token_is_the_owners_and_stays(tmp_path: Path) -> None:
    token = tmp_path / "below" / "auth_token"
    services.make_token(token)
    text = token.read_text()
    assert len(text) == 64
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    services.make_token(token)
    assert token.read_text() == text


def test_a_worker_cannot_join_a_loopback_head(tmp_path: Path) -> None:
    env = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    head = processes.Service(name="head", address="", env=env, pid=1, started=0.0, log=tmp_path / "log")
    with pytest.raises(processes.ServiceError, match="several_nodes=True"):
        services.start_ray_worker(tmp_path, head)
