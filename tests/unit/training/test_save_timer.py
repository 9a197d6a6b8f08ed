"""When a run saves its state between checkpoints."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from glioray.engine import loop


class _Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(loop, "time", clock)
    return clock


def _moments(clock: _Clock, timer: Any, *, step_s: float, until_s: float, busy_s: float = 0.0) -> list[float]:
    """The seconds at which saves begin, of which each takes `busy_s`."""
    saver, moments, step = SimpleNamespace(is_busy=False), list[float](), 0
    while clock.now < until_s:
        clock.now += step_s
        step += 1
        saver.is_busy = bool(moments) and clock.now < moments[-1] + busy_s
        if timer.is_due(step, saver):
            moments.append(clock.now)
            timer.restart(step)
    return moments


@pytest.mark.parametrize("step_s", [0.01, 0.3, 20.0])
def test_saves_come_after_their_time_and_a_step_at_most(clock: _Clock, step_s: float):
    moments = _moments(clock, loop._SaveTimer(60, lambda: False), step_s=step_s, until_s=400)
    assert len(moments) >= 5
    for before, after in zip([0, *moments], moments, strict=False):
        assert 60 - 1e-6 <= after - before <= 60 + 2 * step_s


def test_ranks_ask_each_other_at_few_steps(clock: _Clock, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(loop, "from_first", lambda value: asked.append(value) or value)
    _moments(clock, loop._SaveTimer(60, lambda: False), step_s=0.01, until_s=300)
    assert len(asked) < 300


def test_a_save_waits_until_the_last_one_is_written(clock: _Clock):
    moments = _moments(clock, loop._SaveTimer(60, lambda: False), step_s=0.5, until_s=400, busy_s=100)
    assert moments == pytest.approx([60, 160, 260, 360], abs=1.5)


@pytest.mark.parametrize("step_s", [0.01, 0.3, 4.0])
def test_a_run_whose_node_leaves_saves_at_once_and_often(
    clock: _Clock, step_s: float, caplog: pytest.LogCaptureFixture
):
    asked = []

    def is_leaving() -> bool:
        asked.append(clock.now)
        return clock.now > 100

    moments = _moments(clock, loop._SaveTimer(300, is_leaving), step_s=step_s, until_s=200)
    assert moments[0] <= 106 + 2 * step_s
    assert all(9.9 <= after - before <= 10 + 2 * step_s for before, after in itertools.pairwise(moments))
    # The answer is a barrier of all ranks.
    assert all(after - before >= 4.9 - step_s for before, after in itertools.pairwise(asked[2:]))
    assert len(asked) < 30
    assert caplog.text.count("about to be taken away") == 1
