"""What the image, the pins, the scripts and CI name exists."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from glioray.tasks.superres.extractors import _WHEEL_INSTALL
from pins import PINS

ROOT = Path(__file__).resolve().parents[3]
_INSTALLED_EXTRAS = ("dev", "docs", "prepare", "panoptica")
"""Extras that `infra/local.sh test` installs."""


def test_the_image_copies_what_exists() -> None:
    dockerfile = (ROOT / "infra" / "docker" / "Dockerfile").read_text()
    copied = [part for line in re.findall(r"^COPY (.+)$", dockerfile, re.M) for part in line.split()[:-1]]
    assert copied
    assert all((ROOT / part).is_file() for part in copied)
    python = re.search(r"^ARG PYTHON=(\S+)", dockerfile, re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert python is not None
    assert Requirement(f"python{project['requires-python']}").specifier.contains(python[1])
    # Every node of a cluster asks for a token, whoever starts it.
    assert "RAY_AUTH_MODE=token" in dockerfile


def test_every_requirement_is_pinned_within_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {
        *map(
            Requirement,
            [*project["dependencies"], *(item for name in _INSTALLED_EXTRAS for item in extras[name])],
        )
    }
    for requirement in map(Requirement, extras["postgres"]):  # in the images alone
        assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])
    asked: set[Requirement] = set()
    # And what these ask for in turn: without a pin, an installation of tomorrow is another one.
    while wanted:
        requirement = wanted.pop()
        asked.add(requirement)
        name = canonicalize_name(requirement.name)
        if name == "pip":
            continue  # the virtual environment's own
        assert name in PINS, f"infra/constraints.txt has no {requirement}"
        assert requirement.specifier.contains(PINS[name]), (
            f"{requirement} but infra/constraints.txt has {PINS[name]}"
        )
        if name == "torch":
            continue  # its CUDA builds ask for CUDA's own packages
        for further in map(Requirement, importlib.metadata.requires(requirement.name) or []):
            marks = [{"extra": extra} for extra in (*requirement.extras, "")]
            if further.marker is None or any(map(further.marker.evaluate, marks)):
                wanted |= {further} - asked
    assert not any(Version(version).local for version in PINS.values())


def test_what_comes_without_its_requirements_is_pinned_and_installed_everywhere() -> None:
    files = ("infra/no-deps.txt", "infra/no-deps-panoptica.txt")
    local = (ROOT / "infra" / "local.sh").read_text()
    install = (ROOT / "infra" / "docs" / "start" / "install.md").read_text()
    image = (ROOT / "infra" / "docker" / "Dockerfile").read_text()
    wanted = []
    for file in files:
        lines = (ROOT / file).read_text().splitlines()
        wanted += [line for line in lines if not line.startswith("#")]
        assert f"--no-deps -r {file}" in local
        assert f"--no-deps -r {file}" in install
        assert f"-r {Path(file).name}" in image
    assert len(wanted) >= len(files)
    for line in wanted:
        requirement = Requirement(line)
        assert [item.operator for item in requirement.specifier] == ["=="]
        # Where it is pinned too, an installation by the constraints would bring what it asks for.
        assert canonicalize_name(requirement.name) not in PINS
    assert _WHEEL_INSTALL.split()[-1] in wanted


@pytest.mark.parametrize(
    "path",
    [".ci/run", "infra/local.sh", *sorted(f"jobs/{path.name}" for path in (ROOT / "jobs").glob("[!_]*.py"))],
)
def test_scripts_can_be_executed(path: str) -> None:
    assert os.access(ROOT / path, os.X_OK)
    first = (ROOT / path).read_text().splitlines()[0]
    assert first == ("#!/usr/bin/env python3" if path.endswith(".py") else "#!/usr/bin/env bash")


def test_shell_scripts_parse() -> None:
    for path in (".ci/run", "infra/local.sh", "infra/ray.sh"):
        subprocess.run(["bash", "-n", path], cwd=ROOT, check=True)


def test_ci_runs_the_readmes_test_command() -> None:
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec bash infra/local.sh test"
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    steps = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert "bash .ci/run" in steps


def test_jobs_leave_the_environment_and_the_history_behind() -> None:
    ignored = (ROOT / ".rayignore").read_text().splitlines()
    assert {".git/", ".venv/", ".glioray/", "tests/"} <= set(ignored)
    assert not {"jobs/", "platform/", "serve/"} & set(ignored)
