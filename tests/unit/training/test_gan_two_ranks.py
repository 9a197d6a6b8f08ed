"""Super-resolution on two ranks is that on one with the same global batch: real processes that meet over gloo.

Everything is compared after one start of the two processes, which takes most of the seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from glioray.engine.collectives import Ranks
from glioray.engine.loop import CLOCKS
from glioray.engine.run import RunPlan

pytestmark = pytest.mark.contracts

# No narrower: one after another, batch norms blow up to full size what rounding leaves in a dead channel.
_VGG = {"discriminator.name": "vgg", "discriminator.options": {"width": 4, "norm": "batch"}}
_ADAM = {
    f"{who}.{key}": value for who in ("optim_g", "optim_d") for key, value in (("name", "adam"), ("lr", 1e-4))
}
SETTINGS: dict[str, dict[str, Any]] = {
    "ragan, spectral": {"d_steps": 2, "optim_g.ema": 0.9, "loss.instance_noise": 0.05},
    "vanilla, batch norm": {
        **_VGG,
        "generator.options.norm": "batch",
        "loss.adversarial": "vanilla",
        "loss.label_smoothing": 0.1,
        "pretrain.pixel": "mse",
    },
    "ragan, batch norm, r1": {**_VGG, "loss.r1": 0.5, "loss.r1_every": 2, "optim_d.lr": 5e-3},
    "hinge, spectral, r1": {
        "loss.adversarial": "hinge",
        "loss.r1": 1.0,
        "loss.r1_every": 1,
        "degrade.name": "kspace",
        "degrade.noise": 0.05,
        "degrade.lr_size": 9,
        "loss.perceptual_weight": 0.5,
        "channels": "each",
    },
    "lsgan, unet, joint": {
        "discriminator.name": "unet",
        "discriminator.options": {"width": 2},
        "loss.adversarial": "lsgan",
        "channels": "joint",
        "degrade.cut": "whole",
        "degrade.name": "gaussian",
        "optim_g.grad_clip": 0.05,
        "optim_d.grad_clip": 0.05,
    },
    # Not RaGAN, in which the last bias has no gradient but rounding, whose sign Adam would follow.
    "adam": {**_ADAM, "loss.adversarial": "vanilla", "pretrain.rate": 1e-3, "optim_g.schedule": "cosine"},
}
# Adam divides by what may be rounding alone: a share of the rate is what floats allow.
ATOL = dict.fromkeys(SETTINGS, 1e-5) | {"adam": 1e-4}
# Six adversarial steps after those of pixels: what rounding leaves grows with each.
NUM_PIXEL, NUM_COMPARED = 3, 9
Made = dict[str, Any]


@pytest.fixture(scope="module")
def one(gan_runs: ModuleType, make_gan_plan: Callable[..., RunPlan]) -> Made:
    """What one rank makes of the whole batch."""
    plans = {name: make_gan_plan(**settings) for name, settings in SETTINGS.items()}
    made: Made = gan_runs.on_rank(Ranks(), plans)
    return made


@pytest.fixture(scope="module")
def two(
    gan_runs: ModuleType, make_gan_plan: Callable[..., RunPlan], on_two_ranks: Callable[..., list[Made]]
) -> list[Made]:
    """What each of two ranks makes of its half."""
    return on_two_ranks(
        gan_runs,
        {name: make_gan_plan(**settings, **{"train.num_workers": 2}) for name, settings in SETTINGS.items()},
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_every_step_is_the_same(one: Made, two: list[Made], name: str):
    whole, halves = one["runs"][name], [made["runs"][name] for made in two]
    assert len(whole["rows"]) == 12
    for step, row in enumerate(whole["rows"][:NUM_COMPARED]):
        rows = [half["rows"][step] for half in halves]
        assert rows[0].keys() == rows[1].keys() == row.keys()
        assert ("d_loss" in row) is (step >= NUM_PIXEL)
        for key, value in row.items():
            mean = sum(r[key] for r in rows) / 2
            assert mean == pytest.approx(value, rel=1e-4, abs=1e-5), (step, key)
        for key, tensor in whole["weights"][step].items():
            found = halves[0]["weights"][step][key]
            torch.testing.assert_close(found, tensor, rtol=1e-4, atol=ATOL[name], msg=f"{step} {key}")


@pytest.mark.parametrize("name", SETTINGS)
def test_ranks_never_part(two: list[Made], name: str):
    for step, pair in enumerate(zip(*(made["runs"][name]["weights"] for made in two), strict=True)):
        for key in pair[0]:
            assert torch.equal(pair[0][key], pair[1][key]), (step, key)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_halves_are_really_halves_and_every_step_learns(two: list[Made], name: str):
    first, second = (made["runs"][name] for made in two)
    assert all(
        a["d_loss" if "d_loss" in a else "loss"] != b["d_loss" if "d_loss" in b else "loss"]
        for a, b in zip(first["rows"], second["rows"], strict=True)
    )
    d_steps = SETTINGS[name].get("d_steps", 1)
    for step in range(1, 12):
        before, after = first["weights"][step - 1 : step + 1]
        changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
        pixel = step < NUM_PIXEL
        plays = not pixel and (step - NUM_PIXEL + 1) % d_steps == 0
        norms = "batch" in str(SETTINGS[name].get("generator.options.norm"))
        assert ("generator" in changed) is (pixel or plays or norms or step == NUM_PIXEL), (step, changed)
        assert ("critic" in changed) is (not pixel), (step, changed)


@pytest.mark.parametrize("name", SETTINGS)
def test_validation_is_the_same_on_every_rank(one: Made, two: list[Made], name: str):
    made = [two[0]["runs"][name], two[1]["runs"][name]]
    figures = [{k: v for k, v in run["metrics"].items() if k not in CLOCKS} for run in made]
    assert figures[0] == figures[1]
    whole = one["runs"][name]
    assert whole["metrics"].keys() == made[0]["metrics"].keys()
    for key in ("psnr", "ssim", "bicubic_psnr", "quality", "collapse_score", "objective", "train_loss"):
        assert figures[0][key] == pytest.approx(whole["metrics"][key], rel=1e-3, abs=1e-3), key
    assert whole["stages"] == made[0]["stages"] == made[1]["stages"]
    assert whole["stopped"] == made[0]["stopped"] == made[1]["stopped"]


def test_all_ranks_say_who_diverged_by_what(one: Made, two: list[Made]):
    """None of them goes on alone, which is what would have hung."""
    assert len(one["faults"]) == 6
    for fault, (sentence, was_kept) in one["faults"].items():
        who, _, what = fault.partition(" ")
        assert sentence.startswith(f"the {who}'s "), (fault, sentence)
        assert was_kept, fault
        assert "the run diverged; lower optim_" + who[0] + ".lr or set optim_" in sentence
        if what == "loss":
            assert (
                f"its {'perceptual' if who == 'generator' else 'adversarial'} loss is not finite" in sentence
            )
        else:
            assert "first in '" in sentence or "weights" in sentence, (fault, sentence)
        for made in two:
            assert made["faults"][fault] == (sentence, True), fault
