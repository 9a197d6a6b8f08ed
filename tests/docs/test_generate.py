"""The pages that the site makes from the code, and what it refuses to load."""

from __future__ import annotations

import re
from pathlib import Path

import pages
import pytest
import reference_api
import reference_http
import reference_jobs
import reference_recipes
import reference_settings

import glioray
from glioray.api import requests
from glioray.config import list_settings
from glioray.tasks import TASKS, load_task


def test_every_setting_is_documented_with_its_default_and_what_is_allowed() -> None:
    text = reference_settings.render_settings()
    shown = {
        (name, setting.path.removeprefix(f"{group.names[0]}."), setting.allowed)
        for group in reference_settings.list_groups()
        for name in group.names
        for setting in group.settings
    }
    for task in TASKS:
        for setting in list_settings(load_task(task).config_type(recipe="")):
            name, _, own = setting.path.rpartition(".")
            assert (name, own, setting.allowed) in shown, setting.path
            assert setting.description
            assert f" | {setting.description} *" in text
    assert "| `optim.lr` | `0.001` | Largest learning rate. *A number above 0 and at most 10.* |" in text


def test_every_recipe_is_listed_with_what_it_changes() -> None:
    text = reference_recipes.render_recipes()
    for name in TASKS:
        assert f"## {name}" in text
        assert all(f"### `{recipe}`" in text for recipe in load_task(name).recipes)
    assert "| `optim.lr` | `0.005` | `0.001` |" in text


def test_every_route_is_listed_with_its_fields() -> None:
    text = reference_http.render_http()
    for route in ("POST /v1/segment", "POST /v1/superresolve", "GET /v1/models", "GET /readyz"):
        assert f"## `{route}`" in text
    assert re.search(r"^\| `blend` \| number, 0 to 1 \|", text, re.MULTILINE)
    assert "### Report" in text


def test_every_decision_is_listed_with_its_question(repo: Path) -> None:
    text = pages.render_decisions()
    for path in (repo / "infra" / "decisions").glob("*.md"):
        assert re.search(rf"\({path.name}\)\*\* \S", text), path.name


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<script src="https://cdn.example/a.js"></script>', ["https://cdn.example/a.js"]),
        ('<link rel="stylesheet" href="//fonts.example/a.css">', ["//fonts.example/a.css"]),
        ('<img src="http://example/a.png">', ["http://example/a.png"]),
        ('<a href="https://example">elsewhere</a><img src="a.png"><link rel="stylesheet" href="a.css">', []),
    ],
)
def test_what_a_page_would_load_from_elsewhere_is_found(html: str, found: list[str]) -> None:
    assert pages.find_external(html) == found


@pytest.mark.parametrize(
    "text",
    [
        # As argparse and as cyclopts print it.
        "usage: x\n\noptions:\n  -h, --help   show this\n  --data URI   folder or\n               bucket\n"
        "  --a-long-name N\n               how many\n  --dry-run    print only\n",
        "Usage: x\n\n╭─ Flags ──╮\n│ --data URI       folder or     │\n│                  bucket        │\n"
        "│ --a-long-name N  how many      │\n│ --dry-run        print only    │\n╰──────╯\n",
    ],
)
def test_a_help_text_is_read_as_flags(text: str) -> None:
    assert reference_jobs.parse_help(text) == [
        ("--data", "URI", "folder or bucket"),
        ("--a-long-name", "N", "how many"),
        ("--dry-run", "", "print only"),
    ]


def test_a_flag_without_a_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="explains no flag --data"):
        reference_jobs.parse_help("  --data URI\n  --out URI  a folder\n")


def test_every_job_is_listed_with_its_flags(repo: Path) -> None:
    text = reference_jobs.render_jobs()
    for path in (repo / "jobs").glob("[!_]*.py"):
        assert f"## `jobs/{path.name}`" in text
    assert "| `--data URI` | folder, s3://bucket/prefix" in text
    assert text.count("| `--dry-run` | ") == len(list((repo / "jobs").glob("[!_]*.py")))


def test_the_library_is_explained_with_every_argument() -> None:
    # The errors have a section of their own.
    assert reference_api.documented() == set(glioray.__all__) - {"GliorayError", "__version__"}
    text = reference_api.render_api()
    for verb in ("prepare", "train", "tune", "compare", "evaluate", "predict", "promote"):
        section = text.partition(f"### `glioray.{verb}`\n")[2].partition("\n### ")[0]
        request_type = getattr(requests, f"{verb.title()}Request")
        for name, field in request_type.model_fields.items():
            assert f"| `{name}` |" in section
            assert field.description[1:] in section
        assert f"{verb.title()}Result" in section
        assert "- `UsageError`: " in section
