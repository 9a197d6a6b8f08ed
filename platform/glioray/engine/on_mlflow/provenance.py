"""Which code a run was made by."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def git_commit(file: Path = Path(__file__)) -> str:
    """The commit of a file of this package: GLIORAY_GIT_COMMIT, else its checkout's, else "unknown".

    A checkout with changed files that git knows gets "-dirty" behind its commit. Jobs set the variable for their
    workers, where the package arrives without its history. A package that merely lies inside someone
    else's checkout, in a virtual environment, is not taken for part of it.
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
