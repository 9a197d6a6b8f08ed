"""A case that cannot be decoded is in no batch and no validation, on every rank. No Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from glioray.cases.manifest import CaseEntry, Manifest
from glioray.config import PreprocessConfig
from glioray.engine import feed
from glioray.engine.collectives import Ranks
from glioray.engine.on_ray import placement
from glioray.engine.run import RunPlan, check_claim, claim_run
from glioray.errors import CaseError, StorageError
from glioray.slices.cache import CacheConfig
from glioray.storage import open_storage


@pytest.fixture(params=["make_plan", "make_gan_plan"], ids=["segmentation", "superres"])
def plan(request: pytest.FixtureRequest, manifest: Manifest) -> RunPlan:
    """Two cases to train on and two to validate on."""
    ids = tuple(entry.case_id for entry in manifest.cases)
    splits = {"train": ids[:2], "val": ids[2:], "test": ()}
    made: RunPlan = request.getfixturevalue(request.param)()
    return dataclasses.replace(made, manifest=dataclasses.replace(manifest, splits=splits))


def lose(runs: ModuleType, *lost: str) -> Any:
    """A fill without these cases."""

    def fill(
        data: str, entries: Sequence[CaseEntry], config: PreprocessConfig, cache: CacheConfig
    ) -> dict[str, CaseError]:
        runs.fill(data, [entry for entry in entries if entry.case_id not in lost], config, cache)
        asked = {entry.case_id for entry in entries} & set(lost)
        return {name: CaseError(name, "", "cannot be decoded", "look") for name in asked}

    return fill


def test_a_lost_training_case_is_in_no_batch(plan: RunPlan, runs: ModuleType):
    train, _ = plan.task.cases(plan)
    prepared = plan.task.prepare(plan, Ranks(), lose(runs, train[0].case_id), runs.CPU)
    assert {stack.case_id for stack in prepared.feed.store.stacks} == {train[1].case_id}
    assert set(prepared.left_out) == {train[0].case_id}


def test_a_lost_validation_case_is_in_no_metric(plan: RunPlan, runs: ModuleType):
    _, val = plan.task.cases(plan)
    prepared = plan.task.prepare(plan, Ranks(), lose(runs, val[0].case_id), runs.CPU)
    assert set(prepared.left_out) == {val[0].case_id}
    learner: Any = prepared.learner
    if plan.task.name == "segmentation":
        judged = {stacks[0].case_id for stacks in learner.val_cases}
    else:
        judged = {title.split()[0] for title in learner.judge.panel.titles}
    assert judged == {val[1].case_id}


def test_what_another_rank_cannot_decode_is_left_out_here_too(
    plan: RunPlan, runs: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    train, _ = plan.task.cases(plan)
    other = {train[1].case_id: CaseError(train[1].case_id, "", "cannot be decoded", "look")}
    monkeypatch.setattr(feed, "gather", lambda value: [value, other] if isinstance(value, dict) else [value])
    prepared = plan.task.prepare(plan, Ranks(), lose(runs), runs.CPU)
    assert {stack.case_id for stack in prepared.feed.store.stacks} == {train[0].case_id}
    assert set(prepared.left_out) == set(other)


def test_how_many_cases_may_be_lost_may_change_on_resume(plan: RunPlan):
    storage = open_storage(plan.storage)
    claim_run(storage, plan)
    train = plan.config.train.replace(max_lost_cases=0.5)
    check_claim(storage, dataclasses.replace(plan, config=plan.config.replace(train=train)))


def test_a_file_that_is_gone_is_told_from_data_that_cannot_be_reached(
    plan: RunPlan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    entry = plan.manifest.cases[0]
    with pytest.raises(CaseError, match="is gone since the manifest of its data set was made"):
        placement.prepare_case(str(tmp_path), entry, plan.config.preprocess)

    class Away:
        def read(self, key: str) -> bytes:
            raise StorageError("the bucket is away")

        def exists(self, key: str) -> bool:
            raise StorageError("the bucket is away")

    monkeypatch.setattr(placement, "open_storage", lambda uri: Away())
    with pytest.raises(StorageError, match="the bucket is away"):
        placement.prepare_case(str(tmp_path), entry, plan.config.preprocess)
