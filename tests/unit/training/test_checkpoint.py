"""A checkpoint is there as a whole or not at all, and reading one runs nothing."""

from __future__ import annotations

import io
import json
import pickle
import threading
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from glioray.config import NetConfig
from glioray.engine.checkpoint import (
    LATEST,
    STATE_FILE,
    Checkpoint,
    Saver,
    fetch_model,
    kept_folders,
    latest_folder,
    load_state,
    save_checkpoint,
)
from glioray.errors import ModelError, StorageError
from glioray.storage import FileStorage, Storage, open_storage
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.package import ModelSpec, read_package


def _checkpoint(step: int) -> Checkpoint:
    net = NetConfig(options={"width": 2, "depth": 1})
    spec = ModelSpec(
        config=RunConfig(recipe="test", net=net),
        out_channels=4,
        spacing_mm=(1.0, 1.0, 1.0),
        manifest_hash="m",
        metrics={"dice_mean": step / 100},
    )
    torch.manual_seed(step)
    weights = spec.build().state_dict()
    return Checkpoint(step=step, spec=spec, weights=weights, state={"step": step, "t": torch.arange(step)})


class Failing(FileStorage):
    """A folder whose n-th write, or deletion, from now on fails."""

    def __init__(self, uri: str, *, write: int | None = None, delete: int | None = None) -> None:
        super().__init__(uri)
        self.left = {"write": write, "delete": delete}

    def _count(self, verb: str) -> None:
        left = self.left[verb]
        if left is not None:
            self.left[verb] = left - 1
            if left == 0:
                raise StorageError("the disk is full; free some space")

    def write(self, key: str, data: bytes) -> None:
        self._count("write")
        super().write(key, data)

    def delete(self, key: str) -> None:
        self._count("delete")
        super().delete(key)


def _assert_in_force(storage: Storage, step: int, folder: Path) -> None:
    state = load_state(storage)
    assert state is not None
    assert state["step"] == step
    assert torch.equal(state["t"], torch.arange(step))
    spec, net = read_package(fetch_model(storage, folder))
    assert spec == _checkpoint(step).spec
    for name, tensor in _checkpoint(step).weights.items():
        assert torch.equal(net.state_dict()[name], tensor), name


def test_a_run_without_checkpoints(tmp_path: Path):
    storage = open_storage(tmp_path)
    assert load_state(storage) is None
    assert latest_folder(storage) is None
    assert kept_folders(storage) == []
    with pytest.raises(ModelError, match=r"has no latest.json: the run saved no checkpoint; look at its log"):
        fetch_model(storage, tmp_path / "model")


def test_there_and_back(tmp_path: Path):
    storage = open_storage(tmp_path / "run")
    uri = save_checkpoint(storage, _checkpoint(7))
    assert uri == f"{storage.uri}/checkpoints/step-0000000007"
    assert json.loads(storage.read(LATEST)) == {
        "checkpoint": "checkpoints/step-0000000007",
        "step": 7,
        "metrics": {"dice_mean": 0.07},
        "kept": ["checkpoints/step-0000000007"],
    }
    _assert_in_force(storage, 7, tmp_path / "model")


def test_the_one_before_is_dropped(tmp_path: Path):
    storage = open_storage(tmp_path / "run")
    for step in (7, 14):
        save_checkpoint(storage, _checkpoint(step))
    _assert_in_force(storage, 14, tmp_path / "model")
    assert {item.key.split("/")[1] for item in storage.list("checkpoints/")} == {"step-0000000014"}


def test_a_crash_at_any_write_leaves_the_one_before_in_force(tmp_path: Path):
    for number in count():
        storage = open_storage(tmp_path / str(number))
        save_checkpoint(storage, _checkpoint(7))
        try:
            save_checkpoint(Failing(storage.uri, write=number), _checkpoint(14))
        except StorageError:
            _assert_in_force(storage, 7, tmp_path / "model")
            # The run is started again and gets there at last; nothing of the failed attempt stays.
            save_checkpoint(storage, _checkpoint(21))
            _assert_in_force(storage, 21, tmp_path / "model")
            assert {item.key.split("/")[1] for item in storage.list("checkpoints/")} == {"step-0000000021"}
        else:
            break
    assert number == 4  # state, weights, description and pointer were each the one that failed


def test_a_crash_while_cleaning_up_leaves_the_new_one_in_force(tmp_path: Path):
    for number in count():
        storage = open_storage(tmp_path / str(number))
        save_checkpoint(storage, _checkpoint(7))
        try:
            save_checkpoint(Failing(storage.uri, delete=number), _checkpoint(14))
        except StorageError:
            _assert_in_force(storage, 14, tmp_path / "model")
        else:
            break
    assert number == 4  # the progress between checkpoints, and three objects of the one before


def _folders(storage: Storage) -> list[str]:
    return [f"checkpoints/step-{step:010d}" for step in _steps(storage)]


def _steps(storage: Storage) -> list[int]:
    return sorted(
        {int(item.key.split("/")[1].removeprefix("step-")) for item in storage.list("checkpoints/")}
    )


