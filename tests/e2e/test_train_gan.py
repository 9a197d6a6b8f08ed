"""Super-resolution as a user trains it: a run of pixels, one that begins with it, and one that collapses."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glioray.inference.superres_package import read_superres
from glioray.storage import open_storage
from glioray.training.checkpoint import fetch_model

RunJob = Callable[..., subprocess.CompletedProcess[str]]


def test_local_runs_that_go_on_from_one_another_and_one_that_collapses(
    run_job: RunJob, tmp_path: Path, phantom_data: Path
):
    env = {"HOME": str(tmp_path), "GLIORAY_CACHE": str(tmp_path / "cache")}
    storage = str(tmp_path / "runs")

    def train(name: str, *flags: str, code: int = 0) -> dict[str, Any]:
        done = run_job(
            "jobs/train_gan.py", "--data", str(phantom_data), "--storage", storage, "--recipe", "mri_tiny",
            "--run-name", name, "--set", "sample.steps_per_epoch=4", "--set", "generator.options.width=4",
            *flags, env=env,
        )  # fmt: skip
        assert done.returncode == code, done.stderr[-3000:]
        answer: dict[str, Any] = json.loads(done.stdout)
        assert answer["checkpoint"] == f"{storage}/{name}"
        return answer

    pixels = train("pixels", "--max-epochs", "1", "--set", "pretrain.share=1")
    assert pixels["collapse"] == "healthy"
    assert set(pixels) >= {"run_id", "model", "metrics", "num_slices", "slices_per_s", "collapse", "reason"}
    assert pixels["num_slices"] == 4 * 8

    game = train("game", "--max-epochs", "2", "--pretrained", pixels["model"])
    assert {"psnr", "bicubic_psnr", "collapse_score", "objective", "train_d_loss"} <= set(game["metrics"])
    made = {name: read_superres(fetch_model(open_storage(f"{storage}/{name}"), tmp_path / name)) for name in
            ("pixels", "game")}  # fmt: skip
    assert made["game"][0].stages == ("psnr", "gan")
    before, after = (made[name][1]["psnr"].state_dict() for name in ("pixels", "game"))
    assert all(bool((before[name] == after[name]).all()) for name in before)

    ruined = train(
        "ruined", "--max-epochs", "8", "--set", "optim_g.lr=0.3", "--set", "pretrain.share=0",
        "--set", "train.num_validations=8", code=1,
    )  # fmt: skip
    assert ruined["collapse"] == "collapsed"
    assert ruined["stopped"] == f"collapsed: {ruined['reason']} {ruined['metrics']['collapse_score']:.2f}"
    assert ruined["metrics"]["progress"] < 1
