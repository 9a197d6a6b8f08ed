"""Jobs: masks of all cases of a folder or a bucket prefix below an allowed root, with their state kept beside them."""

from __future__ import annotations

import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from glioray.cases.conventions import CONVENTIONS, find_convention
from glioray.cases.layouts import RECOGNISED, discover_cases
from glioray.cases.manifest import declare_conventions
from glioray.engine.serving import REFUSALS, Job
from glioray.errors import DataError, GliorayError, StorageError, UsageError
from glioray.storage import is_local, join_uri, open_storage, printable
from glioray.tasks import open_labelling
from serve.request_queue import RETRY_AFTER
from serve.status import Status

_log = logging.getLogger("glioray.serve")

# Discovery of cases leaves out folders whose name begins with a dot.
_FOLDER = ".glioray-jobs"
_STATE, _CANCELLED = "job.json", "cancelled"
_SAVE_S = 1.0
_GRACE_S = 60.0


class JobRequest(BaseModel):
    """The cases to segment, and where their masks go."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"data": "s3://studies/new", "labels": "brats-et3"}]},
    )

    data: str = Field(
        min_length=1,
        max_length=1024,
        description="folder or s3://bucket/prefix of the cases, below an allowed root",
    )
    out: str | None = Field(
        None,
        min_length=1,
        max_length=1024,
        description="where CASE_seg.nii.gz is written, below an allowed root; by default beside the job's state",
    )
    labels: str | None = Field(
        None,
        description="numbers of the masks: a convention, or what each number marks, such as 1=ed,2=et,3=ncr; by default "
        "that of each case",
        examples=list(CONVENTIONS),
    )
    uncertainty: bool = Field(False, description="write CASE_uncertainty.nii.gz too")
    resample: bool = Field(
        False,
        description="resample cases whose voxel size is far from that of training, which fail otherwise, and their masks "
        "back",
    )


class JobCancelledError(Exception):
    """A job was cancelled."""


class Launcher(Protocol):
    """Runs `run_job` somewhere; a job goes on when the process that started it ends."""

    def start(self, root: str, job_id: str) -> None:
        """Begin a job."""

    def stop(self, job_id: str) -> None:
        """End a job's process, if there is one."""

    def list_running(self) -> list[str]:
        """The ids of jobs that have a process."""


class JobStore:
    """The states of jobs, below the roots that jobs may read and write.

    Args:
        roots: folders and `s3://` prefixes.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        self.roots = [check_root(root) for root in roots]

    def find_place(self, uri: str, field: str) -> tuple[str, str]:
        """A place as a URI without links, and the root that it is below.

        Raises:
            UsageError: it is below none of the roots, or no folder and no bucket.
        """
        place = _real(uri)
        for root in self.roots:
            if place is not None and (place == root or place.startswith(f"{root.rstrip('/')}/")):
                return place, root
        raise UsageError(
            f"{field} is '{printable(uri)[:200]}'; expected an absolute folder or s3://bucket/prefix below "
            f"{' or '.join(self.roots)}"
        )

    def create(self, request: JobRequest, model: str) -> tuple[Job, str]:
        """A new job, and the root that it is kept below.

        Raises:
            UsageError: a place that is not allowed, or a label convention that is none.
            StorageError: the root cannot be written.
        """
        data, root = self.find_place(request.data, "data")
        labels = None if request.labels is None else find_convention(request.labels).name
        job_id = secrets.token_hex(8)
        out = join_uri(root, _FOLDER, job_id, "masks")
        if request.out is not None:
            out, _ = self.find_place(request.out, "out")
        now = datetime.now(UTC)
        job = Job(
            id=job_id,
            state="waiting",
            model=model,
            data=data,
            out=out,
            labels=labels,
            uncertainty=request.uncertainty,
            resample=request.resample,
            created_at=now,
            updated_at=now,
        )
        self.save(root, job)
        return job, root

    def find(self, job_id: str) -> tuple[Job, str] | None:
        """A job by its id, and its root; None where there is no such job.

        Raises:
            StorageError: a root cannot be read.
        """
        if not re.fullmatch("[0-9a-f]{16}", job_id):
            return None
        for root in self.roots:
            storage = open_storage(root)
            if storage.exists(_key(job_id, _STATE)):
                return self.load(root, job_id), root
        return None

    def load(self, root: str, job_id: str) -> Job:
        """A job of a root.

        Raises:
            StorageError: it cannot be read.
        """
        storage = open_storage(root)
        try:
            job = Job.model_validate_json(storage.read(_key(job_id, _STATE)))
        except ValidationError as error:
            raise StorageError(f"the state of the job {job_id} is damaged; send the job again") from error
        # A mark of its own, as the job's process writes its state until it ends.
        if not job.is_over and storage.exists(_key(job_id, _CANCELLED)):
            job = job.model_copy(update={"state": "cancelled"})
        return job

    def save(self, root: str, job: Job) -> None:
        """Write a job's state."""
        job = job.model_copy(update={"updated_at": datetime.now(UTC)})
        open_storage(root).write(_key(job.id, _STATE), job.model_dump_json().encode())

    def cancel(self, root: str, job_id: str) -> None:
        """Mark a job as cancelled; what it has written stays."""
        open_storage(root).write(_key(job_id, _CANCELLED), b"")

    def is_cancelled(self, root: str, job_id: str) -> bool:
        """Whether a job was cancelled."""
        return open_storage(root).exists(_key(job_id, _CANCELLED))


