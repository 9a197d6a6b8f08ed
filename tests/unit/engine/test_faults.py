"""What follows from each fault, without a cluster: errors as Ray, S3, MLflow and the system raise them."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.fs
import pytest
import ray.exceptions as ray_errors
import torch
import torch.distributed as dist
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from glioray.config import PreprocessConfig
from glioray.engine.checkpoint import Checkpoint, load_state, save_checkpoint
from glioray.engine.on_mlflow.client import connect
from glioray.engine.on_ray import compare, faults, search
from glioray.engine.on_ray.away import PAUSES_S, outlast
from glioray.engine.on_ray.faults import MAX_RESTARTS, Decision, describe, judge, persist
from glioray.engine.on_ray.resources import WorkerResources
from glioray.errors import (
    CaseError,
    DataError,
    DivergenceError,
    GliorayError,
    ModelError,
    RoomError,
    StorageError,
    TrainingError,
    UsageError,
)
from glioray.slices.cache import CacheConfig, SliceCache
from glioray.slices.preprocess import SliceStack
from glioray.storage import open_storage

AWAY, FULL = StorageError("s3://b/x cannot be read (503)", True), StorageError("the disk is full")
# Each would come again, after the same hours.
DETERMINISTIC = (
    DivergenceError("train_loss became nan"),
    UsageError("optim.lr is 20"),
    RoomError("no room for 2 x 1 GPU in 10 minutes"),
    DataError("nothing to train on"),
    CaseError("a", "a.nii", "is cut short", "copy it again"),
    ModelError("state.pt is damaged"),
    FULL,
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
    MemoryError("Unable to allocate 40 GiB"),
    OSError(errno.ENOSPC, "No space left on device"),
    ray_errors.OutOfDiskError("full"),
    TypeError("a fault of ours"),
    KeyError("width"),
    ValueError("shapes"),
    ZeroDivisionError("x"),
    NotImplementedError("x"),
    AssertionError("x"),
)
DIED = WorkerHealthCheckFailedError("Worker 1 is dead", ray_errors.ActorDiedError())
# As the other rank of a pair sees it.
LOST = RuntimeError("[enforce fail] Connection closed by peer [10.0.0.5]:1234")
PASSING = (
    DIED,
    LOST,
    ray_errors.NodeDiedError("the node is gone"),
    ray_errors.WorkerCrashedError(),
    ray_errors.OutOfMemoryError("the node is low on memory"),
    dist.DistBackendError("NCCL timed out"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
)


def as_train_raises(*errors: Exception) -> WorkerGroupError:
    """An error of each rank."""
    return WorkerGroupError("…", dict(enumerate(errors)))


def count_tries(error: Exception, **options: Any) -> tuple[int, list[float]]:
    """How often work is done that always ends in the error, and the pauses in between."""
    pauses: list[float] = []
    tries: list[None] = []

    def work() -> None:
        tries.append(None)
        raise error

    with pytest.raises(GliorayError):
        persist(work, sleep=pauses.append, **options)
    return len(tries), pauses


@pytest.mark.parametrize("error", DETERMINISTIC, ids=lambda error: type(error).__name__)
def test_a_deterministic_error_is_never_repeated(error: Exception):
    for raised in (error, as_train_raises(error), as_train_raises(LOST, error), as_train_raises(error, DIED)):
        assert judge(raised).decision is Decision.STOP
        assert count_tries(raised) == (1, [])


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_a_worker_a_node_or_a_rank_that_is_lost_restarts_the_work(error: Exception):
    for raised in (error, as_train_raises(error, LOST)):
        assert judge(raised).decision is Decision.RESTART
        assert count_tries(raised) == (1 + MAX_RESTARTS, [0.0] * MAX_RESTARTS)
        assert count_tries(raised, max_restarts=0) == (1, [])


@pytest.mark.parametrize("error", [AWAY, ray_errors.ObjectStoreFullError("full")], ids=["S3", "object store"])
def test_what_is_away_or_full_for_now_is_waited_for(error: Exception, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="glioray"):
        for raised in (error, as_train_raises(LOST, error)):
            assert judge(raised).decision is Decision.RETRY
            assert count_tries(raised, max_restarts=0) == (1 + len(PAUSES_S), list(PAUSES_S))
    assert "the next try is in 10 s" in caplog.messages[0]
    assert list(PAUSES_S) == sorted(PAUSES_S)


def test_work_that_advances_is_restarted_as_often_as_it_needs():
    failures, checkpoints = iter(range(10)), ["step-0"]

    def work() -> str:
        number = next(failures, None)
        if number is None:
            return "done"
        # One checkpoint in two failures.
        if number % 2:
            checkpoints.append(f"step-{number}")
        raise as_train_raises(DIED)

    assert persist(work, progress=lambda: checkpoints[-1], sleep=lambda s: None) == "done"
    failures = iter(range(10))
    with pytest.raises(TrainingError, match="a worker"):
        persist(work, progress=lambda: "step-0", sleep=lambda s: None)
    # What is away does not count as a worker that dies, nor the other way round.
    kinds = iter([AWAY] * 3 + [DIED] * MAX_RESTARTS + [AWAY] * 2)

    def mixed() -> str:
        if error := next(kinds, None):
            raise error
        return "done"

    assert persist(mixed, sleep=lambda s: None) == "done"
    # A storage that is away says nothing of progress.
    failures = iter(range(MAX_RESTARTS + 1))

    def away() -> str:
        raise AWAY

    with pytest.raises(TrainingError):
        persist(work, progress=away, sleep=lambda s: None)


def test_a_driver_outlasts_what_is_away_and_repeats_nothing_else():
    pauses: list[float] = []
    kinds = iter([AWAY, as_train_raises(LOST, AWAY)])

    def work() -> str:
        if error := next(kinds, None):
            raise error
        return "done"

    assert outlast(work, sleep=pauses.append) == "done"
    assert pauses == [*PAUSES_S[:2]]
    for error in (*DETERMINISTIC, *PASSING):
        kinds = iter([error])
        with pytest.raises(type(error)) as caught:
            outlast(work, sleep=pauses.append)
        assert caught.value is error
    kinds, pauses[:] = iter([AWAY] * 100), []
    with pytest.raises(StorageError):
        outlast(work, sleep=pauses.append)
    assert pauses == [*PAUSES_S]


def test_a_sentence_says_what_to_do():
    for error, advice in (
        (torch.OutOfMemoryError("CUDA out of memory"), "lower train.batch_size"),
        (ray_errors.OutOfMemoryError("low on memory"), "give each worker more memory"),
        (ray_errors.OutOfDiskError("full"), "RAY_TMPDIR"),
    ):
        text = str(judge(as_train_raises(LOST, error)).error)
        assert f"({type(error).__name__}: " in text
        assert advice in text
        assert "\n" not in text
    assert judge(ControllerError(DIED)).decision is Decision.RESTART
    # An error that Ray hands on from a task is judged by what it was.
    task_error = ray_errors.RayTaskError("f", "traceback", TypeError("x")).as_instanceof_cause()
    assert judge(task_error).decision is Decision.STOP
    assert judge(as_train_raises(LOST, AWAY)).error is AWAY


def test_the_table_of_the_guide_is_the_code_s(repo: Path):
    guide = (repo / "infra" / "docs" / "guides" / "cluster.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in guide.splitlines() if line.startswith("| ")]
    shown = [tuple(row) for row in rows]
    assert [row for row in shown if row in describe()] == describe()


def test_whether_an_error_may_pass_survives_the_way_from_a_worker():
    for error in (AWAY, FULL):
        found = pickle.loads(pickle.dumps(error))
        assert (str(found), found.may_pass) == (str(error), error.may_pass)


# Disks.


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
    """The flush of the file of that number fails, from now on."""
    count = iter(range(1000))

    def fsync(descriptor: int) -> None:
        if next(count) >= number:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_ends_the_work_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec: Any = SimpleNamespace(to_json=lambda: "{}", metrics={})

    def save(step: int) -> None:
        weights = {"w": torch.full((3,), float(step))}
        checkpoint = Checkpoint(step=step, spec=spec, weights=weights, state={"step": step})
        save_checkpoint(open_storage(tmp_path), checkpoint)

    save(1)
    for number in range(4):
        with monkeypatch.context() as patch:
            fail_at(patch, number, errno.ENOSPC)
            with pytest.raises(StorageError, match="No space left on device") as caught:
                save(2)
        assert judge(caught.value).decision is Decision.STOP
        state = load_state(open_storage(tmp_path))
        assert state == {"step": 1}
    save(2)
    assert load_state(open_storage(tmp_path)) == {"step": 2}
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_mounted_disk_that_fails_for_now_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for code, decision in (
        (errno.EIO, Decision.RETRY),
        (errno.ESTALE, Decision.RETRY),
        (errno.EROFS, Decision.STOP),
        (errno.EDQUOT, Decision.STOP),
    ):
        with monkeypatch.context() as patch:
            fail_at(patch, 0, code)
            with pytest.raises(StorageError) as caught:
                open_storage(tmp_path).write("a", b"x")
        assert judge(caught.value).decision is decision


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError("9216 requested and 512 written")]
)
def test_a_full_cache_ends_the_work_and_holds_no_part_of_a_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
):
    cache = SliceCache(CacheConfig(folder=str(tmp_path)), PreprocessConfig())
    entry: Any = SimpleNamespace(case_id="a", checksum="0" * 64, convention=None)
    images = np.zeros((2, 4, 8, 8), np.float16)
    stack: Any = SimpleNamespace(
        plane="axial", images=images, mask=None, origin=(0,), shape=(1,), spacing_mm=(1.0,), label_voxels=(0,)
    )
    assert {*vars(stack)} <= {*SliceStack.__dataclass_fields__}

    def save(file: Path, array: Any) -> None:
        file.write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", save)
        with pytest.raises(StorageError, match=r"cannot be written \((No space|9216 requested)") as caught:
            cache.put(entry, [stack])
    assert judge(caught.value).decision is Decision.STOP
    assert not cache.has(entry)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    cache.put(entry, [stack])
    assert cache.has(entry)


# A bucket that fails as told, in turn.

BODY = bytes(range(256)) * 40
Answer = str | tuple[int, str]
Server = Callable[..., list[str]]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Starts a bucket that answers in turn as told: whole, half, late, or a status with a code; the last one stays."""
    answers: list[Answer] = []
    asked: list[str] = []
    late = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(answer, tuple):
                self.send_response(answer[0])
                body = f"<Error><Code>{answer[1]}</Code><Message>m</Message></Error>".encode()
            else:
                if answer == "late":
                    late.wait(20)
                self.send_response(206 if self.headers.get("Range") else 200)
                body = BODY
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if answer == "half" else body)
            self.close_connection = True

        def log_message(self, *args: Any) -> None: ...

    class Threads(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, *args: Any) -> None: ...

    server = Threads(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }.items():
        monkeypatch.setenv(name, value)
    # botocore's pauses between its tries.
    monkeypatch.setattr(
        "botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0.0
    )
    monkeypatch.setattr("glioray.storage.s3.READ_TIMEOUT_S", 0.3)

    def answer(*given: Answer) -> list[str]:
        answers[:], asked[:] = given, []
        return asked

    yield answer
    late.set()
    server.shutdown()
    server.server_close()


