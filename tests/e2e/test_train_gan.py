"""Super-resolution as a user trains it: a run of pixels, one that begins with it, and one that collapses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glioray.engine.checkpoint import fetch_model
from glioray.engine.collectives import Ranks
from glioray.engine.on_ray.placement import fill_cache
from glioray.engine.run import RunPlan, train_run
from glioray.storage import open_storage
from glioray.tasks.superres.package import read_superres

RunHere = Callable[..., dict[str, Any]]


def train_here(plan: RunPlan) -> dict[str, Any]:
    """The result of `run_training`, without ranks of Ray's: `test_gan_training` has those."""
    return train_run(plan, Ranks(), fill_cache)


def test_runs_that_go_on_from_one_another_and_one_that_collapses(
    run_here: RunHere, tmp_path: Path, phantom_manifest: str
):
    storage = str(tmp_path / "runs")

    def flags(name: str, *more: str) -> list[str]:
        return [
            "--data", phantom_manifest, "--storage", storage, "--recipe", "mri_tiny", "--run-name", name,
            "--set", "sample.steps_per_epoch=4", "--set", "generator.options.width=4", *more,
        ]  # fmt: skip

    settings = (
        *("optim_g.lr=0.3", "pretrain.share=0", "train.num_validations=2"),
        *("collapse.grace=0", "collapse.patience=1"),
    )
    ruinous = [flag for setting in settings for flag in ("--set", setting)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glioray.api.train.run_training", train_here)
        pixels = run_here("train_gan", *flags("pixels", "--max-epochs", "1", "--set", "pretrain.share=1"))
        ruined = run_here("train_gan", *flags("ruined", "--max-epochs", "2", *ruinous))
        game = run_here("train_gan", *flags("game", "--max-epochs", "1", "--pretrained", pixels["model"]))
    assert pixels["collapse"] == "healthy"
    assert set(pixels) >= {"run_id", "model", "metrics", "num_slices", "slices_per_s", "collapse", "reason"}
    assert pixels["num_slices"] == 4 * 8
    assert pixels["checkpoint"] == f"{storage}/pixels"

    assert {"psnr", "bicubic_psnr", "collapse_score", "objective", "train_d_loss"} <= set(game["metrics"])
    made = {name: read_superres(fetch_model(open_storage(f"{storage}/{name}"), tmp_path / name)) for name in
            ("pixels", "game")}  # fmt: skip
    assert made["game"][0].stages == ("psnr", "gan")
    before, after = (made[name][1]["psnr"].state_dict() for name in ("pixels", "game"))
    assert all(bool((before[name] == after[name]).all()) for name in before)

    assert ruined["exit_code"] == 1
    assert ruined["collapse"] == "collapsed"
    assert ruined["stopped"] == f"collapsed: {ruined['reason']} {ruined['metrics']['collapse_score']:.2f}"
    assert ruined["metrics"]["progress"] < 1
