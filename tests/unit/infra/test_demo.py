"""What the demos ask for can be done, and what they must not accept is refused."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from glioray.engine.search import check_sweep
from glioray.tasks import find_recipe


@pytest.fixture
def demos(repo: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(str(repo / "infra"))
    return importlib.import_module("demo"), importlib.import_module("demo_gan")


@pytest.mark.contracts
def test_the_demos_trials_lie_in_their_spaces_and_have_steps(demos: tuple[ModuleType, ModuleType]):
    unet, gan = demos
    for demo, own in ((unet, "optim"), (gan, "optim_g")):
        task = find_recipe(demo.RECIPE)
        config = task.recipes[demo.RECIPE]()
        points = [{task.search.rate: rate} for rate in demo.RATES]
        check_sweep(task, config, num_trials=1 + len(points), points=points)
        assert config.train.minutes is None
        assert config.sample.steps_per_epoch is not None
        # The plots show the range around the recipe's rate, and where it is clearly too low.
        assert min(demo.RATES) < getattr(config, own).lr / 5
        assert max(demo.RATES) > getattr(config, own).lr * 5
    # The watch has the evaluations that it needs to stop a trial, though half of them belong to the pixel stage.
    rules = config.collapse
    num_adversarial = (1 - config.pretrain.share) * config.train.num_validations
    assert num_adversarial > rules.grace + max(rules.patience, rules.dead_patience)


def test_a_winner_that_learned_nothing_fails_the_demo(demos: tuple[ModuleType, ModuleType]):
    unet, _ = demos

    def tuned(dice: float) -> dict[str, Any]:
        return {"metrics": {"dice_mean": dice}, "run_id": "r"}

    unet._check_learned(tuned(0.5))
    with pytest.raises(unet.ServiceError, match=r"the winner's mean Dice is 0\.49, expected at least 0\.5"):
        unet._check_learned(tuned(0.49))


def test_another_kind_of_demo_is_refused(repo: Path):
    command = [sys.executable, "infra/local.py", "demo", "vae"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True)
    assert done.returncode == 2
    assert "'vae'" in done.stderr
