"""All cases of a folder: which are left, and what became of them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from glioray.api.places import absolute_uri, ready_out
from glioray.cases.casefiles import CaseFiles, Problem
from glioray.cases.layouts import RECOGNISED, discover_cases
from glioray.errors import DataError, GliorayError, UsageError
from glioray.progress import log_progress
from glioray.storage import Storage, join_uri, list_written, open_storage

_log = logging.getLogger(__name__)

Output = Literal["mask", "report", "probabilities", "overlay", "all"]

ENDINGS: dict[str, str] = {
    "mask": "seg.nii.gz",
    "report": "report.json",
    "probabilities": "probabilities.zip",
    "overlay": "overlay.png",
    "all": "all.zip",
}


@dataclass(frozen=True)
class FolderResult:
    """What became of the cases of a folder.

    Attributes:
        files: case id -> URI of its answer.
        failed: case id, or the name of a file that belongs to none -> why there is none.
    """

    files: dict[str, str]
    failed: dict[str, str]


@dataclass
class Folder:
    """The cases of a folder, and what became of them."""

    storage: Storage
    cases: list[CaseFiles]
    out: str
    result: FolderResult
    began_s: float
    num_done: int = 0

    @classmethod
    def open(
        cls, root: str | os.PathLike[str], out: str | os.PathLike[str], output: str, skip_existing: bool
    ) -> Folder:
        if output not in ENDINGS:
            raise UsageError(f"output is '{output}'; expected one of {', '.join(ENDINGS)}")
        storage = open_storage(absolute_uri(os.fspath(root), "root"))
        target = open_storage(ready_out(os.fspath(out)))
        cases, problems = discover_cases(storage)
        if not cases:
            raise DataError(f"'{storage.uri}' holds no case; {problems[0] if problems else RECOGNISED}")
        keys = {files.case_id: f"{files.case_id}_{ENDINGS[output]}" for files in cases}
        there = list_written(target) if skip_existing else {}
        done = {case: join_uri(target.uri, key) for case, key in keys.items() if key in there}
        if done:
            _log.info("%d of %d cases have their answer already", len(done), len(cases))
        left = [files for files in cases if files.case_id not in done]
        return cls(storage, left, target.uri, FolderResult(done, _describe(problems)), time.monotonic())

    def take(self, files: CaseFiles, outcome: str | GliorayError) -> None:
        """Keep the URI of a case's answer, or why there is none."""
        if isinstance(outcome, str):
            self.result.files[files.case_id] = outcome
        else:
            _log.warning("%s failed: %s", files.case_id, outcome)
            self.result.failed[files.case_id] = str(outcome)
        self.num_done += 1
        stage = f"segmenting {len(self.cases)} case{'s' if len(self.cases) > 1 else ''}"
        log_progress(_log, stage, self.num_done / len(self.cases), self.began_s, files.case_id)


def _describe(problems: Sequence[Problem]) -> dict[str, str]:
    return {problem.case_id or problem.file: str(problem) for problem in problems}


def check_concurrency(concurrency: int) -> int:
    if concurrency < 1:
        raise UsageError(f"concurrency is {concurrency}; expected at least 1")
    return concurrency