ERROR, BUSY = (500, "InternalError"), (503, "SlowDown")


def readers() -> tuple[Callable[[], bytes], ...]:
    storage = open_storage("s3://bucket")
    return lambda: storage.read("a"), lambda: storage.read_range("a", 0, len(BODY))


@pytest.mark.parametrize("kind", [0, 1], ids=["object", "range"])
@pytest.mark.parametrize("answer", [ERROR, BUSY, "half", "late"], ids=str)
def test_a_bucket_that_fails_once_is_asked_again(bucket: Server, kind: int, answer: Answer):
    asked = bucket(answer, answer, "whole")
    assert readers()[kind]() == BODY
    assert len(asked) == 3


@pytest.mark.parametrize("kind", [0, 1], ids=["object", "range"])
@pytest.mark.parametrize("answer", [ERROR, BUSY, "half", "late"], ids=str)
def test_a_bucket_that_keeps_failing_is_waited_for(bucket: Server, kind: int, answer: Answer):
    asked = bucket(answer)
    with pytest.raises(StorageError, match="'s3://bucket/a' cannot be read") as caught:
        readers()[kind]()
    assert judge(caught.value).decision is Decision.RETRY
    assert 1 < len(asked) < 30


@pytest.mark.parametrize(
    "answer", [(403, "AccessDenied"), (404, "NoSuchKey"), (404, "NoSuchBucket")], ids=str
)
def test_a_bucket_that_refuses_is_not_asked_again(bucket: Server, answer: Answer):
    asked = bucket(answer)
    with pytest.raises(StorageError, match=str(answer[1])) as caught:
        readers()[0]()
    assert judge(caught.value).decision is Decision.STOP
    assert len(asked) == 1


