"""What the super-resolution jobs share: their config, what of it is checked before Ray starts, their verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glioray.api.configs import resolve_config
from glioray.cli import Job
from glioray.errors import UsageError
from glioray.tasks import load_task


def _config(*argv: str) -> Any:
    parsed = Job("tune", "A job.", task="superres", recipe_variable="GLIORAY_GAN_RECIPE").parse(argv)
    assert parsed is not None
    return resolve_config(parsed[0])[1]


@pytest.mark.contracts
def test_the_recipe_of_the_environment_goes_with_its_data(monkeypatch: pytest.MonkeyPatch):
    assert _config().recipe == "mri_small"
    monkeypatch.setenv("GLIORAY_GAN_RECIPE", "mri_tiny")
    assert _config().recipe == "mri_tiny"
    assert _config("--data", "elsewhere").recipe == "mri_small"


def test_flags_and_settings_of_both_stages():
    config = _config(
        *("--recipe", "mri_tiny", "--max-epochs", "3", "--seed", "5", "--set", "optim_g.lr=0.01"),
        *("--segmenter", "models:/glioray-unet@champion", "--use-weight", "0.5"),
    )
    assert (config.train.max_epochs, config.train.seed, config.train.minutes) == (3, 5, None)
    assert (config.optim_g.lr, config.use.segmenter, config.use.weight) == (
        0.01,
        "models:/glioray-unet@champion",
        0.5,
    )


def test_a_pretrained_generator_replaces_the_pixel_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = _config("--recipe", "mri_tiny", "--pretrained", "runs/psnr")
    assert (config.pretrain.source, config.pretrain.share) == (str(tmp_path / "runs" / "psnr"), 0.0)
    more = _config("--recipe", "mri_tiny", "--pretrained", "runs:/1/model", "--set", "pretrain.share=0.2")
    assert more.pretrain.share == 0.2


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--recipe", "unet_small"], "no recipe 'unet_small' of the task superres; the recipes are mri,"),
        (["--set", "generator.name=edsr"], "No generator 'edsr'; available: rrdbnet, srresnet"),
        (["--set", "discriminator.options.depth=3"], "discriminator 'patch' does not accept these options"),
        (["--set", "discriminator.options.num_layers=5"], "sees 64 pixels a side and needs 96 or more"),
        (["--set", "loss.perceptual_weight=1", "--set", "loss.extractor=vgg19"], "'vgg19' needs weights"),
        (
            ["--set", "loss.perceptual_weight=1", "--set", "loss.extractor=unet"],
            "'unet' needs a trained U-Net",
        ),
        (["--set", "collapse.judge=unet"], "'unet' needs a trained U-Net"),
        (["--set", "collapse.judge=inception"], "'inception' is not an extractor"),
    ],
)
def test_what_cannot_be_built_is_said_before_ray_starts(argv: list[str], sentence: str):
    given = argv if "--recipe" in argv else ["--recipe", "mri_tiny", *argv]
    with pytest.raises(UsageError, match=sentence):
        _config(*given)


def test_a_collapsed_run_is_a_job_that_failed():
    verdict = load_task("superres").verdict
    metrics = {"collapse_score": 1.0, "collapse_reason": 1.0, "is_collapsed": 1.0}
    collapsed = verdict(metrics)
    assert collapsed.answer == {"collapse": "collapsed", "reason": "conditioning"}
    assert collapsed.is_rejected
    assert not verdict(metrics | {"is_collapsed": 0.0}).is_rejected
    healthy = verdict({"collapse_score": 0.0, "collapse_reason": 0.0, "is_collapsed": 0.0})
    assert (healthy.answer, healthy.is_rejected) == ({"collapse": "healthy", "reason": ""}, False)
    assert verdict({"psnr": 30.0}).answer["collapse"] == "unjudged"
