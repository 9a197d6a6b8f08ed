#!/usr/bin/env python3
"""Serve registered models over HTTP, and follow their aliases.

    python serve/app.py --model models:/glioray-unet@champion --host 127.0.0.1 --port 8000

A super-resolution model is served beside it where there is one (`--superres`).

On the cluster of RAY_ADDRESS the endpoint stays when this ends; without one it is served from this machine until
it is interrupted. In a Serve config the application is `serve.app:build_app`, whose args are `schemas.Settings`.
"""

# No `from __future__ import annotations`: Serve reads the class of build_app's argument from its annotation.

import ipaddress
import json
import logging
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

runpy.run_path(str(Path(__file__).resolve().parents[1] / "jobs" / "_path.py"))

import ray
import requests
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayActorError

from glioray.api.places import absolute_uri
from glioray.api.requests import Names, Request, Texts, Uri, as_flag
from glioray.cli.flags import build_request, parse_flags
from glioray.cli.job import run_job
from glioray.engine.on_mlflow.client import tracking_uri
from glioray.engine.on_ray.connect import connect
from glioray.engine.serving import NOTICE
from glioray.errors import GliorayError, UsageError
from glioray.progress import log_to_stderr
from serve.api_keys import KEYS_VARIABLE, read_keys
from serve.deployments import make_application
from serve.jobs import JobStore
from serve.schemas import Settings
from serve.webhook import read_secret

APPLICATION = "glioray"
_START_S, _OTHERS_S = 600, 60
_FEW_CPUS, _SHARE = 4, 0.25
# Serve ends a proxy that has not started after three times 5 s, which a busy machine's imports take.
_SERVE_DEFAULTS = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
# Ray starts its processes at 15, behind everything else on the machine: right for a training, not where people wait.
_NICENESS = ("RAY_worker_niceness", "0")
_log = logging.getLogger("glioray.serve")


class Endpoint(Request):
    """The endpoint's address, and those of its settings that are flags."""

    model: Uri = as_flag(
        "models:/glioray-unet@champion", "segmentation model; an alias is followed when it moves", "URI"
    )
    superres: Uri | None = as_flag(
        None,
        "super-resolution model beside it, or none (default: models:/glioray-superres@champion, where "
        "MLFLOW_TRACKING_URI is set)",
        "URI",
    )
    host: str = as_flag("127.0.0.1", "where to listen; 0.0.0.0 for all", "HOST")
    port: int = as_flag(8000, "port to listen on", "N", ge=1, le=65535)
    replicas: int = as_flag(1, "processes that segment, at least", "N", ge=1)
    max_replicas: int | None = as_flag(
        None,
        "processes of a model at most, as many as its queue asks for (default: as --replicas)",
        "N",
        ge=1,
    )
    cpus: float | None = as_flag(
        None,
        "CPUs of a replica, and threads of its network (default: 1; a quarter where the cluster has fewer than 4, so that "
        "training has room)",
        "N",
        gt=0,
    )
    gpus: float = as_flag(0.0, "GPUs of a replica", "N", ge=0)
    max_body_mb: float = as_flag(400.0, "largest request in MB", "MB", gt=0)
    timeout_s: float = as_flag(300.0, "seconds for a request's body, and again for its answer", "S", gt=0)
    poll_s: float = as_flag(15.0, "seconds between two looks at the alias", "S", gt=0)
    api_keys: Uri | None = as_flag(
        None, "file of API keys that keys.py makes: a path or s3:// (default: GLIORAY_API_KEYS)", "FILE"
    )
    webhook_secret: Uri | None = as_flag(
        None,
        "file of the secret of MLflow's webhook for model_version_alias events, which calls /hooks/registry: a path or s3://",
        "FILE",
    )
    no_keys: bool = as_flag(False, "answer everybody who reaches --host, without API keys")
    allowed_origins: Names = as_flag(
        (),
        "origins of other pages whose scripts may use the endpoint, such as https://viewer.example.org",
        "URL,URL",
    )
    job_roots: Texts = as_flag(
        (), "absolute folder or s3:// prefix below which /v1/jobs may read and write; may be repeated", "URI"
    )


