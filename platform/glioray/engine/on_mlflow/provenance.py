"""Which code produced a run."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

COMMIT_KEY = "glioray.git_commit"
"""Of a job's metadata, in which infra/ray.sh states the commit; and the tag of a run."""

HASH_KEY = "glioray.code_hash"
"""The tag of a run for `code_hash`."""

_PACKAGE = Path(__file__).resolve().parents[2]
_UNKNOWN = "unknown"


@functools.cache
def code_hash(package: Path = _PACKAGE) -> str:
    """Return the SHA-256 of a package's code, the same for a checkout, an upload and an installed copy.

    It is of the `.py` files, sorted by their relative paths: of each, path, size and bytes.
    """
    digest = hashlib.sha256()
    files = {file.relative_to(package).as_posix(): file for file in package.rglob("*.py")}
    for path in sorted(files):
        data = files[path].read_bytes()
        digest.update(f"{path}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def git_commit(file: Path = _PACKAGE / "__init__.py") -> str:
    """Return the commit of the package that a file is directly in, or "unknown".

    Known are, in this order: GLIORAY_GIT_COMMIT, which jobs set for their workers; the package's checkout, with the
    suffix "-dirty" where tracked files are modified; the archive that it came in (`git archive`); and, of a package
    that was uploaded with a job, the job's metadata. A package installed inside another project's checkout, such as
    in a virtual environment, does not count as part of it.
    """
    if given := os.environ.get("GLIORAY_GIT_COMMIT", "").strip():
        return given
    package = file.resolve().parent
    return _of_checkout(package, file.name) or _of_archive(package) or _of_job(package) or _UNKNOWN


def code_tags() -> dict[str, str]:
    """Return the tags that say which code runs here: its hash, and its commit as far as known."""
    commit = git_commit()
    tags = {HASH_KEY: code_hash(), COMMIT_KEY: commit}
    if commit != _UNKNOWN:
        tags["mlflow.source.git.commit"] = commit.removesuffix("-dirty")
    return tags


def _of_checkout(package: Path, name: str) -> str | None:
    if _git(package, "ls-files", "--error-unmatch", name) is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}-dirty" if _git(package, "status", "--porcelain", "--untracked-files=no") else commit


def _of_archive(package: Path) -> str | None:
    """The commit that `git archive` has put into commit.txt (.gitattributes)."""
    file = package / "commit.txt"
    text = file.read_text().strip() if file.is_file() else ""
    return text if re.fullmatch("[0-9a-f]{40,64}", text) else None


def _of_job(package: Path) -> str | None:
    """The commit that the job's metadata state for its working directory, if the package is in there."""
    try:
        folder = Path.cwd().resolve()
    except FileNotFoundError:  # removed under this process
        return None
    if not package.is_relative_to(folder):
        return None
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    commit: str | None = (job.get("metadata") or {}).get(COMMIT_KEY)
    return commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
