"""How many cases a run may go without, and what is said of them. No Ray."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from glioray.config import TrainConfig
from glioray.engine.lost import check_lost
from glioray.errors import CaseError, DataError


def plan(train: Sequence[str], val: Sequence[str], **settings: Any) -> Any:
    cases = tuple([SimpleNamespace(case_id=name) for name in part] for part in (train, val))
    return SimpleNamespace(
        task=SimpleNamespace(cases=lambda plan: cases),
        config=SimpleNamespace(train=TrainConfig(**settings)),
    )


def lose(*names: str) -> dict[str, CaseError]:
    return {
        name: CaseError(name, f"{name}_t1.nii", "has changed", "prepare the data again") for name in names
    }


FORTY = [f"T{number:02}" for number in range(40)]


def test_a_run_that_misses_nothing_says_nothing():
    assert check_lost(plan(FORTY, ["V"]), {}) == ""
    assert check_lost(plan(FORTY, ["V"]), lose("a case of another run")) == ""


def test_one_case_may_always_be_lost_unless_none_may():
    line = check_lost(plan(["A", "B", "C"], ["V"]), lose("B"))
    assert line == (
        "1 of 4 cases can no longer be decoded: case B: B_t1.nii: has changed; prepare the data again"
    )
    with pytest.raises(DataError, match="max_lost_cases is 0, which allows 0; raise it, or put the data"):
        check_lost(plan(["A", "B", "C"], ["V"], max_lost_cases=0.0), lose("B"))


@pytest.mark.parametrize(("share", "num_allowed"), [(0.05, 2), (0.2, 8), (0.01, 1), (1.0, 39)])
def test_beyond_the_share_the_run_ends_with_one_sentence(share: float, num_allowed: int):
    run = plan(FORTY, [], max_lost_cases=share)
    assert check_lost(run, lose(*FORTY[:num_allowed])).startswith(f"{num_allowed} of 40 cases")
    sentence = rf"^{num_allowed + 1} of 40 cases can no longer be decoded.* case T00: .*T00_t1.nii"
    with pytest.raises(DataError, match=sentence) as caught:
        check_lost(run, lose(*FORTY[: num_allowed + 1]))
    assert "\n" not in str(caught.value)


def test_a_lost_validation_case_is_said():
    line = check_lost(plan(FORTY, ["V", "W"]), lose("V"))
    assert "so that the run validates on 1 cases rather than 2" in line


@pytest.mark.parametrize(("train", "val", "word"), [(["A"], ["V", "W"], "train"), (FORTY, ["A"], "validate")])
def test_no_run_goes_without_all_of_a_part(train: list[str], val: list[str], word: str):
    with pytest.raises(DataError, match=f"all that the run would {word} on: case A"):
        check_lost(plan(train, val), lose("A"))


def test_of_many_lost_cases_a_few_are_named():
    line = check_lost(plan(FORTY, [], max_lost_cases=0.5), lose(*FORTY[:20]))
    assert line.count("has changed") == 5
    assert line.endswith("; and 15 more")
