"""Model packages out of folders: whole ones are fetched, broken ones refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from glioray.engine.on_mlflow.registry import fetch_package, log_model, resolve_version
from glioray.errors import ModelError, UsageError


def _package(folder: Path, note: str = "a") -> Path:
    folder.mkdir(parents=True)
    save_file({"w": torch.arange(6.0)}, folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps({"note": note}))
    return folder


def _note(folder: Path) -> str:
    return str(json.loads((folder / "model.json").read_text())["note"])


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_checkpoints_folder(tmp_path: Path, scheme: str):
    source = _package(tmp_path / "checkpoint")
    got = fetch_package(f"{scheme}{source}", tmp_path / "new" / "folder")
    assert sorted(file.name for file in got.iterdir()) == ["model.json", "model.safetensors"]
    assert (got / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_a_runs_storage_gives_its_latest_checkpoint(tmp_path: Path):
    for step, note in ((10, "old"), (20, "new")):
        _package(tmp_path / "run" / "checkpoints" / f"step-{step}", note)
    for step, note in ((20, "new"), (10, "old")):
        (tmp_path / "run" / "latest.json").write_text(json.dumps({"checkpoint": f"checkpoints/step-{step}"}))
        assert _note(fetch_package(str(tmp_path / "run"), tmp_path / "got")) == note


def test_a_truncated_package_is_told_and_leaves_the_one_that_is_there(tmp_path: Path):
    kept = _package(tmp_path / "got", "kept")
    broken = _package(tmp_path / "broken", "broken")
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[:-4])
    with pytest.raises(ModelError, match="is broken"):
        fetch_package(str(broken), kept)
    assert _note(kept) == "kept"


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
def test_a_description_that_is_no_json_object_is_told(tmp_path: Path, text: str):
    broken = _package(tmp_path / "broken")
    (broken / "model.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match=r"is broken|is empty"):
        fetch_package(str(broken), tmp_path / "got")


@pytest.mark.parametrize("latest", ["", "[]", '{"checkpoint": 3}', '{"step": 1}'])
def test_a_latest_that_names_nothing_is_told(tmp_path: Path, latest: str):
    (tmp_path / "latest.json").write_text(latest)
    with pytest.raises(ModelError, match="names no checkpoint"):
        fetch_package(str(tmp_path), tmp_path / "got")


def test_half_a_package_and_none_are_told(tmp_path: Path):
    (_package(tmp_path / "half") / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        fetch_package(str(tmp_path / "half"), tmp_path / "got")
    with pytest.raises(ModelError, match=r"neither model\.json nor latest\.json"):
        fetch_package(str(tmp_path), tmp_path / "got")


def test_other_uris_are_not_taken(tmp_path: Path):
    with pytest.raises(UsageError, match="has the scheme 'gs'"):
        fetch_package("gs://bucket/x", tmp_path)
    assert resolve_version("s3://bucket/run") == "s3://bucket/run"


def test_a_model_that_nobody_could_load_is_not_logged(tmp_path: Path):
    untouched: Any = None
    with pytest.raises(ModelError, match="is logged without net and files"):
        log_model(untouched, _package(tmp_path / "package"), None, torch.zeros(1, 4, 8, 8))
