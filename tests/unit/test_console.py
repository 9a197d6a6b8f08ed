"""What a job shows of all that it and its libraries say."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from glioray.cli import console as module
from glioray.cli.console import _Screen
from glioray.progress import IN_LOG, MARK, _Marking, format_duration, log_progress

# A library's lines, by Python and below it; a worker's line as Ray forwards it; and the job's own.
JOB = """
import logging, os, sys
from glioray.cli.console import Console
from glioray.cli.job import run_job
from glioray.errors import UsageError
from glioray.progress import IN_LOG, log_progress, log_to_stderr

console = Console("job")

def work():
    console.start()
    log_to_stderr()
    log = logging.getLogger("glioray.job")
    print("a library on stdout")
    os.write(2, b"a library below Python\\n(raylet) a warning\\n")
    os.write(2, b"\\x1b[36m(Worker pid=1)\\x1b[0m \\x1fa worker's line\\n")
    log.info("twice")
    log.info("twice")
    log.info("for the log alone", extra=IN_LOG)
    log_progress(log, "training", 0.25, 0.0, "loss 1")
    log_progress(log, "training", 0.5, 0.0, "loss 2")
    log_progress(log, "training", 1.0, 0.0, "loss 3")
    if len(sys.argv) > 1:
        raise {"bad": UsageError("not so"), "worse": ZeroDivisionError("no reason")}[sys.argv[1]]
    return {"a": 1}

run_job(work, console)
"""
SHOWN = ["a worker's line", "twice", "training: 25 %", "training: done in"]


def _run(tmp_path: Path, *args: str) -> tuple[subprocess.CompletedProcess[str], list[str], str]:
    """The process, the lines that it showed after the first one, and its log."""
    env = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2]), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", JOB, *args], env=env, capture_output=True, text=True)
    first, *lines = done.stderr.splitlines()
    assert first.startswith(f"all messages: {tmp_path}/glioray-job-")
    return done, lines, Path(first.removeprefix("all messages: ")).read_text()


def test_a_job_shows_its_own_lines_once_and_logs_all(tmp_path: Path) -> None:
    done, lines, log = _run(tmp_path)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"a": 1})
    assert len(lines) == len(SHOWN)
    assert all(line.startswith(begin) for line, begin in zip(lines, SHOWN, strict=True))
    for text in (
        "a library on stdout",
        "a library below Python",
        "(raylet) a warning",
        "for the log alone",
        "50 %",
    ):
        assert text in log


def test_an_error_is_one_sentence_and_an_unexpected_one_has_its_origin_in_the_log(tmp_path: Path) -> None:
    for name, code, sentence in (
        ("bad", 2, "error: not so"),
        ("worse", 1, "error: no reason (ZeroDivisionError); its origin is in the log"),
    ):
        done, lines, log = _run(tmp_path, name)
        assert (done.returncode, done.stdout, lines[-1]) == (code, "", sentence)
        assert "Traceback" not in done.stderr
        assert ("Traceback" in log) == (name == "worse")


def test_a_terminal_has_one_bar(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2]), "TMPDIR": str(tmp_path)}
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (24, 100))
    process = subprocess.Popen([sys.executable, "-c", JOB], env=env, stderr=there, stdout=subprocess.PIPE)
    os.close(there)
    text = ""
    with open(here, "rb", buffering=0) as stream:
        while True:
            try:
                text += stream.read(4096).decode()
            except OSError:  # the other end is closed
                break
    process.communicate()
    assert "50 % |" in text
    assert re.search(r"\|\s*training: 50 % done, .* left; loss 2", text)
    # Drawn over itself, and gone at the end.
    assert text.splitlines()[-1].startswith("training: done in")


def test_where_there_is_no_terminal_a_stage_is_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    screen = _Screen(stream)
    for second in range(200):
        now[0] = float(second)
        screen.take(f"{second / 200:.4f}{MARK}training{MARK}{second}")
    screen.take(f"0.1{MARK}search{MARK}other")
    assert stream.getvalue().split() == ["0", "61", "122", "183", "other"]


def test_marked_lines(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("test.progress")
    with caplog.at_level(logging.INFO, logger.name):
        logger.info("a\nb")
        logger.info("c", extra=IN_LOG)
        log_progress(logger, "training", 0.0, 0.0)
    shown, hidden = _Marking(shown=True), _Marking(shown=False)
    assert [shown.format(record) for record in caplog.records] == [
        f"{MARK}a\n{MARK}b",
        "c",
        f"{MARK}0.0000{MARK}training{MARK}training: begun",
    ]
    assert hidden.format(caplog.records[0]) == "a\nb"


def test_durations() -> None:
    assert [format_duration(s) for s in (0.4, 45, 150, 11160)] == ["0 s", "45 s", "2.5 minutes", "3.1 hours"]
