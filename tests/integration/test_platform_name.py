"""`platform/` beside a Ray job must not take the place of the standard library's module.

Ray puts a job's working directory on Python's path. That whole jobs run in the repository's root on a cluster is
`tests/e2e/test_jobs.py`'s.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PRINT = "import platform; print('python', platform.python_version())"
EXPECTED = f"python {platform.python_version()}"


@pytest.mark.parametrize("path", [None, "."], ids=["as working directory", "on the path"])
def test_the_repository_root_keeps_the_standard_library(repo: Path, path: str | None) -> None:
    assert not (repo / "platform" / "__init__.py").exists()
    env = {**os.environ, **({} if path is None else {"PYTHONPATH": path})}
    done = subprocess.run(
        [sys.executable, "-c", PRINT], cwd=repo, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == EXPECTED
