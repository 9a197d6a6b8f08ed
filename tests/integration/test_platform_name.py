"""`platform/` beside a Ray job must not take the place of the standard library's module."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

PRINT = "import platform; print('python', platform.python_version())"
EXPECTED = f"python {platform.python_version()}"


def test_the_repository_root_keeps_the_standard_library(repo: Path) -> None:
    assert not (repo / "platform" / "__init__.py").exists()
    done = subprocess.run([sys.executable, "-c", PRINT], cwd=repo, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == EXPECTED


def test_a_job_with_the_repository_as_working_directory_keeps_it(repo: Path, ray_cluster: object) -> None:
    command = [
        "-m",
        "ray.scripts.scripts",
        "job",
        "submit",
        "--working-dir",
        ".",
        "--",
        "python",
        "-c",
        PRINT,
    ]
    done = subprocess.run([sys.executable, *command], cwd=repo, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert EXPECTED in done.stdout
