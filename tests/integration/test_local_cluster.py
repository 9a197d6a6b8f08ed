"""`infra/local.sh up` in a checkout of its own, and `ray job submit jobs/NAME.py`, typed literally, in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

JOB = """#!/usr/bin/env python3
import json, os, ray
from mlflow import MlflowClient
ray.init()
names = ("GLIORAY_DATA", "GLIORAY_STORAGE", "MLFLOW_TRACKING_URI")
found = {name: os.environ.get(name) for name in names}
found["cwd"] = os.getcwd()
found["experiments"] = len(MlflowClient().search_experiments())
found["worker"] = ray.get(ray.remote(lambda: os.environ["GLIORAY_DATA"]).remote())
print("found", json.dumps(found))
"""


@pytest.fixture(scope="module")
def checkout(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the repository with this Python in place of its .venv, in which `up` was run; `down` at the end."""
    root = tmp_path_factory.mktemp("checkout") / "a clone's folder"
    for folder in ("infra", "platform"):
        shutil.copytree(repo / folder, root / folder)
    (root / "jobs").mkdir()
    shutil.copy(repo / "jobs" / "_path.py", root / "jobs")
    (root / "jobs" / "say.py").write_text(JOB)
    (root / "jobs" / "say.py").chmod(0o755)
    bin_folder = root / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    shutil.copy(root / "infra" / "ray.sh", bin_folder / "ray")
    (bin_folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (bin_folder / "python").chmod(0o755)
    _local(root, "up")
    yield root
    _local(root, "down")


def _bare_environment(root: Path) -> dict[str, str]:
    """What a user has who has set nothing, in an empty home."""
    kept = ("PATH", "LANG", "TMPDIR", "SSL_CERT_FILE")
    return {"HOME": str(root / "home"), **{name: os.environ[name] for name in kept if name in os.environ}}


def _local(root: Path, *args: str) -> str:
    command = [sys.executable, "infra/local.py", *args]
    done = subprocess.run(
        command, cwd=root, env=_bare_environment(root), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_literal_command_works_for_who_has_set_nothing(checkout: Path) -> None:
    command = [".venv/bin/ray", "job", "submit", "jobs/say.py"]
    done = subprocess.run(
        command, cwd=checkout, env=_bare_environment(checkout), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("found ")]
    found = json.loads(line.removeprefix("found "))
    assert found["cwd"] == str(checkout)
    assert found["GLIORAY_DATA"] == found["worker"] == str(checkout / ".glioray" / "phantom")
    assert found["GLIORAY_STORAGE"] == str(checkout / ".glioray" / "storage")
    assert found["experiments"] >= 1
    assert len(list((checkout / ".glioray" / "phantom").glob("BraTS2021_*/*.nii.gz"))) >= 5


def test_a_failing_job_fails_the_command(checkout: Path) -> None:
    command = [".venv/bin/ray", "job", "submit", "--", "python", "-c", "raise SystemExit(3)"]
    env = _bare_environment(checkout)
    assert subprocess.run(command, cwd=checkout, env=env, capture_output=True, timeout=300).returncode == 1


def test_nobody_gets_in_without_the_token(checkout: Path) -> None:
    state = json.loads((checkout / ".glioray" / "state.json").read_text())
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{state['ray']['address']}/api/jobs/")


def test_a_second_up_keeps_what_runs_and_status_says_it(checkout: Path) -> None:
    before = (checkout / ".glioray" / "state.json").read_text()
    assert "already up" in _local(checkout, "up")
    assert (checkout / ".glioray" / "state.json").read_text() == before
    state = json.loads(before)
    said = _local(checkout, "status")
    assert all(state[name]["address"] in said for name in ("mlflow", "ray"))


def test_every_port_is_on_loopback(checkout: Path) -> None:
    import psutil

    state = json.loads((checkout / ".glioray" / "state.json").read_text())
    leaders = [psutil.Process(service["pid"]) for service in state.values()]
    listening = [
        connection.laddr.ip
        for leader in leaders
        for process in (leader, *leader.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 5
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
