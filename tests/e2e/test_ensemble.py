"""The ensemble job as a user runs it: members in folders, a registry in a file, no cluster."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glioray.config import NetConfig
from glioray.engine.checkpoint import Checkpoint, save_checkpoint
from glioray.engine.on_mlflow.registry import fetch_package
from glioray.storage import open_storage
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.package import ModelSpec, read_package


def _checkpoint(step: int) -> Checkpoint:
    spec = ModelSpec(
        config=RunConfig(recipe="test", net=NetConfig(options={"width": 2, "depth": 1})),
        out_channels=4,
        spacing_mm=(1.0, 1.0, 1.0),
        manifest_hash="m",
        train_patients=(f"p{step}",),
    )
    torch.manual_seed(step)
    return Checkpoint(step=step, spec=spec, weights=spec.build().state_dict(), state={})


@pytest.fixture
def run(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """The job in this process, which saves its start: its contract as a command is `test_jobs`'s."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    job = runpy.run_path(str(repo / "jobs" / "ensemble.py"))["job"]

    def run(*flags: str) -> dict[str, Any]:
        answer: dict[str, Any] = job.answer(["--storage", str(tmp_path / "runs"), *flags])
        return answer

    return run


def test_runs_and_their_checkpoints_become_one_registered_model(
    run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, steps in (("a", (7, 14, 21)), ("b", (28,))):
        for step in steps:
            save_checkpoint(open_storage(tmp_path / "runs" / name), _checkpoint(step), keep=2)
    a, b = (str(tmp_path / "runs" / name) for name in "ab")

    dry = run("--model", a, "--model", b, "--dry-run")
    assert (dry["num_members"], dry["config"]["recipe"]) == (2, "test")
    assert not (tmp_path / "runs" / "mlflow.db").exists()

    answer = run("--model", a, "--model", b, "--checkpoints", "--name", "net", "--run-name", "both")
    assert answer["model"] == "models:/net/1"
    assert answer["members"] == [
        f"{a}/checkpoints/step-0000000014", f"{a}/checkpoints/step-0000000021", f"{b}/checkpoints/step-0000000028",
    ]  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs/mlflow.db")
    spec, net = read_package(fetch_package("models:/net/1", tmp_path / "got"))
    assert (spec.num_members, spec.train_patients) == (3, ("p14", "p21", "p28"))
    images = torch.randn(1, 4, 32, 32)
    with torch.no_grad():
        members = []
        for step in (14, 21, 28):
            member = _checkpoint(step).spec.build()
            member.load_state_dict(_checkpoint(step).weights)
            members.append(member.eval()(images).softmax(1))
        torch.testing.assert_close(net(images).softmax(1), torch.stack(members).mean(0), rtol=0, atol=1e-6)

    again = run("--model", a, "--model", b, "--checkpoints", "--name", "net", "--run-name", "both")
    assert (again["model"], again["run_id"]) == (answer["model"], answer["run_id"])
