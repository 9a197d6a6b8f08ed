"""What `--data` stands for where a mask is not asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from glioray.api.data import find_cases
from glioray.cases.layouts import discover_cases
from glioray.cases.manifest import build_manifest, check_case
from glioray.cases.phantom import write_phantoms
from glioray.errors import DataError
from glioray.storage import open_storage


def test_cases_are_those_that_lie_there_or_that_a_manifest_names(tmp_path: Path):
    data, out = open_storage(tmp_path / "data"), open_storage(tmp_path / "out")
    case_ids = write_phantoms(data, num_cases=2, shape=(32, 32, 16))
    last = data.read(f"{case_ids[1]}/{case_ids[1]}_seg.nii.gz")
    data.delete(f"{case_ids[1]}/{case_ids[1]}_seg.nii.gz")
    there = find_cases(data.uri)
    assert there == (data.uri, *discover_cases(data))
    assert [files.case_id for files in there[1]] == case_ids

    manifest = build_manifest(data.uri, [check_case(data, files) for files in there[1]])
    manifest.save(out)
    for uri in (out.uri, f"{out.uri}/manifest.json"):
        root, cases, problems = find_cases(uri)
        assert (root, problems) == (data.uri, [])
        # The numbers of a mask are those that the whole collection shows.
        assert [(files.case_id, files.declared) for files in cases] == [
            (case_ids[0], "brats-et4"),
            (case_ids[1], None),
        ]

    # A manifest beside cases does not hide those that came later.
    manifest.save(data)
    data.write("BraTS2021_91000/BraTS2021_91000_seg.nii.gz", last)
    for name in ("t1", "t1ce", "t2", "flair"):
        later = data.read(f"{case_ids[0]}/{case_ids[0]}_{name}.nii.gz")
        data.write(f"BraTS2021_91000/BraTS2021_91000_{name}.nii.gz", later)
    root, cases, _ = find_cases(data.uri)
    assert (root, [files.case_id for files in cases]) == (data.uri, [*case_ids, "BraTS2021_91000"])


def test_where_there_is_none(tmp_path: Path):
    with pytest.raises(DataError, match="holds no case; BraTS 2017"):
        find_cases(str(tmp_path))
    build_manifest(str(tmp_path), []).save(open_storage(tmp_path / "out"))
    with pytest.raises(DataError, match="names no case that can be used"):
        find_cases(str(tmp_path / "out"))
