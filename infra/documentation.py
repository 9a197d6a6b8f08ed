"""Build and serve the documentation site of `infra/docs`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from processes import LOOPBACK, free_port

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "infra" / "mkdocs.yml"


def build_site(out: Path | None = None) -> int:
    """Build the site into `out`, by default `.glioray/site`, and return mkdocs' exit code; a warning is an error."""
    return subprocess.run(_command("build", out), cwd=ROOT, env=_environment()).returncode


def serve_site() -> int:
    """Build the site and serve it on a free loopback port until it is interrupted; pages follow their files."""
    if code := build_site():
        return code
    watched = [
        flag for folder in ("README.md", "infra/decisions") for flag in ("--watch", str(ROOT / folder))
    ]
    address = ["--dev-addr", f"{LOOPBACK}:{free_port()}", "--livereload"]
    server = subprocess.Popen([*_mkdocs("serve"), *address, *watched], cwd=ROOT, env=_environment())
    try:
        return server.wait()
    except KeyboardInterrupt:
        server.wait()
        return 0


def _command(verb: str, out: Path | None) -> list[str]:
    target = [] if out is None else ["--site-dir", str(out)]
    return [*_mkdocs(verb), "--strict", "--quiet", *target]


def _mkdocs(verb: str) -> list[str]:
    return [sys.executable, "-m", "mkdocs", verb, "--config-file", str(CONFIG)]


def _environment() -> dict[str, str]:
    """The generated pages import the package and the endpoint from this checkout."""
    path = [str(ROOT / "platform"), str(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "NO_MKDOCS_2_WARNING": "1"}
