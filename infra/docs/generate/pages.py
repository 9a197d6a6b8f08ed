"""The pages of the site that are not written by hand: mkdocs calls `on_files` once a build.

Reference pages are made from the code: the jobs' own `--help`, the recipes, the config types and the endpoint's
OpenAPI description. Pages that live beside what they describe (the decisions, the tables of networks and losses)
are shown where they are.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from reference_api import render_api
from reference_http import render_http
from reference_jobs import render_jobs
from reference_recipes import render_recipes
from reference_settings import render_settings

ROOT = Path(__file__).resolve().parents[3]
DECISIONS = sorted((ROOT / "infra" / "decisions").glob("*.md"))

SHOWN = {
    "overview.png": ROOT / "infra" / "overview.png",
    "reference/networks.md": ROOT / "platform" / "glioray" / "nets" / "README.md",
    "reference/losses.md": ROOT / "platform" / "glioray" / "losses" / "README.md",
    **{f"explanation/decisions/{path.name}": path for path in DECISIONS},
}
"""Files shown at a place of the site, by that place."""

GENERATED = {
    "reference/api.md": render_api,
    "reference/http.md": render_http,
    "reference/jobs.md": render_jobs,
    "reference/recipes.md": render_recipes,
    "reference/settings.md": render_settings,
}
"""Functions that return a page's Markdown, by its place."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of `SHOWN` and `GENERATED`, and a list of the decisions."""
    for place, path in SHOWN.items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    for place, render in GENERATED.items():
        files.append(File.generated(config, place, content=render()))
    files.append(File.generated(config, "explanation/decisions/index.md", content=render_decisions()))
    return files


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """The page as it is.

    Raises:
        PluginError: a browser would load something from elsewhere to show it.
    """
    if found := find_external(output):
        raise PluginError(f"{page.file.src_uri} loads {found[0]}; the site must load its own files only")
    return output


def find_external(html: str) -> list[str]:
    """Addresses that a browser would load from elsewhere to show the page; links that a reader follows are fine."""
    finder = _Loaded()
    finder.feed(html)
    return [address for address in finder.addresses if re.match(r"(https?:)?//", address)]


class _Loaded(HTMLParser):
    """Collects the addresses of scripts, stylesheets, pictures and frames."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        wanted = ["src", "srcset", "data"]
        # A canonical address is metadata; nothing loads it.
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            wanted.append("href")
        self.addresses += [value for name in wanted if (value := values.get(name))]


def render_decisions() -> str:
    """The list of the decisions, each with the question that it answers."""
    lines = ["# Decisions", "", "Why things are as they are, one page a decision.", ""]
    for path in DECISIONS:
        text = path.read_text()
        title = text.partition("\n")[0].removeprefix("# ").partition(". ")[2]
        found = re.search(r"\*\*Question\.\*\* (.+?)\n\n", text, re.DOTALL)
        question = "" if found is None else " ".join(found[1].split())
        lines += [f"- **[{title}]({path.name})** {question}".rstrip()]
    return "\n".join(lines) + "\n"
