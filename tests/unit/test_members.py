"""What `--model` stands for where several are joined."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glioray.api.models import resolve_members
from glioray.errors import ModelError, UsageError


def _run(folder: Path, *kept: str) -> str:
    folder.mkdir()
    pointer = {"checkpoint": kept[-1], "kept": list(kept)}
    (folder / "latest.json").write_text(json.dumps(pointer))
    return str(folder)


def test_folders_are_themselves_or_their_kept_checkpoints(tmp_path: Path):
    runs = [_run(tmp_path / "a", "checkpoints/1", "checkpoints/2"), _run(tmp_path / "b", "checkpoints/9")]
    assert resolve_members(runs, checkpoints=False) == runs
    assert resolve_members(runs, checkpoints=True) == [
        f"{tmp_path}/a/checkpoints/1",
        f"{tmp_path}/a/checkpoints/2",
        f"{tmp_path}/b/checkpoints/9",
    ]


def test_a_run_from_before_several_were_kept_has_one(tmp_path: Path):
    (tmp_path / "latest.json").write_text('{"checkpoint": "checkpoints/3"}')
    assert resolve_members([str(tmp_path)], checkpoints=True) == [f"{tmp_path}/checkpoints/3"]


def test_what_cannot_be_a_member(tmp_path: Path):
    run = _run(tmp_path / "a", "checkpoints/1")
    with pytest.raises(UsageError, match="no model given; give --model once for each member"):
        resolve_members([], checkpoints=False)
    for checkpoints in (False, True):
        with pytest.raises(UsageError, match="is given twice; give each member once"):
            resolve_members([run, run], checkpoints=checkpoints)
    for same in (f"{run}/", f"file://{run}", f"{tmp_path}/./a"):
        with pytest.raises(UsageError, match="is given twice; give each member once"):
            resolve_members([run, same], checkpoints=False)
    with pytest.raises(UsageError, match="'runs:/1/model' is not a run's folder, where checkpoints lie"):
        resolve_members([run, "runs:/1/model"], checkpoints=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ModelError, match="empty' holds no checkpoint; give the folder of a run that saved some"
    ):
        resolve_members([str(tmp_path / "empty")], checkpoints=True)
