"""Where cases are decoded on a cluster of several nodes, counted by every read of a case's file on each node."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import services

import glioray
from glioray.config import override
from glioray.engine.run import RunPlan
from glioray.slices.cache import CacheConfig, SliceCache

# In every Python that Ray starts on a node: notes each T1 that is opened in a file on the node's own disk.
_NOTE_READS = """
import os, sys

def note(event, args):
    if event == "open" and str(args[0]).endswith("_t1.nii.gz"):
        reads = os.open(os.path.join(os.environ["NODE_DISK"], "reads"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(reads, os.path.basename(str(args[0])).encode() + b"\\n")
        os.close(reads)

if "NODE_DISK" in os.environ:
    sys.addaudithook(note)
"""

# A sweep and then, when a line comes from stdin, fills of a node that has come meanwhile, by two workers at once: with
# the sweep's preprocessing, and with another.
_DRIVER = """
import json, pickle, sys
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from glioray.engine.on_ray.connect import connect
from glioray.engine.on_ray.placement import fill_cache
from glioray.engine.on_ray.search import run_sweep
from glioray.engine.search import SweepPlan
from glioray.progress import log_to_stderr

log_to_stderr()
connect()
plan = pickle.load(open(sys.argv[1], "rb"))
result = run_sweep(SweepPlan(base=plan, num_trials=2, num_concurrent=2, model_name=f"s-{plan.run_name}"))
print(json.dumps(result["trials"]), flush=True)

sys.stdin.readline()
(late,) = (node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU") == 3)
fill = ray.remote(num_cpus=1.5)(fill_cache).options(
    scheduling_strategy=NodeAffinitySchedulingStrategy(late, soft=False)
)
for clahe in (0.0, 0.5):
    config = plan.config.preprocess.replace(clahe=clahe)
    work = [fill.remote(plan.manifest.data, plan.manifest.cases, config, plan.cache) for _ in range(2)]
    assert ray.get(work) == [{}, {}]
"""


class _Cluster:
    """A head and further nodes, each with a disk of its own below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.nodes = folder, list[services.Service]()
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(_NOTE_READS)
        self.head = self._start("a", lambda **options: services.start_ray_head(**options, several_nodes=True))

    def _start(
        self, name: str, start: Callable[..., services.Service], num_cpus: int = 2
    ) -> services.Service:
        (self.folder / name).mkdir()
        service = start(
            folder=self.folder / name,
            num_cpus=num_cpus,
            env={"NODE_DISK": str(self.folder / name)},
            object_store_bytes=200 << 20,
        )
        self.nodes.append(service)
        return service

    def add(self, name: str, num_cpus: int = 2) -> None:
        self._start(name, lambda **options: services.start_ray_worker(head=self.head, **options), num_cpus)

    @contextmanager
    def drive(self, script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run a script as a driver of the cluster, with pipes to its stdin and stdout; stderr goes to `log`."""
        runtime_env = {"env_vars": {"PYTHONPATH": str(self.folder / "hook")}}
        env = {
            **os.environ,
            **self.head.env,
            "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": runtime_env}),
            "PYTHONPATH": str(Path(glioray.__file__).parents[1]),
        }
        (self.folder / "driver.py").write_text(script)
        command, pipe = [sys.executable, str(self.folder / "driver.py"), *arguments], subprocess.PIPE
        with (
            self.log.open("w") as log,
            subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=log, text=True) as driver,
        ):
            try:
                yield driver
            finally:
                driver.kill()

    @property
    def log(self) -> Path:
        """Where the driver logs."""
        return self.folder / "driver.log"

    def reads(self, name: str) -> Counter[str]:
        """How often each file was read on a node."""
        file = self.folder / name / "reads"
        return Counter(file.read_text().split() if file.exists() else ())

    def contents(self, name: str) -> dict[str, bytes]:
        """The arrays in a node's cache."""
        folder = self.folder / name / "slices"
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.npy")}

    def cached(self, name: str, plan: RunPlan, **preprocess: Any) -> list[bool]:
        """Whether a node's cache has each case."""
        config = plan.config.preprocess.replace(**preprocess)
        slices = SliceCache(CacheConfig(folder=str(self.folder / name / "slices")), config)
        return [slices.has(entry) for entry in plan.manifest.cases]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[_Cluster]:
    started = _Cluster(tmp_path)
    yield started
    for service in reversed(started.nodes):
        service.stop()


def test_a_sweep_decodes_each_case_once_in_the_cluster_and_a_late_node_fills_itself(
    cluster: _Cluster, plan: RunPlan, tmp_path: Path
):
    num_cases, pickled = len(plan.manifest.cases), str(tmp_path / "plan.pickle")
    plan = dataclasses.replace(
        plan,
        config=override(plan.config, **{"train.max_epochs": 1, "sample.steps_per_epoch": 2}),
        cache=CacheConfig(folder="$NODE_DISK/slices"),
        kind="sweep",
        log_model=False,
    )
    Path(pickled).write_bytes(pickle.dumps(plan))
    cluster.add("b")
    with cluster.drive(_DRIVER, pickled) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        # After what Tune prints.
        printed = next((line for line in driver.stdout if line.startswith("[{")), "")
        assert printed, cluster.log.read_text()[-5000:]
        assert [trial["state"] for trial in json.loads(printed)] == ["complete"] * 2
        swept = cluster.reads("a") + cluster.reads("b")
        assert (set(swept.values()), swept.total()) == ({1}, num_cases)
        assert all(cluster.cached("a", plan) + cluster.cached("b", plan))
        assert cluster.contents("a") == cluster.contents("b")
        expected = f"{num_cases} decoded, {num_cases} copied from node to node, 0 there already"
        assert expected in cluster.log.read_text()

        # What other nodes have is copied; what none has is decoded there, once for both workers.
        cluster.add("late", num_cpus=3)
        driver.communicate("go on\n")
        assert driver.returncode == 0, cluster.log.read_text()[-5000:]
    assert all(cluster.cached("late", plan) + cluster.cached("late", plan, clahe=0.5))
    # So these are reads with the other preprocessing.
    assert cluster.reads("a") + cluster.reads("b") == swept
    assert (set(cluster.reads("late").values()), cluster.reads("late").total()) == ({1}, num_cases)
