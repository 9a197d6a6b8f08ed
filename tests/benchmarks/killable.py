"""A cluster of several nodes on this machine with its servers, each of which can be killed and started again."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
from serving import services

# Before a node that is announced is taken away.
NOTICE_S = 20


class Parts:
    """A cluster with its servers, each of which can be killed and started again."""

    s3: services.Service
    mlflow: services.Service
    head: services.Service

    def __init__(self, folder: Path) -> None:
        self.folder, self._num_started, self.nodes = folder, 0, list[services.Service]()

    def start(self, num_nodes: int) -> None:
        """Start the servers, a head without CPUs and the nodes."""
        folder = self.folder
        self.s3 = services.start_s3(folder / "s3", ["data", "runs", "mlflow"])
        os.environ |= self.s3.env
        self.mlflow = services.start_mlflow(folder / "mlflow", artifacts="s3://mlflow/artifacts")
        os.environ |= self.mlflow.env
        self.head = services.start_ray_head(
            folder / "head",
            0,
            env=disk_of(folder / "head"),
            object_store_bytes=200 << 20,
            several_nodes=True,
        )
        os.environ |= {name: value for name, value in self.head.env.items() if name != "RAY_ADDRESS"}
        for _ in range(num_nodes):
            self.nodes.append(self.start_node())

    def start_node(self) -> services.Service:
        """A node with one CPU and a disk of its own."""
        self._num_started += 1
        disk = self.folder / f"node-{self._num_started}"
        disk.mkdir()
        return services.start_ray_worker(disk, self.head, 1, env=disk_of(disk), object_store_bytes=200 << 20)

    def stop(self) -> None:
        servers = [vars(self).get(name) for name in ("head", "mlflow", "s3")]
        for service in filter(None, (*self.nodes, *servers)):
            service.stop()

    def kill_node(self, pause_s: float, place: int | None = None) -> str:
        """Kill a node, and start another after a pause."""
        place = random.randrange(len(self.nodes)) if place is None else place
        kill_family(self.nodes[place])
        self.nodes[place].stop()
        time.sleep(pause_s)
        self.nodes[place] = self.start_node()
        return f"a node was killed; another one joined after {pause_s:.0f} s"

    def take_node(self, pause_s: float) -> str:
        """Announce to Ray that a node will be taken away, as clouds do with spot instances, and do so."""
        place = random.randrange(len(self.nodes))
        raylet = next(
            word.partition("=")[2]
            for process in family(self.nodes[place])
            for word in process.cmdline()
            if word.startswith("--node_id=")
        )
        # fmt: off
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self.head.env["RAY_ADDRESS"],
            "--node-id", raylet, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken away",
            "--deadline-remaining-seconds", str(NOTICE_S),
        ]
        # fmt: on
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(NOTICE_S)
        return f"with {NOTICE_S} s notice, {self.kill_node(pause_s, place)}"

    def kill_worker(self, pause_s: float) -> str:
        """Kill a process that trains."""
        found = [
            process
            for node in self.nodes
            for process in family(node)
            if is_training(process)
        ]  # fmt: skip
        if not found:
            return "no process trained that could be killed"
        random.choice(found).kill()
        return "a process that trains was killed"

    def restart_s3(self, pause_s: float) -> str:
        kill_family(self.s3)
        self.s3.stop()
        time.sleep(pause_s)
        port = int(self.s3.address.rpartition(":")[2])
        keys = self.s3.env["AWS_ACCESS_KEY_ID"], self.s3.env["AWS_SECRET_ACCESS_KEY"]
        self.s3 = services.start_s3(self.folder / "s3", ["data", "runs", "mlflow"], *keys, port=port)
        return f"S3 was killed and started again after {pause_s:.0f} s"

    def restart_mlflow(self, pause_s: float) -> str:
        kill_family(self.mlflow)
        self.mlflow.stop()
        time.sleep(pause_s)
        port = int(self.mlflow.address.rpartition(":")[2])
        self.mlflow = services.start_mlflow(self.folder / "mlflow", port, artifacts="s3://mlflow/artifacts")
        return f"MLflow was killed and started again after {pause_s:.0f} s"


def disk_of(folder: Path) -> dict[str, str]:
    """Variables of a node; in a job's environment, Ray would put the head's folder in the place of `$NODE_DISK`."""
    return {"NODE_DISK": str(folder), "GLIORAY_CACHE": "$NODE_DISK/slices"}


def family(service: services.Service) -> list[psutil.Process]:
    """The processes of a service."""
    try:
        leader = psutil.Process(service.pid)
        return [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_family(service: services.Service) -> None:
    """Kill a service's processes, with no time for a last word."""
    for process in family(service):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def is_training(process: psutil.Process) -> bool:
    """Whether a process is a rank or a trial that works."""
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return title.startswith("ray::") and ("RayTrainWorker" in title or ".train" in title)


def find_driver(run_name: str) -> psutil.Process | None:
    """The process of a job's own script."""
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if len(command) > 1 and command[1].startswith("jobs/") and run_name in command:
            return process
    return None
