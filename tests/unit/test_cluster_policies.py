"""What is decided about a cluster, on tables of nodes that Ray would give."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RpcError
from ray.train.torch import TorchConfig

from glioray.engine.on_ray import connect as cluster
from glioray.engine.on_ray import faults, train
from glioray.engine.on_ray import resources as placing
from glioray.engine.on_ray.connect import check_shared, keep_credentials
from glioray.engine.on_ray.resources import WorkerResources, default_concurrency, worker_resources
from glioray.engine.workers import Workers
from glioray.errors import (
    CaseError,
    DataError,
    DivergenceError,
    GliorayError,
    StorageError,
    TrainingError,
    UsageError,
)

Nodes = Callable[..., None]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    """Sets the cluster: a dict of resources a node, and what of them is free."""

    def set_nodes(
        *resources: dict[str, float], dead: int = 0, free: float | None = None, gpu_type: str = ""
    ) -> None:
        labels = {"ray.io/accelerator-type": gpu_type} if gpu_type else {}
        table = [
            {
                "NodeID": f"n{number}",
                "Alive": number < len(resources),
                "Resources": found,
                "Labels": labels if "GPU" in found else {},
            }
            for number, found in enumerate([*resources, *([{"CPU": 64.0, "GPU": 8.0}] * dead)])
        ]
        cpus = sum(found.get("CPU", 0.0) for found in resources) if free is None else free
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(cluster.ray, "nodes", lambda: table)
        monkeypatch.setattr(cluster.ray, "available_resources", lambda: {"CPU": cpus})
        total = {
            name: sum(found.get(name, 0.0) for found in resources)
            for name in ("CPU", "GPU")
            if any(name in found for found in resources)
        }
        monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: total)

    return set_nodes


def _places(share: float, cpus: list[float]) -> int:
    """How many workers of a share find room beside half a CPU a node for decoding."""
    return sum(int((found - 0.5) / share) for found in cpus)


@pytest.mark.parametrize(
    ("cpus", "num_workers", "num_cpus", "num_threads"),
    [
        ([1.0], 1, 0.5, 1),
        ([2.0], 1, 1.5, 2),
        ([2.0], 2, 0.75, 1),
        ([4.0], 2, 1.75, 2),
        ([4.0, 4.0], 2, 3.5, 4),
        ([16.0], 3, 5.0, 5),
        ([8.0, 2.0], 4, 1.75, 2),
    ],
)
def test_shares_fill_the_cluster(
    nodes: Nodes, cpus: list[float], num_workers: int, num_cpus: float, num_threads: int
):
    nodes(*({"CPU": found} for found in cpus))
    share = worker_resources(num_workers)
    assert share == WorkerResources(num_cpus=num_cpus, num_gpus=0.0, num_threads=num_threads)
    assert _places(num_cpus, cpus) >= num_workers > _places(num_cpus + 0.25, cpus)
    assert share.resources() == {"CPU": num_cpus}


def test_nodes_that_are_gone_do_not_count(nodes: Nodes):
    nodes({"CPU": 2.0}, dead=3)
    assert worker_resources(2) == WorkerResources(num_cpus=0.75, num_gpus=0.0, num_threads=1)
    with pytest.raises(
        UsageError,
        match=r"^3 workers of 1 CPU each were asked for but this machine has 2 CPUs; ask for fewer, or set RAY_ADDRESS",
    ):
        worker_resources(3)


def test_a_gpu_each_where_there_are_any(nodes: Nodes):
    nodes({"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0})
    share = worker_resources(8)
    assert share == WorkerResources(num_cpus=3.75, num_gpus=1.0, num_threads=4)
    assert share.resources() == {"CPU": 3.75, "GPU": 1.0}
    with pytest.raises(
        UsageError, match=r"^9 workers of 0.25 CPUs and 1 GPU each .* has 32 CPUs and 8 GPUs; ask for fewer"
    ):
        worker_resources(9)


def test_nodes_without_gpus_have_no_room_for_workers_that_need_one(nodes: Nodes):
    nodes({"CPU": 16.0}, {"CPU": 8.0, "GPU": 2.0})
    assert worker_resources(2) == WorkerResources(num_cpus=3.75, num_gpus=1.0, num_threads=4)


def test_what_is_asked_for_is_reserved(nodes: Nodes):
    nodes({"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}, gpu_type="H200")
    assert worker_resources(4, Workers(num_cpus=2.5, num_gpus=0)) == WorkerResources(
        num_cpus=2.5, num_gpus=0.0, num_threads=2
    )
    half = worker_resources(4, Workers(num_cpus=1, num_gpus=0.5))
    assert half.resources() == {"CPU": 1, "GPU": 0.5}
    h200 = worker_resources(2, Workers(gpu_type="H200"))
    assert h200.labels == {"ray.io/accelerator-type": "H200"}
    assert (h200.num_cpus, h200.num_gpus) == (3.75, 1.0)
    for asked, number, sentence in (
        (Workers(num_cpus=3, num_gpus=0), 4, "4 workers of 3 CPUs each were asked for"),
        (Workers(num_gpus=0.5), 5, "5 workers of 0.25 CPUs and 0.5 GPUs each were"),
        (Workers(gpu_type="A100"), 1, "1 worker of 0.25 CPUs and 1 GPU of the type A100 each were"),
    ):
        with pytest.raises(UsageError, match=f"^{sentence}"):
            worker_resources(number, asked)


def test_fewer_workers_may_begin(nodes: Nodes):
    nodes({"CPU": 2.0})
    assert worker_resources(8, Workers(fewest=1)) == WorkerResources(
        num_cpus=0.25, num_gpus=0.0, num_threads=1
    )
    with pytest.raises(UsageError, match=r"^3 workers of 1 CPU each were asked for"):
        worker_resources(8, Workers(fewest=3))


def test_the_share_is_of_what_is_free(nodes: Nodes):
    nodes({"CPU": 4.0}, free=2.0)
    assert worker_resources(1).num_cpus == 1.5
    # Where no worker would find room now, they wait for their share of the whole.
    nodes({"CPU": 4.0}, free=0.0)
    assert worker_resources(1).num_cpus == 3.5


def test_a_cluster_without_nodes_is_waited_for(nodes: Nodes, monkeypatch: pytest.MonkeyPatch):
    nodes()
    with pytest.raises(
        UsageError, match=r"^1 worker of 1 CPU each were asked for but this machine has 0 CPUs"
    ):
        worker_resources(1)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    waits = []

    def come(number: int, needed: WorkerResources, minutes: float) -> None:
        waits.append((number, needed.resources(), minutes))
        nodes({"CPU": 4.0}, {"CPU": 4.0})

    monkeypatch.setattr(placing, "wait_for_room", come)
    assert worker_resources(2, Workers(wait_minutes=3)).num_cpus == 3.5
    assert waits == [(2, {"CPU": 1.0}, 3)]


def test_trials_at_once(nodes: Nodes):
    for resources, num_workers, expected in (
        ({"CPU": 2.0}, 1, 2),
        ({"CPU": 2.0}, 2, 1),
        ({"CPU": 2.0}, 4, 1),
        ({"CPU": 64.0, "GPU": 8.0}, 1, 8),
        ({"CPU": 64.0, "GPU": 8.0}, 4, 2),
    ):
        nodes(resources)
        assert default_concurrency(num_workers) == expected


def test_folders_are_for_one_node_or_a_mount(nodes: Nodes, monkeypatch: pytest.MonkeyPatch):
    nodes({"CPU": 2.0}, dead=1)
    check_shared("/runs", "--storage")
    nodes({"CPU": 2.0}, {"CPU": 2.0})
    check_shared("s3://bucket/runs", "--storage")
    with pytest.raises(
        UsageError, match=r"--storage is the folder '/runs' but the cluster has 2 nodes; use s3://"
    ):
        check_shared("/runs", "--storage")
    monkeypatch.setenv("GLIORAY_SHARED_FILESYSTEM", "0")
    with pytest.raises(UsageError, match="the cluster has 2 nodes"):
        check_shared("/runs", "--storage")
    monkeypatch.setenv("GLIORAY_SHARED_FILESYSTEM", "1")
    check_shared("/runs", "--storage")


def test_an_address_where_no_driver_can_join_is_refused_within_seconds(
    monkeypatch: pytest.MonkeyPatch, free_port: int
):
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(
        cluster.ray, "init", lambda *args, **options: pytest.fail("Ray would try for minutes")
    )
    for address, sentence in (
        (f"127.0.0.1:{free_port}", "no Ray cluster answers at RAY_ADDRESS=.* \\(.*refused\\)"),
        (f"ray://127.0.0.1:{free_port}", "no Ray cluster answers"),
        ("no-such-host.invalid:6379", "no Ray cluster answers"),
        ("127.0.0.1:123456", "no Ray cluster answers"),
        ("http://127.0.0.1:8265", "is for `ray job submit`, which reads it from RAY_API_SERVER_ADDRESS"),
        ("head", "a driver joins a cluster by host:port"),
        ("head:port", "a driver joins a cluster by host:port"),
        (":6379", "a driver joins a cluster by host:port"),
    ):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UsageError, match=sentence):
            cluster.connect()


def test_another_server_at_the_address_is_no_cluster(monkeypatch: pytest.MonkeyPatch):
    def time_out(address: str) -> None:
        raise RpcError("Timed out while waiting for GCS to become available.")

    never = threading.Event()
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "_GCS_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listener.getsockname()[1]}")
        for client, reason in (
            (time_out, "Timed out while waiting for GCS"),
            (lambda address: never.wait(), "no answer in 0.2 s"),
        ):
            monkeypatch.setattr(cluster, "GcsClient", client)
            with pytest.raises(UsageError, match=rf"no Ray cluster answers at .* \({reason}"):
                cluster.connect()
    never.set()


@pytest.mark.parametrize(
    "raised", [RuntimeError("Version mismatch\nand more"), ConnectionError("Version mismatch.")]
)
def test_what_ray_raises_becomes_a_sentence(monkeypatch: pytest.MonkeyPatch, raised: Exception):
    def fail(*args: object, **options: object) -> None:
        raise raised

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", fail)
    monkeypatch.setattr(cluster, "GcsClient", lambda address: None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for address, sentence in (
            (
                f"127.0.0.1:{listener.getsockname()[1]}",
                r"RAY_ADDRESS=.* cannot be joined \(Version mismatch\)",
            ),
            ("", r"no local Ray can start on this machine \(Version mismatch\)"),
        ):
            monkeypatch.setenv("RAY_ADDRESS", address)
            with pytest.raises(UsageError, match=sentence):
                cluster.connect()


def test_a_local_ray_has_ports_and_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    given: list[tuple[dict[str, str], dict[str, Any]]] = []

    def start(address: str, **options: Any) -> None:
        given.append((dict(os.environ), options))
        raise RuntimeError("enough")

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", start)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    for temp in ("/tmp", f"/tmp/{60 * 'x'}"):
        monkeypatch.setenv("RAY_TMPDIR", temp)
        before = dict(os.environ)
        with pytest.raises(UsageError):
            cluster.connect()
        assert os.environ == before
    (first, options), (second, further) = given
    for name in ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT"):
        assert first[name] != second[name]
    assert first["RAY_AUTH_TOKEN"] == second["RAY_AUTH_TOKEN"]
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert options["_temp_dir"] == further["_temp_dir"] == "/tmp/ray"


def test_only_errors_that_may_pass_are_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    fits: list[Exception | None] = []

    class Trainer:
        def __init__(self, *args: object, torch_config: TorchConfig, **options: object) -> None:
            # No collective waits for ever, nor does a report.
            assert torch_config.timeout_s == train.COLLECTIVE_TIMEOUT_S

        def fit(self) -> None:
            error = fits.pop(0)
            if error is not None:
                raise error
            (tmp_path / train.RESULT_FILE).write_text('{"metrics": {}}')

    monkeypatch.setattr(train, "TorchTrainer", Trainer)
    monkeypatch.setattr(train, "place_data", lambda plans, everywhere: "")
    monkeypatch.setattr(faults, "PAUSES_S", (0.0,))
    monkeypatch.setenv("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "60")
    plan: Any = SimpleNamespace(
        storage=str(tmp_path),
        config=SimpleNamespace(train=SimpleNamespace(num_workers=1)),
        workers=Workers(),
    )
    monkeypatch.setattr(train, "wait_for_room", lambda *args: None)
    resources = WorkerResources(num_cpus=1, num_gpus=0, num_threads=1)
    died = _WrapperError("the worker died")
    for errors, left, expected in (
        ([died, StorageError("away", True), None], [], None),
        ([StorageError("the disk is full"), None], [None], StorageError),
        ([died, died, died, None], [None], TrainingError),
        ([UsageError("other settings"), None], [None], UsageError),
        ([_WrapperError(cause=CaseError("a", "f", "moved", "look")), None], [None], CaseError),
        ([DivergenceError("nan"), None], [None], DivergenceError),
        ([_WrapperError(cause=TypeError("a fault of ours")), None], [None], TrainingError),
    ):
        fits[:] = errors
        if expected is None:
            assert train.run_training(plan, resources=resources) == {"metrics": {}}
        else:
            with pytest.raises(expected):
                train.run_training(plan, resources=resources)
        assert fits == left


class _WrapperError(Exception):
    """As Ray's own: a cause under one of several names."""

    def __init__(self, text: str = "wrapped", **fields: object) -> None:
        super().__init__(text)
        self.__dict__.update(fields)


