"""What the files of infra/ are compared with: the pinned versions, and the flags of the commands that they run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from packaging.utils import canonicalize_name

_LINES = (Path(__file__).resolve().parents[1] / "infra" / "constraints.txt").read_text().splitlines()
PINS: dict[str, str] = {
    canonicalize_name(name): version
    for name, _, version in (line.partition("==") for line in _LINES if "==" in line and line[0] != "#")
}
"""The versions of infra/constraints.txt, by canonical name."""


def mlflow_server_flags() -> set[str]:
    """The flags of `mlflow server`; in a process of its own, as importing its command line warns."""
    command = [sys.executable, "-m", "mlflow", "server", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"--[\w-]+", text))