def test_the_newest_are_kept_as_models_and_the_last_one_to_go_on_from(tmp_path: Path):
    storage = open_storage(tmp_path / "run")
    expected = [[7], [7, 14], [7, 14, 21], [14, 21, 28]]
    for step, steps in zip((7, 14, 21, 28), expected, strict=True):
        save_checkpoint(storage, _checkpoint(step), 3)
        assert _steps(storage) == steps
        assert kept_folders(storage) == _folders(storage)
        _assert_in_force(storage, step, tmp_path / "model")
        states = [item.key for item in storage.list("checkpoints/") if item.key.endswith(STATE_FILE)]
        assert states == [f"checkpoints/step-{step:010d}/{STATE_FILE}"]
    for step in (14, 21):
        spec, net = read_package(tmp_path / "run" / f"checkpoints/step-{step:010d}")
        assert spec == _checkpoint(step).spec
        assert torch.equal(net.state_dict()["head.weight"], _checkpoint(step).weights["head.weight"])
    save_checkpoint(storage, _checkpoint(35), 1)
    assert _steps(storage) == [35]


def test_a_checkpoint_that_is_saved_again_counts_once(tmp_path: Path):
    storage = open_storage(tmp_path / "run")
    for step in (7, 14, 14):
        save_checkpoint(storage, _checkpoint(step), 2)
    assert _steps(storage) == [7, 14]


def test_what_a_crash_left_is_not_kept(tmp_path: Path):
    for number in range(4):
        storage = open_storage(tmp_path / str(number))
        save_checkpoint(storage, _checkpoint(7), 3)
        with pytest.raises(StorageError):
            save_checkpoint(Failing(storage.uri, write=number), _checkpoint(14), 3)
        assert kept_folders(storage) == ["checkpoints/step-0000000007"]
        _assert_in_force(storage, 7, tmp_path / "model")
        # The clock made the second attempt end on another step.
        save_checkpoint(storage, _checkpoint(15), 3)
        assert _steps(storage) == [7, 15]


def test_a_truncated_state_is_told(tmp_path: Path):
    storage = open_storage(tmp_path)
    save_checkpoint(storage, _checkpoint(7))
    key = f"{latest_folder(storage)}/{STATE_FILE}"
    whole = storage.read(key)
    for length in (0, 1, 3, 64, len(whole) // 2, len(whole) - 1):
        storage.write(key, whole[:length])
        with pytest.raises(
            ModelError,
            match=r"state.pt' is damaged .*; delete the run's latest.json and progress.json to start over",
        ):
            load_state(storage)
    storage.write(key, whole)
    assert load_state(storage) is not None


class _Hostile:
    """What an unpickler that trusts its input would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, pickle.dump], ids=["torch", "pickle"])
def test_reading_a_checkpoint_runs_no_code(tmp_path: Path, save: Any):
    storage, trace = open_storage(tmp_path / "run"), tmp_path / "trace"
    save_checkpoint(storage, _checkpoint(7))
    buffer = io.BytesIO()
    save({"step": 7, "t": _Hostile(trace)}, buffer)
    storage.write(f"{latest_folder(storage)}/{STATE_FILE}", buffer.getvalue())
    with pytest.raises(ModelError, match=r"is damaged or not a checkpoint .*; delete") as caught:
        load_state(storage)
    assert "weights_only" not in str(caught.value)  # torch's advice would run it
    assert not trace.exists()


def test_the_newer_of_checkpoint_and_progress_is_resumed(tmp_path: Path):
    storage = open_storage(tmp_path / "run")
    saver = Saver(storage)
    for step in (3, 5):
        saver.save_progress(step, {"step": step})
    saver.wait()
    assert [item.key for item in storage.list("progress/")] == ["progress/step-0000000005.pt"]
    assert load_state(storage) == {"step": 5}
    assert latest_folder(storage) is None
    saver.save_checkpoint(_checkpoint(7), 1)
    saver.wait()
    _assert_in_force(storage, 7, tmp_path / "model")
    assert not [item.key for item in storage.list("progress")]
    saver.save_progress(9, {"step": 9})
    saver.close()
    assert load_state(storage) == {"step": 9}
    # The model is that of the checkpoint.
    assert fetch_model(storage, tmp_path / "again").joinpath("model.json").read_text().count("0.07") == 1


def test_a_crash_at_any_write_of_progress_leaves_the_one_before_in_force(tmp_path: Path):
    for number in range(2):
        storage = open_storage(tmp_path / str(number))
        save_checkpoint(storage, _checkpoint(7))
        saver = Saver(Failing(storage.uri, write=number))
        saver.save_progress(9, {"step": 9})
        with pytest.raises(StorageError):
            saver.wait()
        saver.close()
        _assert_in_force(storage, 7, tmp_path / "model")


def test_what_is_saved_is_the_state_of_that_moment(tmp_path: Path):
    class Late(FileStorage):
        opened = threading.Event()

        def write(self, key: str, data: Any) -> None:
            assert self.opened.wait(60)
            super().write(key, data)

    storage = Late(str(tmp_path))
    tensor, saver = torch.zeros(3), Saver(storage)
    saver.save_progress(1, {"step": 1, "tensor": tensor})
    assert saver.is_busy
    tensor += 1
    storage.opened.set()
    saver.close()
    assert not saver.is_busy
    state = load_state(storage)
    assert state is not None
    assert torch.equal(state["tensor"], torch.zeros(3))
