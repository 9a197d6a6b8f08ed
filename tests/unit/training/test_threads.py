from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from glioray.engine.threads import ThreadChoice


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("seconds", "expected"), [({1: 3.0, 2: 1.7}, 2), ({1: 1.0, 2: 2.5}, 1)])
def test_the_faster_count_is_taken_in_each_epoch(seconds: dict[int, float], expected: int):
    choice = ThreadChoice(2)
    for _ in range(2):
        choice.start_epoch()
        tried = []
        for step in range(10):
            count = torch.get_num_threads()
            tried.append(count)
            # The first step after a change is slow and must not decide.
            choice.after_step(seconds[count] + (9.0 if step in (0, 3) else 0.0))
        assert set(tried[:6]) == {1, 2}
        assert tried[6:] == [expected] * 4


def test_one_core_has_nothing_to_choose():
    choice = ThreadChoice(1)
    choice.start_epoch()
    for _ in range(5):
        choice.after_step(1.0)
    assert torch.get_num_threads() == 1
