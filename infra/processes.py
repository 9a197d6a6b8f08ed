"""Start a server as a process group of its own, wait until it answers, and end it and nothing else.

Every server listens on loopback ports that were free and writes one log.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOPBACK = "127.0.0.1"
# Below the kernel's ephemeral range, so that no outgoing connection takes a port between choice and use;
# SeaweedFS adds 10000 for its gRPC ports, which must stay below it too.
_PORTS = range(20000, 22700)
_GRPC_OFFSET = 10000


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
        started: when that process was created, seconds since the epoch; a later process of the same pid has another.
        log: the file that it writes to.
        scratch: folders that are removed once it has ended.
    """

    name: str
    address: str
    env: dict[str, str]
    pid: int
    started: float
    log: Path
    scratch: tuple[Path, ...] = ()

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


def start_process(
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
        raise ServiceError(
            f"{name} ended at once with status {process.returncode}; its log {log} ends: {_tail(log)}"
        )
    except BaseException:
        service.stop()
        raise


def answers(url: str, headers: Mapping[str, str] | None = None) -> bool:
    """Whether a server of this machine answers with 200; never asked through a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=dict(headers or {})), timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def write_secret(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)


def make_folder(path: Path) -> Path:
    path = Path(path).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


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


def _tail(log: Path, num_lines: int = 8) -> str:
    return " | ".join(line.strip() for line in log.read_text(errors="replace").splitlines()[-num_lines:])
