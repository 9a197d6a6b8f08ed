"""The page's files: how they are served, that they ask nobody else for anything, and the examples."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serve.page
from fastapi.testclient import TestClient
from PIL import Image
from serve.page import WEB, Examples, read_files

from glioray.cases.load import load_case_from_bytes

OWN = sorted(path.name for path in WEB.iterdir() if not path.name.startswith("niivue."))


def test_the_page_and_its_files_carry_strict_headers(client: TestClient) -> None:
    answers = {name: client.get(f"/web/{name}") for name in read_files()}
    answers["/"] = client.get("/", headers={"Accept": "text/html"})
    kinds = {
        ".css": "text/css; charset=utf-8",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".svg": "image/svg+xml",
        ".txt": "text/plain; charset=utf-8",
        "": "text/html; charset=utf-8",
    }
    for name, answer in answers.items():
        assert (answer.status_code, answer.headers["content-type"]) == (200, kinds[Path(name).suffix]), name
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert (policy["script-src"], policy["style-src"], policy["connect-src"]) == ("'self'",) * 3
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert answers["/"].content == answers["index.html"].content == (WEB / "index.html").read_bytes()


def test_a_file_is_sent_once_and_compressed(client: TestClient) -> None:
    first = client.get("/web/niivue.umd.js", headers={"Accept-Encoding": "gzip"})
    assert first.headers["content-encoding"] == "gzip"
    assert int(first.headers["content-length"]) < len(first.content) / 2
    plain = client.get("/web/niivue.umd.js", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == first.content
    again = client.get("/web/niivue.umd.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/web/niivue.umd.js", headers={"If-None-Match": 'W/"0"'}).status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "..%2fpage.py", "%2e%2e/page.py", "..%5cpage.py"])
def test_no_other_file_is_served(client: TestClient, name: str) -> None:
    answer = client.get(f"/web/{name}")
    assert answer.status_code == 404
    assert "def " not in answer.text


@pytest.mark.parametrize("name", OWN)
def test_no_file_refers_to_another_host(name: str) -> None:
    text = (WEB / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"(?:https?:|wss?:)?//[A-Za-z0-9]+\.[A-Za-z]", text)
    assert not re.search(r"@import|\beval\(|new Function", text)


def test_the_page_has_nothing_inline_and_names_files_that_exist(client: TestClient) -> None:
    tags: list[tuple[str, dict[str, str | None]]] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            tags.append((tag, dict(attrs)))

    Tags().feed((WEB / "index.html").read_text(encoding="utf-8"))
    assert "style" not in [tag for tag, _ in tags]
    named = []
    for tag, attributes in tags:
        assert not [name for name in attributes if name == "style" or name.startswith("on")], tag
        assert tag != "script" or attributes["src"], "a script must come from a file"
        named += [attributes[name] for name in ("src", "href") if attributes.get(name)]
    paths = sorted({path for path in named if path and not path.startswith("#")})
    assert {"web/app.js", "web/style.css", "web/icon.svg"} < set(paths)
    for path in paths:
        assert client.get(f"/{path}").status_code == 200, path
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_modules_import_files_that_exist() -> None:
    for path in WEB.glob("*.js"):
        if path.name in OWN:
            for name in re.findall(r"(?:from |import\(|import )\"\./([^\"]+)\"", path.read_text()):
                assert (WEB / name).is_file(), f"{path.name} imports {name}"


def test_colours_of_labels_are_those_of_the_figures() -> None:
    from glioray.cases.conventions import CONVENTIONS
    from glioray.reports.images import LABEL_COLOURS

    script = (WEB / "segment.js").read_text(encoding="utf-8")
    found = dict(re.findall(r"(\w+): \{ name: \"[^\"]+\", colour: \"(#\w{6})\" \}", script))
    assert found == LABEL_COLOURS
    block = script[script.index("const NUMBERS") : script.index("const IMAGE_FRAMES")]
    for name, numbers in re.findall(r"\"?([a-z0-9-]+)\"?: \{ ([^}]+) \}", block):
        parts = {int(number): part for number, part in re.findall(r"(\d): \"(\w+)\"", numbers)}
        assert parts == CONVENTIONS[name].parts
    page = (WEB / "index.html").read_text(encoding="utf-8")
    offered = set(re.findall(r"<option value=\"([a-z0-9-]*\d)\">|<option value=\"(msd)\">", page))
    assert {first or second for first, second in offered} <= set(CONVENTIONS)


def test_the_example_case_has_the_voxels_of_the_model(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.page, "_HEAD_MM", (48, 48, 40))
    answer = client.get("/web/example.zip")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        parts = {
            name.rpartition("_")[2].removesuffix(".nii.gz"): archive.read(name) for name in archive.namelist()
        }
    case = load_case_from_bytes(
        {"t1": parts["t1"], "t1c": parts["t1ce"], "t2": parts["t2"], "flair": parts["flair"]}
    )
    assert case.spacing_mm == pytest.approx((1, 1, 1))
    assert case.images.shape == (4, 48, 48, 40)
    sent = {"t1": parts["t1"], "t1c": parts["t1ce"], "t2": parts["t2"], "flair": parts["flair"]}
    assert client.post("/v1/segment", files=sent).status_code == 200
    assert client.get("/web/example.zip").content == answer.content


def test_the_example_image_is_as_coarse_as_the_model_expects(
    make_client: Callable[..., TestClient],
    make_superres_watch: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serve.page, "_HEAD_MM", (48, 64, 40))
    client = make_client(make_superres_watch())
    answer = client.get("/web/example.png")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    scale = client.get("/v1/models").json()["models"][1]["scale"]
    picture = Image.open(io.BytesIO(answer.content))
    assert (picture.mode, picture.size) == ("L", (round(48 / scale), round(64 / scale)))
    assert np.asarray(picture).max() > 100
    made = client.post("/v1/superresolve", files={"image": ("a.png", answer.content)})
    assert Image.open(io.BytesIO(made.content)).size == (48, 64)


def test_there_is_no_example_image_without_its_model(client: TestClient) -> None:
    answer = client.get("/web/example.png")
    assert answer.status_code == 503
    assert "superres" in answer.json()["detail"]


async def _make_twice(examples: Examples) -> tuple[bytes, bytes]:
    import asyncio

    first, second = await asyncio.gather(*(examples.case((2.0, 2.0, 2.0)) for _ in range(2)))
    return first, second


def test_two_readers_wait_for_one_example(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    made = []

    def make(edge_mm: float) -> dict[str, bytes]:
        made.append(edge_mm)
        return {"case/case_t1.nii.gz": b"data"}

    monkeypatch.setattr(serve.page, "_make_case", make)
    first, second = asyncio.run(_make_twice(Examples()))
    assert first == second
    assert made == [pytest.approx(2.0)]
