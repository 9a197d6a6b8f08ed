"""The reference of the jobs, from what each answers to `--help`."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import runpy
import sys
from functools import cache
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[3]
_INTRODUCTION = """# Jobs

Generated from the scripts in `jobs/`, `serve/app.py` and `serve/keys.py`: their docstrings and their `--help`.

Every job shows on stderr how far it is, a bar on a terminal and else a line a minute, and prints one JSON object as the
last line of stdout. What Ray, MLflow and other libraries say goes to a log file, which the job names first. Exit codes:
0 done, 1 failed, 2 invalid flag, setting or name. `--dry-run` resolves and checks the config and prints it, without training.
"""


@cache
def render_jobs() -> str:
    """The page of all jobs, one section a script."""
    scripts = [
        *sorted((ROOT / "jobs").glob("[!_]*.py")),
        ROOT / "serve" / "app.py",
        ROOT / "serve" / "keys.py",
    ]
    return "\n".join([_INTRODUCTION, *map(_render_job, scripts)])


def _render_job(script: Path) -> str:
    name = str(script.relative_to(ROOT))
    docstring = ast.get_docstring(ast.parse(script.read_text())) or ""
    rows = ["| flag | meaning |", "|---|---|"]
    for flag, value, meaning in parse_help(help_of(name)):
        # A bar within a code span does not end the cell.
        shown = f"{flag} {value}".rstrip()
        rows.append(f"| `{shown}` | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join([f"## `{name}`\n", f"{_with_code_blocks(docstring)}\n", *rows, ""])


def parse_help(text: str) -> list[tuple[str, str, str]]:
    """Each flag of a help text, what stands for its value, and its meaning.

    Raises:
        ValueError: a flag without a meaning, or no flag at all.
    """
    flags: list[list[str]] = []
    for line in text.splitlines():
        line = line.strip("│ ")
        start = re.match(r"(?:-\w, )?(--[\w-]+)(?:[ =](\S.*?))?(?:\s{2,}(.*))?$", line)
        if start:
            flags.append([start[1], start[2] or "", start[3] or ""])
        elif flags and line and line[0] not in "╭╰":
            flags[-1][2] += f" {line}"
    found = [(flag, value, meaning.strip()) for flag, value, meaning in flags if flag != "--help"]
    missing = [flag for flag, _, meaning in found if not meaning]
    if missing or not found:
        raise ValueError(f"the help text explains no flag {', '.join(missing)}:\n{text}")
    return found


def help_of(name: str) -> str:
    """What the script answers to `--help`; it runs in this process, which has imported its libraries once."""
    output = io.StringIO()
    argv = [str(ROOT / name), "--help"]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "path", [str(Path(argv[0]).parent), *sys.path]),
        mock.patch.dict(os.environ, {"COLUMNS": "120"}),
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
        # In a docstring that is not raw, a backslash at a line's end has joined both lines.
        lines = [part for line in lines for part in re.sub(r"\s{4,}", " \\\n    ", line).split("\n")]
        is_command = lines[0].startswith(("python ", "ray job "))
        parts.append("\n".join(["```bash", *lines, "```"]) if is_command else paragraph)
    return "\n\n".join(parts)
