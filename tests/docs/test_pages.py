"""What README.md and the site's pages show exists: commands with their flags, requests, Python, files."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import reference_http
import reference_jobs

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [
    README,
    *sorted((ROOT / "infra" / "docs").rglob("*.md")),
    *sorted((ROOT / "infra" / "decisions").glob("*.md")),
    ROOT / "platform" / "glioray" / "nets" / "README.md",
    ROOT / "platform" / "glioray" / "losses" / "README.md",
]
LANGUAGES = {"bash", "json", "python", "text", "toml", "yaml"}
# Jobs whose --dry-run needs neither data nor a model: their settings, networks and recipes are resolved.
RESOLVED = {"train_unet", "tune_unet", "train_gan", "tune_gan", "compare", "compare_gan"}
DOWNLOADED = {"pip"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: its file, relative to the repository.
        language: first word of the fence, or first class of ```{.python .cluster}.
        marks: further classes; Python marked "cluster" (it needs one) or "slow" is compiled and not run.
        text: the content.
    """

    page: str
    language: str
    marks: frozenset[str]
    text: str


def _blocks() -> Iterator[Block]:
    for path in PAGES:
        text = path.read_text()
        for indent, fence, body in re.findall(
            r"^( *)```([^\n]*)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL
        ):
            words = re.findall(r"[\w-]+", fence)
            lines = "\n".join(line.removeprefix(indent) for line in body.splitlines())
            yield Block(
                page=str(path.relative_to(ROOT)),
                language=words[0] if words else "",
                marks=frozenset(words[1:]),
                text=lines,
            )


BLOCKS = list(_blocks())
COMMANDS = [
    (block.page, line.strip())
    for block in BLOCKS
    if block.language == "bash"
    for line in block.text.replace("\\\n", " ").splitlines()
    if line.strip() and not line.lstrip().startswith("#")
]
JOBS = sorted(
    {
        (page, re.sub(r"\s+", " ", found[1]))
        for page, line in COMMANDS
        if (found := re.search(r"(?:^|-- )(?:python |ray job submit )((?:jobs|serve)/.*)", line))
    }
)


def _id(case: tuple[str, str]) -> str:
    return f"{Path(case[0]).stem}: {case[1][:60]}"


def test_every_block_says_its_language() -> None:
    unknown = [(block.page, block.language) for block in BLOCKS if block.language not in LANGUAGES]
    assert unknown == []


def test_shell_parses() -> None:
    for block in BLOCKS:
        if block.language == "bash":
            done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
            assert done.returncode == 0, f"{block.page}: {done.stderr}\n{block.text}"


def test_python_compiles() -> None:
    for block in BLOCKS:
        if block.language == "python":
            ast.parse(block.text, filename=block.page)


def test_data_parses() -> None:
    yaml = pytest.importorskip("yaml")
    for block in BLOCKS:
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            list(yaml.safe_load_all(block.text))


def test_every_command_is_of_a_known_kind() -> None:
    kinds = {
        "aws",
        "bash",
        "curl",
        "docker",
        "export",
        "git",
        "kubectl",
        "mkdocs",
        "mlflow",
        "pip",
        "python",
        "ray",
    }
    kinds |= {"sbatch", "source"}
    unknown = [(page, line) for page, line in COMMANDS if shlex.split(line, comments=True)[0] not in kinds]
    assert unknown == []


@cache
def _help(script: str) -> str:
    return reference_jobs.help_of(script)


@pytest.mark.parametrize(("page", "command"), JOBS, ids=map(_id, JOBS))
def test_a_job_has_the_flags_and_resolves(page: str, command: str) -> None:
    script, *arguments = shlex.split(command, comments=True)
    for word in arguments:
        if word.startswith("--"):
            flag = word.partition("=")[0]
            assert re.search(rf"{flag}\b", _help(script)), f"{page}: {script} has no {flag}"
    if Path(script).stem in RESOLVED:
        job = runpy.run_path(str(ROOT / script))["job"]
        answer: dict[str, Any] = job.answer([*arguments, "--dry-run"])
        assert answer["config"]["recipe"]


def test_scripts_exist_and_verbs_of_the_local_one() -> None:
    done = subprocess.run(["bash", "infra/local.sh", "--help"], cwd=ROOT, capture_output=True, text=True)
    for page, line in COMMANDS:
        words = shlex.split(line, comments=True)
        if words[0] in ("bash", "sbatch"):
            assert (ROOT / words[1]).is_file(), f"{page}: {line}"
        if words[:2] == ["bash", "infra/local.sh"]:
            assert re.search(rf"^  {words[2]}\b", done.stdout, re.MULTILINE), f"{page}: {line}"


def test_requests_fit_the_endpoint() -> None:
    description = reference_http.describe_endpoint()
    # Not those to MLflow's own server.
    requests = [
        (page, line) for page, line in COMMANDS if line.startswith("curl ") and "/invocations" not in line
    ]
    assert requests
    for page, line in requests:
        words = shlex.split(line)
        path = re.sub(r"https?://[^/]+", "", words[-1])
        forms = [words[n + 1] for n, word in enumerate(words) if word == "-F"]
        operation = description["paths"][path]["post" if forms or "-d" in words else "get"]
        if forms:
            content = operation["requestBody"]["content"]["multipart/form-data"]
            fields = reference_http.list_form_fields(content, description["components"]["schemas"])
            assert {form.partition("=")[0] for form in forms} <= set(fields), f"{page}: {line}"


def test_files_that_are_named_are_there() -> None:
    missing = []
    for path in PAGES:
        text = path.read_text()
        named = {
            ROOT / name for name in re.findall(r"`((?:platform|jobs|serve|infra|tests)/[\w/.-]*)`", text)
        }
        if path == README:
            named |= {ROOT / name for name in re.findall(r"\]\(([^)#:]+)\)", text)}
        missing += [(path.name, str(name)) for name in sorted(named) if not name.exists()]
    assert missing == []


def test_the_readme_is_short_and_says_where_this_ends() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    assert "Research use only" in text.split("##")[0]


def test_the_readmes_table_names_every_job_with_flags_that_it_has() -> None:
    jobs = {path.name for path in (ROOT / "jobs").glob("[!_]*.py")}
    rows = dict(re.findall(r"^\| `jobs/(\w+\.py)([^`]*)`", README.read_text(), re.MULTILINE))
    assert set(rows) == jobs
    for name, flags in rows.items():
        for flag in re.findall(r"--[\w-]+", flags):
            assert flag in _help(f"jobs/{name}"), f"{name} has no {flag}"
