"""A search resumes only with the entries and the objective that it was begun with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glioray.engine.on_ray.search import SPACE_FILE, _check_same_space, _identity
from glioray.engine.run import CONFIG_FILE
from glioray.engine.space import parse_space
from glioray.errors import UsageError
from glioray.storage import open_storage
from glioray.tasks import load_task


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    storage = open_storage(tmp_path)
    storage.write(CONFIG_FILE, b"{}")
    return SimpleNamespace(
        base=SimpleNamespace(storage=str(tmp_path), run_name="mine"),
        custom=parse_space(["optim.lr=log:1e-4:1e-2"]),
        search=load_task("segmentation").search,
    )


def test_trials_of_another_objective_do_not_mix(plan: Any):
    storage = open_storage(plan.base.storage)
    now = _identity(plan)
    assert now["objective"] == "objective"
    older = {name: value for name, value in now.items() if name != "objective"}
    # Without trials there is nothing to mix.
    _check_same_space(plan)
    storage.write("ray/search/trial/result.json", b"{}")
    for kept in (None, older, {**now, "objective": "dice_mean"}):
        if kept is not None:
            storage.write(SPACE_FILE, json.dumps(kept).encode())
        with pytest.raises(
            UsageError, match=r"'mine' was begun .* another objective.* choose another --run-name"
        ):
            _check_same_space(plan)
    storage.write(SPACE_FILE, json.dumps(now).encode())
    _check_same_space(plan)
    other = SimpleNamespace(**{**vars(plan), "custom": parse_space([])})
    with pytest.raises(UsageError, match="exists with another search space"):
        _check_same_space(other)