def build_app(args: Settings) -> serve.Application:
    """The application for `serve run`, `serve deploy` and a RayService.

    Raises:
        UsageError: neither API keys nor `no_keys`, as Serve may listen to everybody.
    """
    keys = args.api_keys or (None if args.no_keys else os.environ.get(KEYS_VARIABLE))
    if keys is None and not args.no_keys:
        raise UsageError(
            f"the endpoint has no API keys; name their file in api_keys or {KEYS_VARIABLE} (serve/keys.py makes it), or "
            "say no_keys: true where nobody else reaches it"
        )
    return make_application(args.model_copy(update={"api_keys": keys}))


def main() -> dict[str, Any]:
    """Start the endpoint; on a cluster its address and model, on this machine alone it stays until interrupted."""
    endpoint = parse_endpoint(sys.argv[1:])
    if endpoint is None:
        return {}
    settings = _settings(endpoint)
    log_to_stderr()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    on_cluster = (os.environ.get("RAY_ADDRESS") or "local") != "local"
    if not on_cluster:
        os.environ.setdefault(*_NICENESS)
    # Replicas need this folder beside the package.
    connect(Path(__file__).resolve().parent, variables=serve_variables(os.environ))
    if endpoint.cpus is None and ray.cluster_resources().get("CPU", 0) < _FEW_CPUS:
        settings = settings.model_copy(update={"cpus": _SHARE})
    answer = start(settings, endpoint.host, endpoint.port)
    if not on_cluster:
        _stay(answer)
    return answer


def serve_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Serve's own settings for the processes that it starts on the cluster: those of this shell, and our defaults."""
    return _SERVE_DEFAULTS | {name: value for name, value in environ.items() if name.startswith("RAY_SERVE_")}


def parse_endpoint(argv: Sequence[str]) -> Endpoint | None:
    """The endpoint of a command line; None after `--help`.

    Raises:
        UsageError: a flag or a value that is not allowed.
    """
    help_text = (__doc__ or "").splitlines()[0]
    parsed = parse_flags(Endpoint, argv, name="app.py", help_text=help_text, hidden=(), switches={})
    if parsed is None:
        return None
    endpoint: Endpoint = build_request(Endpoint, parsed[0])
    return endpoint


def start(settings: Settings, host: str, port: int) -> dict[str, Any]:
    """Deploy on the Ray that this process has joined, and wait until the endpoint can say how it stands.

    Raises:
        UsageError: Serve runs here already, for others and at another address.
        GliorayError: the endpoint does not come up.
    """
    endpoint = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    running = serve.status()
    if running.proxies and not _answers(f"{endpoint}/-/healthz"):
        others = sorted(set(running.applications) - {APPLICATION})
        if others:
            raise UsageError(
                f"Serve runs on this cluster at another address than {endpoint}, with {', '.join(others)}; a cluster "
                "has one address for all, so give that one by --host and --port"
            )
        _log.info("moving the endpoint to %s", endpoint)
        serve.shutdown()
    # Later than the replica's own timeouts, which answer in a sentence.
    options = {"host": host, "port": port, "request_timeout_s": 2 * settings.timeout_s + 10}
    try:
        serve.start(proxy_location="HeadOnly", http_options=options, logging_config={"log_level": "WARNING"})
    except (RayActorError, TimeoutError):
        # Serve waits a minute for its proxy and starts another one by itself; `_wait` has more patience.
        _log.warning("this machine is busy: the endpoint takes longer to start")
    target = serve.RunTarget(make_application(settings), name=APPLICATION, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)
    state = _wait(endpoint, settings)
    if state["state"] != "ready":
        _log.info("up, and will segment once there is a model: %s", state["detail"])
    models = requests.get(f"{endpoint}/", timeout=10).json()["models"]  # without a key
    versions = {model["task"]: model["version"] for model in models}
    return {
        "endpoint": endpoint,
        "model": versions.get("segmentation"),
        "superres": versions.get("super-resolution"),
        "state": state["state"],
        "notice": NOTICE,
    }


