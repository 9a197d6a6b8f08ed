"""Which code produced a run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def git_commit(file: Path = Path(__file__)) -> str:
    """Return this package's commit: from GLIORAY_GIT_COMMIT, else from its checkout, else "unknown".

    A checkout with modified tracked files gets the suffix "-dirty". Jobs set the variable for their workers, which
    receive the package without its history. A package installed inside another project's checkout, such as in a
    virtual environment, does not count as part of it.
    """
    if given := os.environ.get("GLIORAY_GIT_COMMIT", "").strip():
        return given
    folder = file.resolve().parent
    if _git(folder, "ls-files", "--error-unmatch", file.name) is None:
        return "unknown"
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return "unknown"
    return f"{commit}-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
