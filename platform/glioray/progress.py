"""Lines for the person who waits: how far a stage is, and which of a process's lines a job shows.

Workers on other nodes reach a job's terminal through Ray alone, between Ray's own lines and those of libraries. So the
lines that are meant for the reader begin with a mark, where a job listens for it (`glioray.cli.console`).
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

MARK = "\x1f"
LISTENS = "GLIORAY_CONSOLE"
"""The variable that says that a job listens."""


T = TypeVar("T")

IN_LOG = {"in_log": True}
"""`extra` of a line that is not shown."""


def log_progress(logger: logging.Logger, stage: str, done: float, began_s: float, detail: str = "") -> None:
    """Log how far a stage is, and how long the rest will take.

    Args:
        logger: of the module that does the work.
        stage: what is being done, such as "training".
        done: share of it, in [0, 1].
        began_s: when it began, by the monotonic clock.
        detail: how it goes.
    """
    spent_s = time.monotonic() - began_s
    if done <= 0:
        text = f"{stage}: begun"
    elif done < 1:
        text = f"{stage}: {100 * done:.0f} % done, {format_duration(spent_s * (1 - done) / done)} left"
    else:
        text = f"{stage}: done in {format_duration(spent_s)}"
    logger.info("%s%s", text, detail and f"; {detail}", extra={"stage": stage, "done": done})


def with_progress(logger: logging.Logger, rows: Iterable[T], total: int, verb: str) -> Iterator[T]:
    """Yield the rows, one a case, and log how far they are."""
    stage, began = f"{verb} {total} cases", time.monotonic()
    for number, row in enumerate(rows, 1):
        yield row
        # The first one waits for processes to start, and says nothing of the others.
        if number > 1 or total == 1:
            log_progress(logger, stage, 1.0 if number == total else (number - 1) / total, began)
        else:
            began = time.monotonic()


def format_duration(seconds: float) -> str:
    """A duration in its largest fitting unit: "45 s", "2.5 minutes", "3.1 hours"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def log_to_stderr(*, shown: bool = True) -> None:
    """Log what glioray does to stderr; Ray forwards a worker's lines to the driver.

    Args:
        shown: False for a process whose lines belong in the log of a job alone, as those of one of many trials.
    """
    logger = logging.getLogger("glioray")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Marking(shown) if os.environ.get(LISTENS) else logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


class _Marking(logging.Formatter):
    """Marks every line that a job shows, and those that say how far a stage is with that."""

    def __init__(self, shown: bool) -> None:
        super().__init__("%(message)s")
        self.shown = shown

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not self.shown or getattr(record, "in_log", False):
            return text
        done = getattr(record, "done", None)
        begin = MARK if done is None else f"{MARK}{done:.4f}{MARK}{record.stage}{MARK}"  # type: ignore[attr-defined]
        return "\n".join(f"{begin}{line}" for line in text.splitlines())
