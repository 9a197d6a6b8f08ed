"""Two ranks are one rank with the same global batch: real processes that meet over gloo.

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
from glioray.serialization import to_dict
from glioray.tasks.segmentation.recipes import build_recipe

pytestmark = pytest.mark.contracts

UNET_SMALL = build_recipe("unet_small")
SETTINGS: dict[str, dict[str, Any]] = {
    "instance": {"optim.lr": 1e-3, "postprocess.fit_thresholds": True},
    "batch": {
        "optim.lr": 1e-3,
        "net.options": {**UNET_SMALL.net.options, "width": 4, "depth": 2},
        "augment": to_dict(UNET_SMALL.augment),
        "sample": {"foreground_share": 0.5, "balance_cases": True, "steps_per_epoch": 3},
        "preprocess.planes": ["axial", "sagittal"],
    },
    "classes": {
        "optim.lr": 1e-3,
        "loss.name": "dice_ce",
        "net.options.norm": "group",
        "sample.foreground_share": None,
    },
    "schedulefree": {
        "optim.lr": 1e-3,
        "optim.name": "schedulefree",
        "optim.schedule": "constant",
        "optim.ema": 0.0,
        "loss.name": "region_exp_log",
    },
    "slices": {"optim.lr": 1e-3, "sample.slice_split": [0.6, 0.2, 0.2], "sample.min_tumour_px": 9},
}
# Adam divides by what may be rounding alone: a share of the rate is what floats allow, and grows with the steps.
FIRST = 6
WEIGHTS_ATOL = {"instance": 1e-6, "batch": 1e-4, "classes": 1e-5, "schedulefree": 1e-5, "slices": 1e-6}
Made = dict[str, Any]


@pytest.fixture(scope="module")
def one(runs: ModuleType, make_plan: Callable[..., RunPlan]) -> Made:
    """What one rank makes of the whole batch."""
    made: Made = runs.on_rank(Ranks(), {name: make_plan(**settings) for name, settings in SETTINGS.items()})
    return made


@pytest.fixture(scope="module")
def two(
    runs: ModuleType, make_plan: Callable[..., RunPlan], on_two_ranks: Callable[..., list[Made]]
) -> list[Made]:
    """What each of two ranks makes of its half."""
    return on_two_ranks(
        runs, {name: make_plan(**settings, **{"train.num_workers": 2}) for name, settings in SETTINGS.items()}
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_the_first_steps_are_the_same(one: Made, two: list[Made], name: str):
    whole, halves = one["runs"][name], [made["runs"][name] for made in two]
    assert len(whole["rows"]) == 12
    for step, row in enumerate(whole["rows"][:FIRST]):
        rows = [half["rows"][step] for half in halves]
        assert sum(r["loss"] for r in rows) / 2 == pytest.approx(row["loss"], rel=1e-5), step
        for figures in rows:
            assert figures["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-3), step
            assert figures["lr"] == row["lr"]
        for key, tensor in whole["weights"][step].items():
            atol = WEIGHTS_ATOL[name] * (step + 1)
            found = halves[0]["weights"][step][key]
            torch.testing.assert_close(found, tensor, rtol=1e-3, atol=atol, msg=f"{step} {key}")


@pytest.mark.parametrize("name", SETTINGS)
def test_ranks_never_part(two: list[Made], name: str):
    for step, pair in enumerate(zip(*(made["runs"][name]["weights"] for made in two), strict=True)):
        for key in pair[0]:
            assert torch.equal(pair[0][key], pair[1][key]), (step, key)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_halves_are_really_halves(two: list[Made], name: str):
    first, second = ([row["loss"] for row in made["runs"][name]["rows"]] for made in two)
    assert all(a != b for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", SETTINGS)
def test_validation_is_the_same_on_every_rank(one: Made, two: list[Made], name: str):
    made = [two[0]["runs"][name], two[1]["runs"][name]]
    figures = [{k: v for k, v in run["metrics"].items() if k not in CLOCKS} for run in made]
    assert figures[0] == figures[1]
    assert made[0]["cases"] == made[1]["cases"]
    whole = one["runs"][name]["metrics"]
    assert whole.keys() == made[0]["metrics"].keys()
    for key in [key for key in whole if key.startswith(("dice_", "train_loss"))]:
        assert figures[0][key] == pytest.approx(whole[key], abs=2e-3), key
    assert figures[0]["num_slices"] == whole["num_slices"] == 48


def test_global_batch_norm(one: Made, two: list[Made]):
    whole, halves = one["batch_norm"], [made["batch_norm"] for made in two]
    for name in ("outputs", "images"):
        for step in (0, 1):
            joined = torch.cat([half[name][step] for half in halves])
            torch.testing.assert_close(joined, whole[name][step], rtol=1e-4, atol=1e-5)
    for half in halves:
        torch.testing.assert_close(half["buffers"], whole["buffers"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(half["weights"], whole["weights"], rtol=1e-4, atol=1e-4)
    # In evaluation a rank is by itself: only the first was given what the one rank was.
    torch.testing.assert_close(halves[0]["judged"], whole["judged"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(halves[1]["judged"], whole["judged"], atol=0.1)


def test_losses_and_their_gradients(one: Made, two: list[Made]):
    assert len(one["losses"]) > 20
    for name, whole in one["losses"].items():
        halves = [made["losses"][name] for made in two]
        mean = sum(half["loss"] for half in halves) / 2
        torch.testing.assert_close(mean, whole["loss"], rtol=1e-5, atol=1e-6, msg=name)
        assert any(bool(gradient.any()) for gradient in whole["gradients"]), name
        for half in halves:
            torch.testing.assert_close(
                half["gradients"],
                whole["gradients"],
                rtol=1e-4,
                atol=1e-6,
                msg=lambda text, n=name: f"{n}: {text}",
            )


def test_ranks_agree(one: Made, two: list[Made]):
    assert one["agreed"] == [0.0, 5.0, [0]]
    assert [made["agreed"] for made in two] == [[1.0, 5.0, [0, 1]]] * 2