def check_root(uri: str) -> str:
    """A root as a URI without links.

    Raises:
        UsageError: it is no absolute folder and no bucket.
    """
    place = _real(uri)
    if place is None:
        raise UsageError(f"the root of jobs is '{uri}'; expected an absolute folder or s3://bucket/prefix")
    return place


def _real(uri: str) -> str | None:
    """A URI without links, dots and doubled slashes; None where it is no absolute folder and no bucket."""
    if printable(uri) != uri or "\0" in uri:
        return None
    if uri.startswith("s3://"):
        parts = uri.removeprefix("s3://").rstrip("/").split("/")
        return None if {"", ".", ".."} & set(parts) else f"s3://{'/'.join(parts)}"
    return os.path.realpath(uri) if uri.startswith("/") else None


def _key(job_id: str, name: str) -> str:
    return f"{_FOLDER}/{job_id}/{name}"


def run_job(store: JobStore, root: str, job_id: str, tracking_uri: str | None) -> None:
    """Carry out a job, or the rest of one that was interrupted: `Task.predict` finds the masks that are there.

    Ray must be up. What goes wrong becomes the job's state.
    """
    job = store.load(root, job_id)
    if job.is_over:
        return
    ending: dict[str, Any]
    try:
        ending = _predict(store, root, job, tracking_uri)
    except JobCancelledError:
        ending = {"state": "cancelled"}
    except GliorayError as error:
        ending = {"state": "failed", "error": str(error)}
    except Exception:
        _log.exception("the job %s failed", job_id)
        ending = {"state": "failed", "error": "the server failed on this job; its log says why"}
    store.save(root, store.load(root, job_id).model_copy(update=ending))


def _predict(store: JobStore, root: str, job: Job, tracking_uri: str | None) -> dict[str, Any]:
    """Write the masks; the fields of the job at its end."""
    _check_links(store, job.data)
    storage = open_storage(job.data)
    cases, problems = discover_cases(storage, labels=job.labels)
    if not cases:
        raise DataError(f"'{job.data}' holds no case; {problems[0] if problems else RECOGNISED}")
    if job.labels is None:
        cases = declare_conventions(storage, cases)
    failed = {problem.case_id or problem.file: str(problem) for problem in problems}
    open_storage(job.out).check_writable()
    progress = _Progress(store, root, job, len(cases), failed)
    progress.save()
    with tempfile.TemporaryDirectory() as folder:
        package = open_labelling(job.model, Path(folder), tracking_uri=tracking_uri)
        package.task.predict(
            package,
            job.data,
            cases,
            job.out,
            labels=job.labels,
            with_uncertainty=job.uncertainty,
            resample=job.resample,
            on_case=progress.take,
        )
    return {**progress.fields, "state": "done"}


def _check_links(store: JobStore, data: str) -> None:
    """Refuse data with links to places that no job may read.

    Raises:
        DataError: names the first of them.
    """
    if not is_local(data):
        return
    for info in open_storage(data).list(unlisted=[]):
        try:
            store.find_place(join_uri(data, info.key), info.key)
        except UsageError:
            raise DataError(
                f"'{info.key}' is a link out of the folders that jobs may read; put the file itself there"
            ) from None


