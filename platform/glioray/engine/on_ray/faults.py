"""What follows from an error: one table, by which training, searches and comparisons go on or end.

A deterministic error is never repeated: the same work would end in it again, after the same hours. All others are, a
limited number of times without progress. `guides/cluster.md` has the table for users; a test compares the two.
"""

from __future__ import annotations

import errno
import logging
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import ray.exceptions as ray_errors
import torch
import torch.distributed as dist

from glioray.engine.on_ray.away import PAUSES_S, find_causes, is_ray_s_bucket_away
from glioray.errors import DivergenceError, GliorayError, RoomError, StorageError, TrainingError
from glioray.storage import CONNECT_TIMEOUT_S, DOWNLOAD_ATTEMPTS, READ_TIMEOUT_S, REQUEST_ATTEMPTS

_log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_RESTARTS = 2
"""Failures of one piece of work before it ends, since it last made progress."""


class Decision(Enum):
    """What follows from an error."""

    RETRY = "tried again after a pause"
    RESTART = "restarted from the newest saved state"
    STOP = "ends with a sentence"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A row of the table.

    Attributes:
        fault: what has happened, for users.
        errors: the classes by which it shows.
        decision: what follows.
        words: how the sentence begins, of an error that has none of its own.
        advice: what the sentence says beside the error.
        when: what else must hold of the error.
        by_settings: whether settings can bring it about, so that a trial with them has lost.
    """

    fault: str
    errors: tuple[type[BaseException], ...]
    decision: Decision
    words: str = "training failed on a worker"
    advice: str = ""
    when: Callable[[Any], bool] = lambda error: True
    by_settings: bool = False

    def fits(self, error: BaseException) -> bool:
        """Return whether the error is one of this row."""
        return isinstance(error, self.errors) and self.when(error)


_AWS_ERROR = re.compile(r"AWS Error [A-Z_]+")  # pyarrow's

# The first row that fits an error holds.
RULES = (
    Rule(
        fault="the loss or a gradient is not finite",
        errors=(DivergenceError,),
        decision=Decision.STOP,
        by_settings=True,
    ),
    Rule(
        fault="a bucket, or the MLflow server at the start of a run, does not answer, or answers 5xx",
        errors=(StorageError,),
        decision=Decision.RETRY,
        when=lambda error: error.may_pass,
    ),
    Rule(
        fault="a disk is full (the storage's, the slice cache's), a bucket is not there, a right is missing",
        errors=(StorageError,),
        decision=Decision.STOP,
    ),
    Rule(
        fault="a trial on several processes has used up its restarts",
        errors=(TrainingError,),
        decision=Decision.RESTART,
        when=lambda error: error.may_pass,
    ),
    Rule(
        fault="there is no room for the workers after `--wait-minutes`",
        errors=(RoomError,),
        decision=Decision.STOP,
    ),
    Rule(
        fault="a setting, a case, the data or a model cannot be used",
        errors=(GliorayError,),
        decision=Decision.STOP,
        by_settings=True,
    ),
    Rule(
        fault="the GPU's memory is too small",
        errors=(torch.OutOfMemoryError,),
        decision=Decision.STOP,
        advice="lower train.batch_size, the size of the images or the network's width",
        by_settings=True,
    ),
    Rule(
        fault="Ray's disk is full",
        errors=(ray_errors.OutOfDiskError,),
        decision=Decision.STOP,
        advice="free space where Ray keeps its sessions, or set RAY_TMPDIR to another disk before Ray starts",
    ),
    Rule(
        fault="the object store is full",
        errors=(ray_errors.ObjectStoreFullError,),
        decision=Decision.RETRY,
        advice="start the nodes with a larger --object-store-memory, or run fewer jobs at once",
    ),
    Rule(
        fault="the node's memory is full, and Ray has ended the worker",
        errors=(ray_errors.OutOfMemoryError,),
        decision=Decision.RESTART,
        advice="give each worker more memory: fewer workers or trials at once, or larger nodes",
    ),
    Rule(
        fault="a node or a worker dies",
        errors=(ray_errors.RayError,),
        decision=Decision.RESTART,
        # Ray hands on a task's own error as one of both kinds, which a later row judges.
        when=lambda error: not isinstance(error, ray_errors.RayTaskError),
    ),
    Rule(
        fault="a rank is lost or hangs, and the others wait for it no longer",
        errors=(dist.DistError,),
        decision=Decision.RESTART,
    ),
    Rule(
        fault="the process may not have more memory",
        errors=(MemoryError,),
        decision=Decision.STOP,
        advice="lower train.batch_size or the size of the images",
        by_settings=True,
    ),
    Rule(
        fault="a disk is full: of temporary files",
        errors=(OSError,),
        decision=Decision.STOP,
        advice="free space on that node",
        when=lambda error: error.errno in (errno.ENOSPC, errno.EDQUOT),
    ),
    Rule(
        fault="a bucket does not answer where Ray keeps its own files of a run or search",
        errors=(OSError,),
        decision=Decision.RETRY,
        words="Ray cannot reach its files in the bucket",
        when=is_ray_s_bucket_away,
    ),
    Rule(
        fault="a bucket refuses Ray its own files of a run or search",
        errors=(OSError,),
        decision=Decision.STOP,
        words="Ray cannot use its files in the bucket",
        advice="check the rights of the AWS credentials, list, write and delete among them",
        when=lambda error: bool(_AWS_ERROR.search(str(error))),
    ),
    Rule(
        fault="the code has a fault",
        errors=(
            ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, NotImplementedError,
            SyntaxError, TypeError, ValueError,
        ),
        decision=Decision.STOP,
        by_settings=True,
    ),
    Rule(
        fault="anything else, such as an error of CUDA or of the network between ranks",
        errors=(Exception,),
        decision=Decision.RESTART,
    ),
)  # fmt: skip


# What is dealt with where it happens, before it is an error of a whole run.
ELSEWHERE = {
    "a node is about to be taken away, and Ray knows it": "its run is saved within seconds and every ten seconds until "
    "then, and restarted elsewhere; this counts as no failure",
    "the job's own process (the driver) dies": "the same command resumes, from the newest saved states",
    "an answer of the bucket is 5xx, or late": f"asked again, {REQUEST_ATTEMPTS} times in all; it may take "
    f"{CONNECT_TIMEOUT_S:g} s to connect and {READ_TIMEOUT_S:g} s between two packets",
    "an answer of the bucket breaks off": f"asked again, {DOWNLOAD_ATTEMPTS} times in all; no part of an object is used",
    "MLflow does not answer during a run": "the run goes on; what it logs is kept, and sent when the server answers",
    "a case can no longer be read": "left out with a line; of a run, up to `train.max_lost_cases` of its cases",
}


def describe() -> list[tuple[str, str]]:
    """Each fault and what follows, for users: first what is decided for whole runs, then what happens before."""
    retries = f", {len(PAUSES_S)} times in {sum(PAUSES_S) / 60:.0f} minutes without progress"
    limits = {Decision.RETRY: retries, Decision.RESTART: f", {MAX_RESTARTS} times without progress"}
    rows = [(rule.fault, rule.decision.value + limits.get(rule.decision, "")) for rule in RULES]
    return [*rows, *ELSEWHERE.items()]


@dataclass(frozen=True)
class Verdict:
    """What is decided about an error.

    Attributes:
        error: our own one behind it, or one that tells it in a sentence.
        decision: what follows.
        by_settings: of its rule.
    """

    error: GliorayError
    decision: Decision
    by_settings: bool


def judge(error: BaseException) -> Verdict:
    """Find the error behind Ray's exceptions, and decide by `RULES`.

    Of several, as when the other ranks fail because one did, our own one counts, or else the one that has most to say:
    one that stops the work, then one that asks for a pause.
    """
    causes = find_causes(error)
    own = [cause for cause in causes if isinstance(cause, GliorayError)]
    rules = [(cause, next(rule for rule in RULES if rule.fits(cause))) for cause in own or causes]
    for decision in (Decision.STOP, Decision.RETRY, Decision.RESTART):
        for cause, rule in reversed(rules):
            if rule.decision is decision:
                return Verdict(_in_words(cause, rule), decision, rule.by_settings)
    raise AssertionError("every error has a rule")


def _in_words(cause: BaseException, rule: Rule) -> GliorayError:
    if isinstance(cause, GliorayError):
        return cause
    reason = (str(cause).strip() or type(cause).__name__).splitlines()[-1]
    advice = f"{rule.advice}; " if rule.advice else ""
    words = TrainingError(f"{rule.words} ({type(cause).__name__}: {reason}); {advice}its log is above")
    words.may_pass = rule.decision is not Decision.STOP
    return words


def persist(
    work: Callable[[], T],
    *,
    max_restarts: int = MAX_RESTARTS,
    progress: Callable[[], Any] = lambda: None,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Do the work, and do it again as long as `RULES` say so; the count begins anew whenever it has made progress.

    Args:
        work: resumes where it was when it is done again.
        max_restarts: without progress; 0 where another process restarts the work.
        progress: a value that changes when the work has advanced.
        sleep: waits for seconds.

    Raises:
        GliorayError: the last error.
    """
    failures, reached = Counter[Decision](), _reached(progress)
    limits = {Decision.RETRY: len(PAUSES_S), Decision.RESTART: max_restarts, Decision.STOP: 0}
    while True:
        try:
            return work()
        except Exception as error:
            verdict, now = judge(error), _reached(progress)
            if now is not None and now != reached:
                failures, reached = Counter(), now
            decision = verdict.decision
            failures[decision] += 1
            if failures[decision] > limits[decision]:
                if verdict.error is error:
                    raise
                raise verdict.error from error
            is_away = decision is Decision.RETRY
            pause_s = PAUSES_S[failures[decision] - 1] if is_away else 0.0
            _log.warning(
                "%s; %s",
                verdict.error,
                f"the next try is in {pause_s:g} s" if is_away else decision.value,
            )
            # Its traceback would keep the model of this try beside the next one's.
            del verdict
        sleep(pause_s)


def _reached(progress: Callable[[], Any]) -> Any:
    try:
        return progress()
    except StorageError:
        return None  # the storage is what failed
