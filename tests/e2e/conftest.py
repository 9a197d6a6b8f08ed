"""What the tests of whole jobs share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


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