def _chained(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


OURS = DataError("nothing to train on; check the split")


@pytest.mark.parametrize(
    "raised",
    [
        OURS,
        _chained(_WrapperError(), OURS),
        _WrapperError(cause=OURS),
        _WrapperError(_base_exc=OURS),
        _WrapperError(worker_failures={0: ValueError("other"), 1: _WrapperError(cause=OURS)}),
        _chained(
            _WrapperError(worker_failures={0: _chained(_WrapperError(), _WrapperError(cause=OURS))}),
            ValueError("other"),
        ),
    ],
    ids=["itself", "cause", "rays cause", "base", "a worker", "deep"],
)
def test_the_cause_is_our_own_error(raised: Exception):
    assert faults.judge(raised).error is OURS


def test_errors_with_several_arguments_stay_what_they_are():
    error = CaseError("a", "a.nii", "is cut short", "copy it again")
    found = faults.judge(_WrapperError(cause=error)).error
    assert found is error
    assert str(found) == "case a: a.nii: is cut short; copy it again"


def test_what_is_none_of_ours_is_told_by_its_last_line():
    deep = RuntimeError("CUDA error\nout of memory")
    found = faults.judge(_chained(_WrapperError("a page of Ray"), deep)).error
    assert type(found) is TrainingError
    assert str(found) == "training failed on a worker (RuntimeError: out of memory); its log is above"
    assert "(MemoryError: MemoryError)" in str(faults.judge(MemoryError()).error)


def test_a_ring_of_causes_ends():
    first, second = _WrapperError("first"), _WrapperError("second")
    first.__cause__, second.__cause__ = second, first
    found: GliorayError = faults.judge(first).error
    assert "_WrapperError: second" in str(found)


def test_trials_get_no_copy_of_the_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    class_cache = pytest.importorskip("ray.tune.execution.class_cache")
    names = set(class_cache.ENV_VARS_TO_PROPAGATE)
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", names | {"AWS_SECRET_ACCESS_KEY"})
    keep_credentials()
    assert {name for name in names if not name.startswith("AWS_")} == class_cache.ENV_VARS_TO_PROPAGATE
