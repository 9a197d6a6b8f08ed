"""When a case counts as done: its outputs are there, and the same work made them of the same input."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import glioray
from glioray.cases.casefiles import CaseFiles
from glioray.engine.case_records import CaseRecords, describe_inputs
from glioray.storage import open_storage

WORK: dict[str, Any] = {"model": "ab" * 32, "labels": None, "uncertainty": True, "resample": False}
NAMES = ("A_uncertainty.nii.gz", "A_seg.nii.gz")


def make_files(case_id: str, **more: Any) -> CaseFiles:
    return CaseFiles(
        case_id=case_id, patient_id="P", layout="brats2021", images={"t1": f"{case_id}_t1.nii"}, **more
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for case_id in "AB":
        (tmp_path / "data" / f"{case_id}_t1.nii").write_bytes(b"image")
    return tmp_path / "data"


def inputs_of(data: Path, **more: Any) -> dict[str, str]:
    return describe_inputs(open_storage(data), [make_files(case_id, **more) for case_id in "AB"])


@pytest.fixture
def out(tmp_path: Path, data: Path) -> Path:
    """Where an earlier job did case A."""
    storage = open_storage(tmp_path / "out")
    records = CaseRecords(storage.uri, WORK)
    records.begin("A")
    for name in NAMES:
        storage.write(name, b"output")
    records.finish("A", inputs_of(data)["A"], dict.fromkeys(NAMES, 6), ["a note"])
    return tmp_path / "out"


def find_done(out: Path, data: Path, **work: Any) -> dict[str, Any]:
    return CaseRecords(str(out), WORK | work).find_done(inputs_of(data))


def test_a_place_that_is_not_there_holds_nothing(tmp_path: Path, data: Path):
    assert find_done(tmp_path / "nowhere", data) == {}


def test_what_is_done_is_found_again(out: Path, data: Path):
    assert find_done(out, data) == {"A": ["a note"]}


@pytest.mark.parametrize(
    "other", [{"model": "cd" * 32}, {"labels": "brats-et3"}, {"uncertainty": False}, {"resample": True}]
)
def test_other_work_is_done_again(out: Path, data: Path, other: dict[str, Any]):
    assert find_done(out, data, **other) == {}


def test_another_version_does_it_again(out: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(glioray, "__version__", "99")
    assert find_done(out, data) == {}


def test_a_file_that_changed_is_done_again_also_in_its_size_and_time(out: Path, data: Path):
    before = (data / "A_t1.nii").stat()
    (data / "A_t1.nii").write_bytes(b"other")
    os.utime(data / "A_t1.nii", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert find_done(out, data) == {}


def test_what_is_stated_of_the_files_counts(out: Path, data: Path):
    records = CaseRecords(str(out), WORK)
    assert records.find_done(inputs_of(data, declared="brats-et3")) == {}
    assert records.find_done(inputs_of(data, mask="A_seg.nii")) == {}


@pytest.mark.parametrize("name", NAMES)
def test_an_output_that_is_gone_or_cut_short_is_done_again(out: Path, data: Path, name: str):
    (out / name).write_bytes(b"out")
    assert find_done(out, data) == {}
    (out / name).unlink()
    assert find_done(out, data) == {}


def test_outputs_that_another_job_began_to_replace_are_done_again(out: Path, data: Path):
    other = CaseRecords(str(out), WORK | {"model": "cd" * 32})
    other.begin("A")
    open_storage(out).write("A_seg.nii.gz", b"elsewh")
    assert find_done(out, data) == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"work": {}}', "\x00"])
def test_a_damaged_record_is_none(out: Path, data: Path, text: str):
    (record,) = (out / ".glioray").iterdir()
    assert json.loads(record.read_text())["work"]["model"] == WORK["model"]
    record.write_text(text)
    assert find_done(out, data) == {}


def test_a_folder_that_was_moved_keeps_what_is_done(out: Path, data: Path, tmp_path: Path):
    out.rename(tmp_path / "moved")
    assert find_done(tmp_path / "moved", data) == {"A": ["a note"]}