def _settings(endpoint: Endpoint) -> Settings:
    given = endpoint.model_dump(exclude={"host", "port"}, exclude_none=True)
    if endpoint.superres == "none":
        given["superres"] = None
    given["api_keys"] = _find_keys(endpoint)
    if endpoint.webhook_secret is not None:
        given["webhook_secret"] = absolute_uri(endpoint.webhook_secret, "--webhook-secret")
        read_secret(given["webhook_secret"])
    try:
        settings = Settings(**given)
    except ValidationError as error:
        raise UsageError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    JobStore(settings.job_roots)
    # Replicas start with the environment of their node, which need not know the server that this process means.
    asked = (settings.model, endpoint.superres or "")
    if any(uri.startswith(("models:", "runs:")) for uri in asked) or os.environ.get("MLFLOW_TRACKING_URI"):
        return settings.model_copy(update={"tracking_uri": tracking_uri()})
    if endpoint.superres is None:
        _log.info("no super-resolution: MLFLOW_TRACKING_URI, whose registry has the default one, is not set")
        settings = settings.model_copy(update={"superres": None})
    return settings


def _find_keys(endpoint: Endpoint) -> str | None:
    """The file of API keys; None where everybody who reaches the endpoint is answered.

    Raises:
        UsageError: others could reach an endpoint without keys, or the file cannot be used.
    """
    uri = endpoint.api_keys or (None if endpoint.no_keys else os.environ.get(KEYS_VARIABLE))
    if uri is not None:
        if endpoint.no_keys:
            raise UsageError("both --api-keys and --no-keys were given; give one of them")
        read_keys(uri := absolute_uri(uri, "--api-keys"))
        return uri
    if not endpoint.no_keys and not _is_loopback(endpoint.host):
        raise UsageError(
            f"--host is {endpoint.host} and there are no API keys; give --api-keys with a file that serve/keys.py makes, "
            "or say --no-keys where nobody else reaches that address"
        )
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _wait(endpoint: str, settings: Settings) -> dict[str, Any]:
    """What `/readyz` says once the replicas run and have looked for the model."""
    deadline, answered = time.monotonic() + _START_S, 0.0
    while time.monotonic() < deadline:
        application = serve.status().applications.get(APPLICATION)
        status = "NOT_STARTED" if application is None else str(application.status.value)
        if application is not None and status in ("DEPLOY_FAILED", "UNHEALTHY"):
            reason = (application.message.strip() or status).splitlines()[-1]
            raise GliorayError(
                f"the endpoint did not start ({reason}); Ray's dashboard has the replica's log"
            )
        if status in ("RUNNING", "DEPLOYING"):
            try:
                answer = requests.get(f"{endpoint}/readyz", timeout=10)
                state: dict[str, Any] = answer.json()
            except (requests.RequestException, ValueError):
                state = {}
            if state.get("state") in ("ready", "waiting"):
                answered = answered or time.monotonic()
                if status == "RUNNING" or time.monotonic() - answered > _OTHERS_S:
                    if status != "RUNNING":
                        _log.warning("a model is still starting; it may wait for %g free CPUs", settings.cpus)
                    return state
        time.sleep(0.5)
    free = ray.available_resources().get("CPU", 0)
    raise GliorayError(
        f"{endpoint} did not answer within {_START_S} s (status {status}); a replica asks for {settings.cpus:g} CPUs and "
        f"{settings.gpus:g} GPUs, {free:g} CPUs are free, and the port must be reachable from here: see Ray's dashboard"
    )


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


def _stay(answer: dict[str, Any]) -> NoReturn:
    """Tell where the endpoint is, and serve until SIGINT or SIGTERM."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    os.write(_STDOUT, f"{json.dumps(answer)}\n".encode())
    _log.info("serving from this machine; Ctrl-C ends it")
    asked.wait()
    serve.shutdown()
    ray.shutdown()
    sys.exit(0)


if __name__ == "__main__":
    _STDOUT = os.dup(1)  # run_job sends stdout to stderr until it ends
    run_job(main)
