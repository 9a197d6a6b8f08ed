"""What the super-resolution jobs share: their config, what of it is checked before Ray starts, their verdict."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from glioray import cli
from glioray.errors import UsageError
from glioray.resolve import resolve_gan_config

FLAGS = "data storage run-name workers max-epochs minutes seed experiment fold set dry-run"


def _args(*argv: str) -> argparse.Namespace:
    more = {**cli.GAN_FLAGS, "pretrained": {}, "use_weight": {"type": float}}
    return cli.parse_flags("A job.", FLAGS, list(argv), **more)


def test_the_recipe_of_the_environment_goes_with_its_data(monkeypatch: pytest.MonkeyPatch):
    assert resolve_gan_config(_args()).recipe == "mri_small"
    monkeypatch.setenv("GLIORAY_GAN_RECIPE", "mri_tiny")
    assert resolve_gan_config(_args()).recipe == "mri_tiny"
    assert resolve_gan_config(_args("--data", "elsewhere")).recipe == "mri_small"


def test_flags_and_settings_of_both_stages():
    config = resolve_gan_config(
        _args(
            *("--recipe", "mri_tiny", "--max-epochs", "3", "--seed", "5", "--set", "optim_g.lr=0.01"),
            *("--segmenter", "models:/glioray-unet@champion", "--use-weight", "0.5"),
        )
    )
    assert (config.train.max_epochs, config.train.seed, config.train.minutes) == (3, 5, None)
    assert (config.optim_g.lr, config.use.segmenter, config.use.weight) == (
        0.01,
        "models:/glioray-unet@champion",
        0.5,
    )


def test_a_pretrained_generator_replaces_the_pixel_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = resolve_gan_config(_args("--recipe", "mri_tiny", "--pretrained", "runs/psnr"))
    assert (config.pretrain.source, config.pretrain.share) == (str(tmp_path / "runs" / "psnr"), 0.0)
    more = _args("--recipe", "mri_tiny", "--pretrained", "runs:/1/model", "--set", "pretrain.share=0.2")
    assert resolve_gan_config(more).pretrain.share == 0.2


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--recipe", "unet_small"], "is not a super-resolution recipe; the recipes are mri,"),
        (["--set", "generator.name=edsr"], "'edsr' is not a generator; the generators are rrdbnet, srresnet"),
        (["--set", "discriminator.options.depth=3"], "discriminator 'patch' does not take these options"),
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
        resolve_gan_config(_args(*given))


def test_a_collapsed_run_is_a_job_that_failed():
    figures = {"collapse_score": 1.0, "collapse_reason": 1.0, "is_collapsed": 1.0}
    assert cli.collapse_answer(figures) == {"collapse": "collapsed", "reason": "conditioning", "exit_code": 1}
    assert "exit_code" not in cli.collapse_answer(figures | {"is_collapsed": 0.0})
    healthy = cli.collapse_answer({"collapse_score": 0.0, "collapse_reason": 0.0, "is_collapsed": 0.0})
    assert healthy == {"collapse": "healthy", "reason": ""}
    assert cli.collapse_answer({"psnr": 30.0})["collapse"] == "unjudged"
