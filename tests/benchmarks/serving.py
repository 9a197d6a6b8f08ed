"""An endpoint on a Ray of its own, for the benchmarks that need one."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping

from measure import PLATFORM

from glioray.machine import free_port

ROOT = PLATFORM.parent
sys.path.append(str(ROOT / "infra"))

import services  # noqa: E402

DEADLINE_S = 900


@contextlib.contextmanager
def running(service: services.Service) -> Iterator[services.Service]:
    """A service, which ends with the block, also where this process is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield service
    finally:
        # A time limit's TERM reaches this process twice where its whole group gets it.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        service.stop()


@contextlib.contextmanager
def serving(env: Mapping[str, str], *flags: str) -> Iterator[str]:
    """The address of the endpoint while it runs."""
    port = free_port()
    # fmt: off
    command = [
        sys.executable, str(ROOT / "serve" / "app.py"), "--superres", "none", "--port", str(port), *flags,
    ]
    # fmt: on
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True, timeout=DEADLINE_S)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop = ["-m", "ray.serve.scripts", "shutdown", "-y", "-a", env["RAY_API_SERVER_ADDRESS"]]
        subprocess.run(
            [sys.executable, *stop], env=env, stdout=subprocess.DEVNULL, check=True, timeout=DEADLINE_S
        )


def wait_for(is_true: Callable[[], bool], otherwise: str) -> None:
    """Wait until something is true; end with a sentence where that takes too long."""
    end = time.monotonic() + DEADLINE_S
    while not is_true():
        if time.monotonic() > end:
            raise SystemExit(otherwise)
        time.sleep(0.1)
