"""What the tests of whole jobs share."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glioray.cases.manifest import Manifest
from glioray.storage import open_storage


@pytest.fixture(scope="session")
def run_job(repo: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs this Python on a command in the repository, with further variables in `env`, and waits for its end."""

    def run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            cwd=repo,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


@pytest.fixture(scope="session")
def phantom_manifest(phantom_index: Manifest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The phantoms as `prepare.py` leaves them for `--data`."""
    folder = tmp_path_factory.mktemp("manifest")
    phantom_index.save(open_storage(folder))
    return str(folder / "manifest.json")


@pytest.fixture
def run_here(
    repo: Path, ray_local: None, slice_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Runs a job in this process and its Ray, and returns its answer; it raises what the command would print.

    That saves the start of Python and of Ray; what a job is as a command is `test_jobs`'s.
    """
    monkeypatch.setenv("GLIORAY_CACHE", str(slice_cache))

    def run(job: str, *flags: str) -> dict[str, Any]:
        path = str(repo / "jobs" / f"{job}.py")
        answer: dict[str, Any] = runpy.run_path(path)["job"].answer(flags)
        return answer

    return run