def test_servers_that_are_not_there_are_waited_for(
    free_port: int, monkeypatch: pytest.MonkeyPatch, bucket: Server
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port}")
    with pytest.raises(StorageError) as s3:
        open_storage("s3://bucket").read("a")
    with pytest.raises(StorageError) as mlflow:
        connect(f"http://127.0.0.1:{free_port}", attempts=1)
    for caught in (s3, mlflow):
        assert judge(caught.value).decision is Decision.RETRY
    # A wrong address stays wrong.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:8333")
    with pytest.raises(StorageError) as wrong:
        open_storage("s3://bucket").read("a")
    assert judge(wrong.value).decision is Decision.STOP


def test_what_ray_keeps_in_a_bucket_that_is_away_is_waited_for(free_port: int, bucket: Server):
    gone = f"http://127.0.0.1:{free_port}"
    for endpoint, answer, decision in (
        (gone, ERROR, Decision.RETRY),
        (os.environ["AWS_ENDPOINT_URL"], (500, "InternalError"), Decision.RETRY),
        (os.environ["AWS_ENDPOINT_URL"], (503, "SlowDown"), Decision.RETRY),
        (os.environ["AWS_ENDPOINT_URL"], (502, "x"), Decision.RETRY),
        (os.environ["AWS_ENDPOINT_URL"], (403, "AccessDenied"), Decision.STOP),
        (os.environ["AWS_ENDPOINT_URL"], (404, "NoSuchBucket"), Decision.STOP),
    ):
        bucket(answer)
        s3 = pyarrow.fs.S3FileSystem(
            access_key="a", secret_key="b", endpoint_override=endpoint, region="us-east-1"
        )
        with pytest.raises(OSError, match="AWS Error") as caught:
            s3.get_file_info(pyarrow.fs.FileSelector("bucket/runs"))
        verdict = judge(caught.value)
        assert verdict.decision is decision, str(caught.value)
        assert str(verdict.error).startswith("Ray cannot ")


