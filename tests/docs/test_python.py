"""The Python that the pages show is run, on real cases if there are some, else on phantoms."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path for path in (ROOT / "infra" / "docs").rglob("*.md") if "```python\n" in path.read_text())
# A run of the gate is to end soon; two minutes and ten cases are for the reader.
MINUTES, NUM_CASES = "0.15", 3


def read_python(page: Path) -> str:
    """The page's Python blocks, one after the other; those marked .cluster or .slow are only compiled."""
    blocks: list[str] = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return "\n".join(blocks)


@pytest.fixture
def data(phantom_data: Path, tmp_path: Path) -> Path:
    """A folder of a few labelled cases: real ones where GLIORAY_REAL_DATA names some."""
    real = os.environ.get("GLIORAY_REAL_DATA")
    if not real:
        return phantom_data
    folder = tmp_path / "cases"
    folder.mkdir()
    cases = sorted(path for path in (Path(real).resolve() / "brats2021").iterdir() if path.is_dir())
    for case in cases[-NUM_CASES:]:
        (folder / case.name).symlink_to(case)
    return folder


@pytest.mark.e2e
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(page: Path, data: Path, tmp_path: Path) -> None:
    # In one pass: the folder of real cases may itself have "/data/" in its path.
    places = {"/data/brats": str(data), "/data/": f"{tmp_path}/"}
    code = re.sub("/data/brats|/data/", lambda match: places[match[0]], read_python(page))
    case = sorted(path.name for path in data.iterdir() if path.is_dir())[-1]
    code = re.sub(r"minutes=[\d.]+", f"minutes={MINUTES}", code.replace("BraTS2021_01485", case))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "platform"),
        "GLIORAY_CACHE": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, done.stderr
    if page.stem == "first-model":
        assert "voxels of tumour" in done.stdout
        assert re.search(r"^wt Dice [01]\.\d{3}, HD95 [\d.]+ mm$", done.stdout, re.MULTILINE)
