"""Models applied to whole data sets: loaded once a worker, the cases spread by Ray Data."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.data
import torch

from glioray.cases.casefiles import CaseFiles
from glioray.engine.on_ray.away import outlast
from glioray.engine.on_ray.data import quiet_data
from glioray.engine.on_ray.resources import worker_resources
from glioray.engine.package import SPEC_FILE, WEIGHTS_FILE
from glioray.errors import GliorayError
from glioray.progress import log_progress, log_to_stderr
from glioray.serialization import from_dict, to_dict

_log = logging.getLogger(__name__)

Load = Callable[[Mapping[str, Path]], Any]
"""Loads a worker's models from their folders, by name."""

CaseWork = Callable[[Any, CaseFiles], dict[str, Any]]
"""Works on one case with what `Load` returned; returns JSON values."""


def map_cases(
    packages: Mapping[str, Path],
    load: Load,
    cases: Sequence[CaseFiles],
    work: CaseWork,
    *,
    on_case: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Run `work` on every case, all over the cluster; returns its answers with "case_id", sorted by it.

    A case that fails with a `GliorayError` gives {"case_id", "error"}, and the others go on; while a bucket is away, it is
    waited for. What an answer has as "notes" is logged.

    Args:
        packages: the models' folders, by the names that `load` looks them up by.
        load: loads the models once a worker; is pickled, so a function of a module or a `partial` of one.
        cases: the cases' files.
        work: works on one case; pickled likewise.
        on_case: is called with each answer as it comes; an exception that it raises ends the work.
    """
    files = {
        f"{name}/{file}": (package / file).read_bytes()
        for name, package in packages.items()
        for file in (WEIGHTS_FILE, SPEC_FILE)
    }
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    # One model on CPUs uses all cores of its node, and several would run out of memory.
    num_workers = max(1, min(len(cases), num_gpus or sum(node.get("CPU", 0) >= 1 for node in nodes)))
    share = worker_resources(num_workers)
    rows = [json.dumps(to_dict(case)) for case in cases]
    quiet_data()
    # Ray's own hints leave out classes with arguments.
    worker: Any = _CaseWorker
    dataset = ray.data.from_items(rows, override_num_blocks=max(1, len(rows))).map(
        worker,
        fn_constructor_args=(ray.put(files), load, work, share.num_threads),
        compute=ray.data.ActorPoolStrategy(size=num_workers),
        num_cpus=share.num_cpus,
        num_gpus=share.num_gpus or None,
    )
    answers: list[dict[str, Any]] = []
    began, stage = time.monotonic(), f"working on {len(cases)} case{'s' if len(cases) > 1 else ''}"
    for number, row in enumerate(dataset.iter_rows(), 1):
        answer = json.loads(row["answer"])
        if "error" in answer:
            _log.warning("%s failed: %s", answer["case_id"], answer["error"])
        for note in answer.pop("notes", ()):
            _log.warning("%s: %s", answer["case_id"], note)
        log_progress(_log, stage, number / len(cases), began, answer["case_id"])
        answers.append(answer)
        if on_case is not None:
            outlast(partial(on_case, answer))
    return sorted(answers, key=lambda answer: str(answer["case_id"]))


def split_failed(answers: Sequence[dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Case id -> answer of those that succeeded, and case id -> reason of the others."""
    good = {answer["case_id"]: answer for answer in answers if "error" not in answer}
    return good, {answer["case_id"]: answer["error"] for answer in answers if "error" in answer}


class _CaseWorker:
    def __init__(self, files: Any, load: Load, work: CaseWork, num_threads: int) -> None:
        log_to_stderr()
        torch.set_num_threads(num_threads)
        if isinstance(files, ray.ObjectRef):
            files = ray.get(files)
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                path = Path(folder) / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
            self.models = load({path.name: path for path in Path(folder).iterdir()})
        self.work = work

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        files = from_dict(CaseFiles, json.loads(row["item"]))
        try:
            answer = outlast(lambda: self.work(self.models, files))
        except GliorayError as error:
            answer = {"error": str(error)}
        return {"answer": json.dumps({"case_id": files.case_id, **answer})}
