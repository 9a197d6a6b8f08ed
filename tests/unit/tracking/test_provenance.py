"""What says which code made a run: a hash of it, and its commit where it can be known."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import glioray
from glioray.engine.on_mlflow.provenance import code_hash, code_tags, git_commit


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("GLIORAY_GIT_COMMIT", raising=False)
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    (tmp_path / "code.py").write_text("1\n")
    (tmp_path / "commit.txt").write_text("$Format:%H$\n")
    (tmp_path / ".gitattributes").write_text("commit.txt export-subst\n")
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


def test_an_archive_knows_its_commit(checkout: Path, repo: Path):
    attributes = (repo / ".gitattributes").read_text().split()
    assert attributes == ["platform/glioray/commit.txt", "export-subst"]
    assert (repo / "platform" / "glioray" / "commit.txt").read_text() == (checkout / "commit.txt").read_text()
    archive = checkout / "archive"
    archive.mkdir()
    _git(checkout, "archive", "--format=zip", f"--output={archive}/code.zip", "HEAD")
    shutil.unpack_archive(archive / "code.zip", archive)
    assert git_commit(archive / "code.py") == _git(checkout, "rev-parse", "HEAD")
    # The file as it lies in a checkout, and in an upload of one, states none.
    (archive / "commit.txt").write_text("$Format:%H$\n")
    assert git_commit(archive / "code.py") == "unknown"


def test_an_uploaded_package_has_the_commit_of_the_job_s_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("GLIORAY_GIT_COMMIT", raising=False)
    upload, elsewhere = tmp_path / "upload", tmp_path / "elsewhere"
    for folder in (upload / "platform", elsewhere):
        folder.mkdir(parents=True)
    monkeypatch.chdir(upload)
    for job, expected in (
        ({"metadata": {"glioray.git_commit": "abc"}, "runtime_env": {}}, "abc"),
        ({"metadata": {"job_name": "x"}}, "unknown"),
        ({"runtime_env": {}}, "unknown"),
    ):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
        assert git_commit(upload / "platform" / "code.py") == expected
        # What the job uploaded is not the code that runs.
        assert git_commit(elsewhere / "code.py") == "unknown"


def test_a_working_directory_that_is_gone_states_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GLIORAY_GIT_COMMIT", raising=False)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"glioray.git_commit": "abc"}}))
    package, removed = tmp_path / "package", tmp_path / "removed"
    for folder in (package, removed):
        folder.mkdir()
    monkeypatch.chdir(removed)
    removed.rmdir()
    assert git_commit(package / "code.py") == "unknown"


def test_the_hash_is_of_the_code_wherever_it_lies(tmp_path: Path):
    package = Path(glioray.__file__).parent
    copy = tmp_path / "py_modules" / "glioray"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__", "models"))
    (copy / "commit.txt").write_text("0" * 40)
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert code_hash(copy) == code_hash(package) == code_hash()
    assert len(code_hash()) == 64

    hashes = {code_hash()}
    for number, (path, text) in enumerate((("a.py", "1"), ("b.py", "1"), ("a.py", "2"), ("c/a.py", "1"))):
        folder = tmp_path / str(number)
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text(text)
        hashes.add(code_hash(folder))
    assert len(hashes) == 5


def test_the_tags_say_unknown_where_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLIORAY_GIT_COMMIT", "unknown")
    assert code_tags() == {"glioray.git_commit": "unknown", "glioray.code_hash": code_hash()}
    monkeypatch.setenv("GLIORAY_GIT_COMMIT", "abc-dirty")
    assert code_tags()["mlflow.source.git.commit"] == "abc"


def test_a_plain_folder_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GLIORAY_GIT_COMMIT", raising=False)
    assert git_commit(tmp_path / "code.py") == "unknown"


def test_the_variable_comes_first(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLIORAY_GIT_COMMIT", "abc-dirty")
    assert git_commit(checkout / "code.py") == "abc-dirty"
