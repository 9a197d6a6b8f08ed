"""The reference of the jobs, from what each answers to `--help`."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import runpy
import sys
from functools import cache
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[3]
_INTRODUCTION = """# Jobs

Generated from the scripts in `jobs/` and `serve/app.py`: what each says of itself and what it answers to `--help`.

Every job logs to stderr and prints one JSON object as the last line of stdout. Exit codes: 0 done, 1 failed, 2 invalid
flag, setting or name. `--dry-run` resolves and checks the config and prints it, without training.
"""


@cache
def render_jobs() -> str:
    """The page of all jobs, one section a script."""
    scripts = [*sorted((ROOT / "jobs").glob("[!_]*.py")), ROOT / "serve" / "app.py"]
    return "\n".join([_INTRODUCTION, *map(_render_job, scripts)])


def _render_job(script: Path) -> str:
    name = str(script.relative_to(ROOT))
    docstring = ast.get_docstring(ast.parse(script.read_text())) or ""
    return f"## `{name}`\n\n{_with_code_blocks(docstring)}\n\n```text\n{help_of(name)}\n```\n"


def help_of(name: str) -> str:
    """What the script answers to `--help`; it runs in this process, which has imported its libraries once."""
    output = io.StringIO()
    argv = [str(ROOT / name), "--help"]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "path", [str(Path(argv[0]).parent), *sys.path]),
        mock.patch.dict(os.environ, {"COLUMNS": "100"}),
        contextlib.redirect_stdout(output),
    ):
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{name} --help ended with exit code {end.code}") from end
    return output.getvalue().strip()


def _with_code_blocks(docstring: str) -> str:
    """The docstring with the commands in it as fenced blocks."""
    parts = []
    for paragraph in docstring.split("\n\n"):
        lines = [line.strip() for line in paragraph.splitlines()]
        is_command = lines[0].startswith(("python ", "ray job "))
        parts.append("\n".join(["```bash", *lines, "```"]) if is_command else paragraph)
    return "\n\n".join(parts)
