"""The output of a job: its own lines, and one bar on a terminal. Everything else goes to a log file."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

from tqdm import tqdm

from glioray.progress import LISTENS, MARK

_POLL_S = 0.1
_EVERY_S = 60.0


class Console:
    """Takes the place of a job's stdout and stderr: both end in the log, whose marked lines are shown.

    The log is a file and not a pipe: whatever a process says before it dies is there.

    Args:
        name: of the job.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.log: Path | None = None

    def start(self) -> None:
        """Name the log, and send the process's output there."""
        begin = f"glioray-{self.name}-{time.strftime('%Y%m%d-%H%M%S')}-"
        descriptor, path = tempfile.mkstemp(prefix=begin, suffix=".log")
        self.log = Path(path)
        os.environ[LISTENS] = "1"
        # Ray holds back lines that resemble each other.
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        sys.stdout.flush()
        sys.stderr.flush()
        self._screen = _Screen(os.fdopen(os.dup(2), "w", errors="replace"))
        for number in (1, 2):
            os.dup2(descriptor, number)
        os.close(descriptor)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Show what is left; the process's output goes on to the log, also what it says as it ends."""
        if self.log is None or self._ends.is_set():
            return
        sys.stdout.flush()
        sys.stderr.flush()
        self._ends.set()
        self._thread.join()
        self._screen.close()
        if not self.log.stat().st_size:
            self.log.unlink()

    def show(self, text: str) -> None:
        """Show a line."""
        if self.log is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._screen.show(text)

    def _follow(self) -> None:
        assert self.log is not None
        with self.log.open("rb") as stream:
            rest = b""
            while True:
                is_last = self._ends.is_set()
                data = stream.read()
                if data and stream.tell() == len(data):
                    self._screen.show(f"all messages: {self.log}")
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    _, mark, text = line.decode(errors="replace").partition(MARK)
                    if mark:
                        self._screen.take(text)
                if is_last:
                    return
                self._ends.wait(_POLL_S)


class _Screen:
    """Lines, each once in a row, and one bar; where there is no terminal, how far a stage is stands in a line a minute."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream, self.is_terminal = stream, stream.isatty()
        self._bar: tqdm[None] | None = None
        self._stage, self._last = "", ""
        self._shown_s = 0.0

    def take(self, text: str) -> None:
        """A marked line."""
        done, mark, rest = text.partition(MARK)
        if not mark:
            self.show(text)
            return
        stage, _, line = rest.partition(MARK)
        is_new = stage != self._stage
        self._stage = stage
        if float(done) >= 1:
            self.show(line)
        elif self.is_terminal:
            self._draw(float(done), line)
        elif is_new or time.monotonic() - self._shown_s > _EVERY_S:
            self.show(line)

    def show(self, text: str) -> None:
        """A line, unless it is the same as the one before."""
        if text == self._last:
            return
        self.close()
        self._last, self._shown_s = text, time.monotonic()
        # A reader that is gone ends no job.
        with contextlib.suppress(OSError):
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _draw(self, done: float, text: str) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=1.0,
                file=self.stream,
                leave=False,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f} % |{bar:20}| {desc}",
            )
        self._bar.n = done
        self._bar.set_description_str(text)
