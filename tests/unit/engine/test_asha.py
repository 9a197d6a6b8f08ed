"""How ASHA stops the trials of a sweep; no Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from glioray.engine.on_ray import trials
from glioray.engine.on_ray.trials import PercentASHA


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The ends that are counted for Prometheus: task, state and reason."""
    found: list[tuple[str, ...]] = []
    monkeypatch.setattr(trials, "count_end", lambda *end: found.append(end))
    return found


def _decide(scheduler: PercentASHA, number: int, percent: int, objective: float, **more: str) -> str:
    trial: Any = SimpleNamespace(trial_id=str(number), is_finished=lambda: False)
    if percent == 50:
        scheduler.on_trial_add(None, trial)
    return scheduler.on_trial_result(None, trial, {"percent": percent, "objective": objective, **more})


@pytest.mark.parametrize("grace", [30, 33, 100])
def test_a_trial_at_100_percent_is_not_stopped(grace: int):
    # The next rung after 30 % is 90 %, which trials of four validations meet at 100 %.
    scheduler = PercentASHA(grace, task="painting")
    scheduler.set_search_properties("objective", "max")
    for number, objective in enumerate((0.1, 0.2, 0.3)):
        assert _decide(scheduler, number, 50, objective) == TrialScheduler.CONTINUE
    for number, objective in enumerate((0.3, 0.2, 0.1)):
        assert _decide(scheduler, number, 100, objective) == TrialScheduler.CONTINUE


def test_a_trial_that_lags_is_stopped_after_the_grace(counted: list[tuple[str, ...]]):
    scheduler = PercentASHA(30, task="painting")
    scheduler.set_search_properties("objective", "max")
    decisions = [_decide(scheduler, number, 50, objective) for number, objective in enumerate((0.3, 0.2))]
    assert decisions == [TrialScheduler.CONTINUE, TrialScheduler.STOP]
    assert counted == [("painting", "stopped", "ASHA")]


def test_a_trial_that_failed_is_not_counted_again(counted: list[tuple[str, ...]]):
    scheduler = PercentASHA(30, task="painting")
    scheduler.set_search_properties("objective", "max")
    assert _decide(scheduler, 0, 50, 0.3) == TrialScheduler.CONTINUE
    assert _decide(scheduler, 1, 50, -1.0, reason="the run diverged") == TrialScheduler.STOP
    assert counted == []


# Trials that ended early, at the end, or in between, each as it reported.
EARLIER = (
    [
        {"percent": 30, "objective": 0.5},
        {"percent": 60, "objective": 0.9},
        {"percent": 100, "objective": 0.8},
    ],
    [{"percent": 30, "objective": 0.4}],
    [{"percent": 50, "objective": 0.6}, {"percent": 95, "objective": 0.7}],
)


def test_trials_that_are_added_meet_the_rungs_of_the_earlier_ones(counted: list[tuple[str, ...]]):
    alone, added = PercentASHA(30, task="painting"), PercentASHA(30, EARLIER, task="painting")
    for scheduler in (alone, added):
        scheduler.set_search_properties("objective", "max")
    assert _decide(alone, 0, 50, 0.1) == TrialScheduler.CONTINUE
    # It would be the worst of four at the first rung, of which a third go on.
    assert _decide(added, 0, 50, 0.1) == TrialScheduler.STOP
    assert _decide(added, 1, 50, 0.55) == TrialScheduler.CONTINUE
    # The second rung has 0.8 and 0.7.
    assert _decide(added, 1, 90, 0.75) == TrialScheduler.STOP
    # Not the earlier ones, which the command that stopped them counted.
    assert counted == [("painting", "stopped", "ASHA")] * 2


def test_a_resumed_search_keeps_what_its_trials_ended_with():
    scheduler = PercentASHA(30, task="painting")
    scheduler.set_search_properties("objective", "max")
    for number in range(3):
        ended: Any = SimpleNamespace(
            trial_id=f"ended-{number}",
            is_finished=lambda: True,
            last_result={"percent": 50, "objective": 0.5 + 0.1 * number},
        )
        scheduler.on_trial_add(None, ended)
    assert _decide(scheduler, 0, 50, 0.1) == TrialScheduler.STOP
    assert _decide(scheduler, 1, 50, 0.8) == TrialScheduler.CONTINUE
