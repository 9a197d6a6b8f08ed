"""The ensemble job as a user runs it: members in folders, a registry in a file, no cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from glioray.config import NetConfig, RunConfig
from glioray.inference.package import ModelSpec, read_package
from glioray.storage import open_storage
from glioray.tracking.registry import fetch_package
from glioray.training.checkpoint import Checkpoint, save_checkpoint


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
def run(repo: Path, tmp_path: Path) -> Any:
    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "HOME": str(tmp_path), "MLFLOW_TRACKING_URI": ""}
        command = [sys.executable, "jobs/ensemble.py", "--storage", str(tmp_path / "runs"), *flags]
        return subprocess.run(command, cwd=repo, env=env, capture_output=True, text=True, timeout=300)

    return run


def test_runs_and_their_checkpoints_become_one_registered_model(run: Any, tmp_path: Path):
    for name, steps in (("a", (7, 14, 21)), ("b", (28,))):
        for step in steps:
            save_checkpoint(open_storage(tmp_path / "runs" / name), _checkpoint(step), keep=2)
    a, b = (str(tmp_path / "runs" / name) for name in "ab")

    dry = run("--model", a, "--model", b, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert json.loads(dry.stdout)["num_members"] == 2
    assert not list((tmp_path / "runs").glob("mlartifacts/*/*"))

    done = run("--model", a, "--model", b, "--checkpoints", "--name", "net", "--run-name", "both")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["model"] == "models:/net/1"
    assert answer["members"] == [
        f"{a}/checkpoints/step-0000000014", f"{a}/checkpoints/step-0000000021", f"{b}/checkpoints/step-0000000028",
    ]  # fmt: skip
    registry = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    spec, net = read_package(fetch_package("models:/net/1", tmp_path / "got", tracking_uri=registry))
    assert (spec.num_members, spec.train_patients) == (3, ("p14", "p21", "p28"))
    images = torch.randn(1, 4, 32, 32)
    with torch.no_grad():
        members = []
        for step in (14, 21, 28):
            member = _checkpoint(step).spec.build()
            member.load_state_dict(_checkpoint(step).weights)
            members.append(member.eval()(images).softmax(1))
        torch.testing.assert_close(net(images).softmax(1), torch.stack(members).mean(0), rtol=0, atol=1e-6)