# Searches and comparisons.


@pytest.mark.parametrize("error", [*DETERMINISTIC, *PASSING, AWAY], ids=lambda error: type(error).__name__)
def test_a_trial_has_lost_by_its_settings_alone(error: Exception, monkeypatch: pytest.MonkeyPatch):
    reported: list[dict[str, Any]] = []
    context = SimpleNamespace(get_trial_id=lambda: "t")
    tune = SimpleNamespace(get_context=lambda: context, report=reported.append)

    def train(*args: Any) -> None:
        raise error

    monkeypatch.setattr(search, "tune", tune)
    monkeypatch.setattr(search, "train_trial", train)
    monkeypatch.setattr(search, "log_to_stderr", lambda shown: None)
    objective = SimpleNamespace(reported="gflops", worst=1e9)
    told = SimpleNamespace(worst=-1.0, static_metrics=lambda c: {}, objectives=lambda c: [objective])
    plan: Any = SimpleNamespace(
        search=told, mode="search", config=None, trial=lambda *args: SimpleNamespace(config=None)
    )
    resources = WorkerResources(num_cpus=1, num_gpus=0, num_threads=1)
    of_cluster = (StorageError, OSError, ray_errors.OutOfDiskError, RoomError)
    if error in DETERMINISTIC and not isinstance(error, of_cluster):
        search._trial({}, plan=plan, parent_run_id="p", resources=resources)
        (row,) = reported
        assert (row["objective"], row["gflops"], row["percent"]) == (-1.0, 1e9, 0)
        assert row["reason"]
    else:
        with pytest.raises(type(error)):
            search._trial({}, plan=plan, parent_run_id="p", resources=resources)
        assert reported == []


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("error", [*DETERMINISTIC, *PASSING, AWAY], ids=lambda error: type(error).__name__)
def test_a_run_of_a_comparison_is_final_repeated_now_or_repeated_later(
    error: Exception, num_workers: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    tries: list[None] = []

    def train(*args: Any, **options: Any) -> None:
        tries.append(None)
        raise error

    monkeypatch.setattr(faults, "PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(compare, "log_to_stderr", lambda shown: None)
    monkeypatch.setattr(compare, "train_measured" if num_workers == 1 else "run_training", train)
    monkeypatch.setattr(compare.dataclasses, "replace", lambda plan, **settings: plan)
    saved: list[dict[str, Any]] = []
    plan = SimpleNamespace(
        config=SimpleNamespace(train=SimpleNamespace(num_workers=num_workers)),
        task=SimpleNamespace(comparison=None),
    )
    run: Any = SimpleNamespace(
        plan=plan,
        identity=dict,
        failed=lambda reason, again: {"reason": reason, "again": again},
        save_result=saved.append,
    )
    workers = WorkerResources(num_cpus=1, num_gpus=0, num_threads=1)
    if error in PASSING and num_workers == 1:
        # Tune starts another process.
        with pytest.raises(TrainingError):
            compare.execute_run(run, workers)
        assert len(tries) == 1
        return
    result = compare.execute_run(run, workers)
    assert len(tries) == (3 if error is AWAY else 1)
    assert json.dumps(result["reason"])
    is_final = isinstance(error, DivergenceError)
    assert (result["again"], saved) == (not is_final, [result] if is_final else [])
