"""The commit that a run is tagged with."""

import os
import subprocess
from pathlib import Path

import pytest

from glioray.engine.on_mlflow.provenance import git_commit


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("GLIORAY_GIT_COMMIT", raising=False)
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    (tmp_path / "code.py").write_text("1\n")
    (tmp_path / ".gitignore").write_text(".venv\n")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "one")
    return tmp_path


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_checkout_gives_its_commit_and_says_when_it_is_changed(checkout: Path):
    head = _git(checkout, "rev-parse", "HEAD")
    assert git_commit(checkout / "code.py") == head
    (checkout / "code.py").write_text("2\n")
    assert git_commit(checkout / "code.py") == f"{head}-dirty"


def test_a_package_in_the_environment_of_a_checkout_is_not_part_of_it(checkout: Path):
    installed = checkout / ".venv" / "code.py"
    installed.parent.mkdir()
    installed.write_text("1\n")
    assert git_commit(installed) == "unknown"


def test_a_plain_folder_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GLIORAY_GIT_COMMIT", raising=False)
    assert git_commit(tmp_path / "code.py") == "unknown"


def test_the_variable_comes_first(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLIORAY_GIT_COMMIT", "abc-dirty")
    assert git_commit(checkout / "code.py") == "abc-dirty"