class _Progress:
    """Keeps a job's state while it runs, a second at most behind."""

    def __init__(self, store: JobStore, root: str, job: Job, num_cases: int, failed: dict[str, str]) -> None:
        self.store, self.root, self.job, self.num_cases = store, root, job, num_cases
        self.done, self.failed = set[str](), failed
        self.saved_s = time.monotonic()

    def take(self, answer: dict[str, Any]) -> None:
        """Count a case.

        Raises:
            JobCancelledError: the job was cancelled meanwhile.
        """
        if "error" in answer:
            self.failed[answer["case_id"]] = answer["error"]
        else:
            self.done.add(answer["case_id"])
        if time.monotonic() - self.saved_s >= _SAVE_S:
            self.save()

    def save(self) -> None:
        if self.store.is_cancelled(self.root, self.job.id):
            raise JobCancelledError
        self.store.save(self.root, self.job.model_copy(update={**self.fields, "state": "running"}))
        self.saved_s = time.monotonic()

    @property
    def fields(self) -> dict[str, Any]:
        """Of the job."""
        return {"num_cases": self.num_cases, "num_done": len(self.done), "failed": self.failed}


_ANSWERS: dict[int | str, dict[str, Any]] = {
    **{status: REFUSALS[status] for status in (408, 413, 422, 429, 503)},
    401: {**REFUSALS[422], "description": "no API key, where the endpoint asks for one"},
}
_OF_ONE: dict[int | str, dict[str, Any]] = {**_ANSWERS, 404: {**REFUSALS[422], "description": "no such job"}}


def make_job_router(
    store: JobStore | None, launcher: Launcher | None, status: Status, task: str, max_jobs: int
) -> APIRouter:
    """The routes below /v1/jobs.

    Args:
        store: of the jobs; None where the endpoint runs none.
        launcher: runs them; None where there is none.
        status: of the models.
        task: whose model segments.
        max_jobs: that run at once.
    """
    router = APIRouter()

    def open_jobs() -> tuple[JobStore, Launcher]:
        if store is None or launcher is None:
            raise HTTPException(
                503,
                "this endpoint runs no jobs; start it with --job-roots, on Ray, and name the places for them",
            )
        return store, launcher

    def create(request: JobRequest, model: str) -> Job:
        jobs, runner = open_jobs()
        if len(runner.list_running()) >= max_jobs:
            raise HTTPException(
                429, f"as many jobs run as may (jobs: {max_jobs}); retry in 60 s", {"Retry-After": "60"}
            )
        job, root = jobs.create(request, model)
        runner.start(root, job.id)
        return job

    def find(job_id: str) -> tuple[Job, str]:
        jobs, runner = open_jobs()
        found = jobs.find(job_id)
        if found is None:
            raise HTTPException(404, "there is no such job; POST /v1/jobs answers with the id of a new one")
        job, root = found
        is_old = (datetime.now(UTC) - job.updated_at).total_seconds() > _GRACE_S
        if not job.is_over and is_old and job_id not in runner.list_running():
            lost = {"state": "failed", "error": "the process of the job ended; send the job again"}
            job = job.model_copy(update=lost)
            jobs.save(root, job)
        return job, root

    def cancel(job_id: str) -> Job:
        jobs, runner = open_jobs()
        job, root = find(job_id)
        if not job.is_over:
            jobs.cancel(root, job_id)
            runner.stop(job_id)
        return jobs.load(root, job_id)

    @router.post("/v1/jobs", status_code=202, responses=_ANSWERS)
    async def create_job(request: JobRequest) -> Job:
        """Segment every case of a folder or a bucket prefix; answers at once, and the job goes on."""
        open_jobs()
        state = (await status.states())[task]
        if state.entry is None:
            raise HTTPException(503, state.detail, RETRY_AFTER)
        job: Job = await _work(create, request, state.entry["version"])
        return job

    @router.get("/v1/jobs/{job_id}", responses=_OF_ONE)
    async def read_job(job_id: str) -> Job:
        """A job: its state, how far it is, and why cases have no mask."""
        job: Job = (await _work(find, job_id))[0]
        return job

    @router.delete("/v1/jobs/{job_id}", responses=_OF_ONE)
    async def cancel_job(job_id: str) -> Job:
        """Cancel a job; masks that it has written stay."""
        job: Job = await _work(cancel, job_id)
        return job

    return router


async def _work(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that reads or writes a storage; what fails there is a 503."""
    try:
        return await run_in_threadpool(function, *args)
    except StorageError as error:
        _log.warning("a job's state: %s", error)
        detail = "the place of the jobs cannot be read or written now; try again later"
        raise HTTPException(503, detail, RETRY_AFTER) from error
