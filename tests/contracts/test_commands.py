"""The command line of every job: its help, and how it refuses what cannot be carried out."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

JOBS = sorted(path.stem for path in (Path(__file__).parents[2] / "jobs").glob("[a-z]*.py"))
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_here(repo: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs `python jobs/NAME.py FLAGS` in this process, which spares the import of torch; for what starts no Ray."""
    # It would outlive the test, and keep what is logged from pytest.
    monkeypatch.setattr("glioray.cli.job.log_to_stderr", lambda: None)
    monkeypatch.setattr("glioray.cli.job.Console.start", lambda self: None)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(job: str, *flags: str) -> subprocess.CompletedProcess[str]:
        path = repo / "jobs" / f"{job}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *flags])
        stdout = os.dup(1)  # a job sends what libraries print to stderr, and its process ends there
        try:
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(path), run_name="__main__")
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
        code: Any = ended.value.code
        return subprocess.CompletedProcess([job, *flags], code or 0, *capfd.readouterr())

    return run


@pytest.fixture
def run_alone(repo: Path, tmp_path: Path) -> Command:
    """Runs it in a process of its own."""

    def run(job: str, *flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(repo / "jobs" / f"{job}.py"), *flags]
        env = {**os.environ, "HOME": str(tmp_path)}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)

    return run


def assert_refused(done: subprocess.CompletedProcess[str], sentence: str) -> None:
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_every_job_is_executable_explains_itself_and_refuses_what_it_does_not_know(
    repo: Path, run_here: Command
):
    assert len(JOBS) >= 12
    for job in JOBS:
        assert os.access(repo / "jobs" / f"{job}.py", os.X_OK), job
        done = run_here(job, "--help")
        assert (done.returncode, done.stderr) == (0, ""), job
        assert "--dry-run" in done.stdout, job
        assert_refused(run_here(job, "--no-such-flag"), "unrecognized arguments: --no-such-flag")


@pytest.mark.parametrize(
    ("job", "flags", "sentence"),
    [
        ("train_unet", ["--data", "/tmp", "--recipe", "nnunet"], "the recipes are unet_tiny"),
        ("train_unet", ["--data", "/tmp", "--set", "optim.lr=-1"], "optim.lr is -1; expected above 0"),
        ("train_unet", ["--data", "/tmp", "--workers", "3", "--dry-run"], "a multiple of the 3 workers"),
        ("tune_unet", ["--data", "/tmp", "--trials", "0"], "--trials is 0; expected at least 1"),
        (
            "train_gan",
            ["--data", "/tmp", "--recipe", "unet_tiny"],
            "no recipe 'unet_tiny' of the task superres",
        ),
        ("train_gan", ["--data", "/tmp", "--set", "d_steps=0"], "d_steps is 0; expected from 1 to 16"),
        ("train_unet", [], "give --data with a folder or s3://bucket/prefix"),
        ("prepare", ["--data", "gs://bucket"], "use a folder, file:// or s3://bucket/prefix"),
        ("predict", ["--data", "/tmp"], "give --out"),
        ("prepare", ["--data", "/tmp", "--folds", "1"], "--folds is 1; expected at least 2"),
        (
            "compare",
            ["--data", "/tmp", "--nets", "unet", "--folds", "1"],
            "--folds is 1; expected at least 2",
        ),
        (
            "prepare",
            ["--data", "/tmp", "--ratios", "0.8", "0.3", "0"],
            "--ratios is (0.8, 0.3, 0.0); expected three",
        ),
        ("prepare", ["--data", "/tmp", "--out", "/dev/null/x"], "--out: '/dev/null/x' cannot be written"),
        (
            "predict",
            ["--data", "/tmp", "--out", "/dev/null", "--model", "/tmp"],
            "--out: '/dev/null' cannot be",
        ),
        (
            "evaluate",
            ["--data", "/tmp", "--out", "/dev/null", "--model", "/tmp"],
            "--out: '/dev/null' cannot be",
        ),
        (
            "compare",
            ["--data", "/tmp", "--nets", "unet", "--minutes-each", "1", "--out", "/dev/null"],
            "--out: ",
        ),
        (
            "calibrate",
            ["--data", "/tmp", "--recipe", "mri_tiny", "--out", "/dev/null"],
            "--out: '/dev/null' cannot",
        ),
        (
            "train_unet",
            ["--data", "/tmp", "--storage", "/dev/null"],
            "--storage, by default GLIORAY_STORAGE or ~/gl",
        ),
        (
            "tune_unet",
            ["--data", "/tmp", "--name", "a/b"],
            "--name is 'a/b'; expected a name without '/' and ':'",
        ),
        ("evaluate", ["--data", "/tmp", "--model", "/tmp", "--split", "validation"], "labelled"),
    ],
)
def test_invalid_requests_are_refused_in_one_sentence(
    run_here: Command, job: str, flags: list[str], sentence: str
):
    assert_refused(run_here(job, *flags), sentence)


def test_a_process_of_its_own_answers_alike(run_here: Command, run_alone: Command):
    for flags in (["--help"], ["--no-such-flag"]):
        here, alone = run_here("train_unet", *flags), run_alone("train_unet", *flags)
        assert (here.returncode, here.stdout, here.stderr) == (alone.returncode, alone.stdout, alone.stderr)
