"""The one gate, the same here and in CI: format, lint, types, import rules, tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_checks(pytest_args: list[str]) -> int:
    """Run every check, also after one has failed; returns 0 when all pass. `pytest_args` go to pytest."""
    bin_folder = Path(sys.executable).parent
    checks = {
        "format": ["ruff", "format", "--check"],
        "lint": ["ruff", "check"],
        "types": ["mypy"],
        "types of infra and serve": [
            "mypy",
            "-p",
            "processes",
            "-p",
            "services",
            "-p",
            "local",
            "-p",
            "demo",
            "-p",
            "checks",
            "-p",
            "serve",
        ],
        "import rules": ["lint-imports", "--no-logo"],
        "documentation": ["python", "infra/local.py", "docs", "--build"],
        "tests": ["pytest", "--durations=15", *pytest_args],
    }
    env = {
        **os.environ,
        "PATH": os.pathsep.join([str(bin_folder), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": str(ROOT / "platform"),
        "MYPYPATH": os.pathsep.join([str(ROOT), str(ROOT / "infra"), str(ROOT / "platform")]),
    }
    failed = []
    for name, (tool, *args) in checks.items():
        print(f"\n== {name}: {tool} {' '.join(args)}", flush=True)
        started = time.monotonic()
        if subprocess.run([str(bin_folder / tool), *args], cwd=ROOT, env=env).returncode:
            failed.append(name)
        # pytest's own closing line stays the last.
        if name != "tests":
            print(
                f"   {'FAILED' if name in failed else 'passed'} in {time.monotonic() - started:.0f} s",
                flush=True,
            )
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0
