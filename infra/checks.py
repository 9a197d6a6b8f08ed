"""The one gate, the same here and in CI: format, lint, types, import rules, documentation, tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_MAX_WORKERS = 4


def run_checks(pytest_args: list[str], *, quick: bool = False) -> int:
    """Run every check, also after one has failed; returns 0 when all pass.

    The checks without tests run side by side. Then pytest runs on several processes; each folder of tests on Ray
    goes to one of them (`tests/conftest.py`). Its closing line is the last that is printed unless a check fails.

    Args:
        pytest_args: for pytest, after its own.
        quick: leave out the audit, the documentation, all tests but those marked `unit`, and the coverage.
    """
    modules = ("glioray", "processes", "services", "local", "demo", "checks", "audit", "serve")
    checks = {
        "types": ["mypy", *(word for module in modules for word in ("-p", module))],
        "format": ["ruff", "format", "--check"],
        "lint": ["ruff", "check"],
        "import rules": ["lint-imports", "--no-logo"],
    }
    tests = ["pytest", "-n", str(min(os.cpu_count() or 1, _MAX_WORKERS)), "--durations=15"]
    if quick:
        tests += ["-m", "unit", "tests/unit"]
    else:
        checks["advisories"] = ["python", "infra/audit.py"]
        checks["documentation"] = ["python", "infra/local.py", "docs", "--build"]
        tests += ["--cov", "--cov-report=term:skip-covered"]
    failed = []
    with ThreadPoolExecutor(2) as pool:
        for name, command, done, seconds in pool.map(_run_check, checks, checks.values()):
            print(f"\n== {name}: {' '.join(command)}\n{done.stdout.decode(errors='replace')}", end="")
            print(f"   {'FAILED' if done.returncode else 'passed'} in {seconds:.0f} s", flush=True)
            if done.returncode:
                failed.append(name)
    command = [*tests, *pytest_args]
    print(f"\n== tests: {' '.join(command)}", flush=True)
    if subprocess.run([_path(command[0]), *command[1:]], cwd=ROOT, env=_environment()).returncode:
        failed.append("tests")
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


def _run_check(
    name: str, command: list[str]
) -> tuple[str, list[str], subprocess.CompletedProcess[bytes], float]:
    started = time.monotonic()
    done = subprocess.run(
        [_path(command[0]), *command[1:]],
        cwd=ROOT,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return name, command, done, time.monotonic() - started


def _path(tool: str) -> str:
    """The path of a tool beside this Python."""
    return str(Path(sys.executable).parent / tool)


def _environment() -> dict[str, str]:
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": str(ROOT / "platform"),
        "MYPYPATH": os.pathsep.join([str(ROOT), str(ROOT / "infra"), str(ROOT / "platform")]),
    }
    if sys.version_info >= (3, 12):
        # Several times cheaper than the default tracer.
        environment.setdefault("COVERAGE_CORE", "sysmon")
    return environment
