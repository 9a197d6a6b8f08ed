"""What README.md and the pages of infra/docs show exists: commands with their flags, files, pictures."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) + pages()
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith(("export ", "source "))]


def pages() -> list[str]:
    """The jobs that the pages beside it show."""
    texts = [path.read_text().replace("\\\n", " ") for path in sorted((ROOT / "infra" / "docs").glob("*.md"))]
    return [line for text in texts for line in re.findall(r"^python jobs/.*", text, re.MULTILINE)]


HelpOf = Callable[[str], str]


@pytest.mark.parametrize("command", commands())
def test_a_command_exists_with_its_flags(command: str, help_of: HelpOf):
    words = shlex.split(command, comments=True)
    if words[0] == "bash":
        verbs = subprocess.run(["bash", words[1], "--help"], cwd=ROOT, capture_output=True, text=True).stdout
        assert re.search(rf"^  {words[2]}\b", verbs, re.MULTILINE), verbs
        return
    scripts = [word for word in words if word.endswith(".py")]
    if words[0] == "curl":
        app = (ROOT / "serve").rglob("*.py")
        path = re.sub(r"https?://[^/]+", "", words[-1])
        assert any(f'"{path}"' in file.read_text() for file in app), path
        return
    assert words[0] in ("python", "ray"), command
    assert len(scripts) == 1, command
    flags = [word for word in words[words.index(scripts[0]) :] if word.startswith("--")]
    text = help_of(scripts[0])
    for flag in flags:
        assert re.search(rf"{flag}\b", text), f"{scripts[0]} has no {flag}"


def test_the_table_names_every_job_with_flags_that_it_has(help_of: HelpOf):
    jobs = {path.name for path in (ROOT / "jobs").glob("*.py")}
    rows = dict(re.findall(r"^\| `jobs/(\w+\.py)([^`]*)`", TEXT, re.MULTILINE))
    assert set(rows) == jobs
    for name, flags in rows.items():
        for flag in re.findall(r"--[\w-]+", flags):
            assert flag in help_of(f"jobs/{name}"), f"{name} has no {flag}"


def test_files_that_are_named_are_there():
    named = set(re.findall(r"\]\(([^)#:]+)\)", TEXT))
    named |= set(re.findall(r"`((?:platform|jobs|serve|infra|tests)/[\w/.-]*)`", TEXT))
    missing = [name for name in sorted(named) if not (ROOT / name).exists()]
    assert missing == []


def test_a_clinician_is_told_where_this_ends():
    assert "Research use only" in TEXT.split("##")[0]
