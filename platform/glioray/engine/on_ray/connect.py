"""Joining or starting Ray."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Ray has no public name for it
from ray.exceptions import RayError

import glioray
from glioray.engine.on_mlflow.provenance import git_commit
from glioray.errors import UsageError, first_line
from glioray.machine import bypass_proxies, find_temp, free_port, plain_python, read_switch
from glioray.progress import LISTENS
from glioray.storage import is_local

_log = logging.getLogger(__name__)

_ANSWER_S, _GCS_S = 10.0, 15.0
# The same in every Ray of a machine by default, and a second one's traceback reaches the driver.
_SHARED_PORTS = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
# Of this process's local Rays; Ray reads it once.
_TOKEN = secrets.token_hex(32)

# Without these, torch on small machines spends much of its time in page faults: glibc returns memory too eagerly.
WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 28),
}


def connect(*modules: Path, variables: Mapping[str, str] | None = None) -> None:
    """Join the cluster of RAY_ADDRESS, or start a local Ray.

    The package and `modules` (further folders of Python files) are uploaded with the job, so that a cluster need not
    have them installed. Credentials are not: nodes have their own, and Ray's dashboard shows a job's environment.

    Args:
        modules: folders.
        variables: of the environment of this driver's processes on the cluster.

    Raises:
        UsageError: no cluster answers at the address within seconds, or none that this driver can join; or no local Ray
            can start on this machine.
    """
    if ray.is_initialized():
        return
    _quiet_ray()
    address = os.environ.get("RAY_ADDRESS") or "local"
    on_cluster = address != "local"
    # Keep what `ray job submit --runtime-env-json` set: Ray refuses a second value.
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    sent = {**WORKER_ENVIRONMENT, "GLIORAY_GIT_COMMIT": git_commit(), **(variables or {})}
    if os.environ.get(LISTENS):
        sent[LISTENS] = os.environ[LISTENS]
    given = job.get("env_vars") or {}
    runtime_env: dict[str, Any] = {
        "env_vars": {name: value for name, value in sent.items() if name not in given}
    }
    if "py_modules" not in job:
        runtime_env["py_modules"] = [str(Path(glioray.__file__).parent), *map(str, modules)]
    # The parts of a local Ray reach each other by the machine's own address.
    bypass_proxies(*([] if on_cluster else [ray.util.get_node_ip_address()]))
    options: dict[str, Any] = {"runtime_env": runtime_env, "logging_level": logging.WARNING}
    if on_cluster:
        _check_address(address)
        try:
            ray.init(address, **options)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            raise UsageError(
                f"the Ray cluster at RAY_ADDRESS={address} cannot be joined ({first_line(error)}); correct that, or "
                "unset RAY_ADDRESS to run locally"
            ) from error
    else:
        with _local_options() as more:
            try:
                ray.init("local", **options, **more)
            except (OSError, RuntimeError, ValueError, RayError) as error:
                raise UsageError(f"no local Ray can start on this machine ({first_line(error)})") from error
    nodes = [node for node in ray.nodes() if node["Alive"]]
    found = ray.cluster_resources()
    _log.info(
        "Ray %s: %d node(s), %g CPUs, %g GPUs",
        "at " + address if on_cluster else "in local mode",
        len(nodes),
        found.get("CPU", 0),
        found.get("GPU", 0),
    )


def _check_address(address: str) -> None:
    """Refuse an address that Ray would try for a quarter of an hour, or answer with a traceback.

    Raises:
        UsageError: it is not an address that a driver joins, or nobody listens there.
    """
    if address == "auto":
        return
    scheme, separator, rest = address.rpartition("://")
    host, colon, port = rest.rpartition(":")
    if (separator and scheme != "ray") or not colon or not host or not port.isdigit():
        raise UsageError(
            f"RAY_ADDRESS is '{address}'; a driver joins a cluster by host:port, such as 10.0.0.5:6379, and an http "
            "address is for `ray job submit`, which reads it from RAY_API_SERVER_ADDRESS: submit the job there, or unset "
            "RAY_ADDRESS to run locally"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
        if not separator:
            _ask_gcs(rest)
    except (OSError, OverflowError, RayError) as error:
        raise UsageError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({first_line(error)}); start it, correct the address, or "
            "unset RAY_ADDRESS to run locally"
        ) from error


def _ask_gcs(address: str) -> None:
    """Wait for the answer of a cluster's GCS, shorter than the half minute that Ray's client gives another server.

    Raises:
        OSError, RayError: none came.
    """
    failures: list[Exception] = []

    def ask() -> None:
        try:
            GcsClient(address=address)
        except (OSError, RayError) as error:
            failures.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_GCS_S)
    if asking.is_alive():
        raise TimeoutError(f"no answer in {_GCS_S:g} s")
    if failures:
        raise failures[0]


@contextmanager
def _local_options() -> Iterator[dict[str, Any]]:
    """Keyword arguments of `ray.init` for a local Ray on this machine; its environment holds in the context.

    Raises:
        UsageError: there is no folder for its sessions.
    """
    variables = {name: str(free_port()) for name in _SHARED_PORTS}
    if not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        # Ray would write one into the home, readable by everyone.
        variables["RAY_AUTH_TOKEN"] = _TOKEN
    kept = {name: os.environ.get(name) for name in variables}
    python = sys.executable
    os.environ.update(variables)
    sys.executable = plain_python()
    try:
        yield {"_temp_dir": str(find_temp() / "ray")}
    finally:
        sys.executable = python
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def keep_credentials() -> None:
    """Keep this process's AWS keys out of trials' environments, into which Tune copies them.

    Ray shows these in its dashboard, in its logs and in the arguments of processes. Nodes have credentials of their own.
    """
    # Imported here, since most of what connects needs no Tune. Tune has no setting for it.
    from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

    ENV_VARS_TO_PROPAGATE.difference_update(
        {name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    )


def disconnect() -> None:
    """Leave the cluster, or stop the local Ray."""
    ray.shutdown()


def check_shared(uri: str, flag: str) -> None:
    """Refuse a local folder that other nodes cannot see.

    Raises:
        UsageError: the cluster has several nodes and the URI is a local folder that is not declared as shared.
    """
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    if num_nodes > 1 and is_local(uri) and not read_switch("GLIORAY_SHARED_FILESYSTEM"):
        raise UsageError(
            f"{flag} is the folder '{uri}' but the cluster has {num_nodes} nodes; use s3://…, or set "
            "GLIORAY_SHARED_FILESYSTEM=1 if every node mounts that folder"
        )


def _quiet_ray() -> None:
    # The logger that repeats every reported metric is named after its file.
    files = [
        name
        for name in logging.root.manager.loggerDict
        if name.endswith("ray/train/v2/_internal/execution/context.py")
    ]
    for name in ("ray.train", "ray.tune", *files):
        logging.getLogger(name).setLevel(logging.WARNING)
