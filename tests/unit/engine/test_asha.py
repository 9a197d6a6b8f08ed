"""How ASHA stops the trials of a sweep; no Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from glioray.engine.on_ray.trials import PercentASHA


def _decide(scheduler: PercentASHA, number: int, percent: int, objective: float) -> str:
    trial: Any = SimpleNamespace(trial_id=str(number))
    if percent == 50:
        scheduler.on_trial_add(None, trial)
    return scheduler.on_trial_result(None, trial, {"percent": percent, "objective": objective})


@pytest.mark.parametrize("grace", [30, 33, 100])
def test_a_trial_at_100_percent_is_not_stopped(grace: int):
    # The next rung after 30 % is 90 %, which trials of four validations meet at 100 %.
    scheduler = PercentASHA(grace)
    scheduler.set_search_properties("objective", "max")
    for number, objective in enumerate((0.1, 0.2, 0.3)):
        assert _decide(scheduler, number, 50, objective) == TrialScheduler.CONTINUE
    for number, objective in enumerate((0.3, 0.2, 0.1)):
        assert _decide(scheduler, number, 100, objective) == TrialScheduler.CONTINUE


def test_a_trial_that_lags_is_stopped_after_the_grace():
    scheduler = PercentASHA(30)
    scheduler.set_search_properties("objective", "max")
    decisions = [_decide(scheduler, number, 50, objective) for number, objective in enumerate((0.3, 0.2))]
    assert decisions == [TrialScheduler.CONTINUE, TrialScheduler.STOP]
