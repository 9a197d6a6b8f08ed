"""Class weights by hand, and that a run carries them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from types import ModuleType

import pytest

from glioray.cases.casefiles import CaseFiles
from glioray.cases.manifest import CaseEntry
from glioray.engine.collectives import Ranks
from glioray.engine.run import RunPlan, claim_run, train_run
from glioray.errors import UsageError
from glioray.storage import Storage, open_storage
from glioray.tasks.segmentation.balance import balance_classes
from glioray.tasks.segmentation.config import LossConfig, RunConfig
from glioray.tasks.segmentation.task import check_buildable
from glioray.tasks.segmentation.training import balanced

Plans = Callable[..., RunPlan]


def _entry(**label_voxels: int) -> CaseEntry:
    files = CaseFiles(case_id="a", patient_id="a", layout="msd", images={}, image=None, channels=(), mask="m")
    return CaseEntry(
        files=files,
        checksum="",
        checksums={},
        shape=(1, 1, 1),
        spacing_mm=(1.0, 1.0, 1.0),
        convention="msd",
        label_voxels=label_voxels,
        brain_voxels=500,
    )


# In all, 1000 voxels: 800 of background, 100 of NCR, 75 of ED and 25 of ET.
TRAIN = [_entry(ncr=60, ed=75, et=0, rc=0), _entry(ncr=40, ed=0, et=25, rc=0)]


def _weights(name: str, balance: str, num_classes: int, train: list[CaseEntry] = TRAIN) -> list[float]:
    config = RunConfig(recipe="test", loss=LossConfig(name=name, balance=balance, options={"ce_weight": 0.5}))
    made = balance_classes(config, train, num_classes)
    assert made.loss.options["ce_weight"] == 0.5
    assert balance_classes(made, train, num_classes) == made
    weights: list[float] = made.loss.options["class_weights"]
    return weights


def test_class_weights_by_hand():
    inverse = [1000 / 800, 1000 / 100, 1000 / 75, 1000 / 25]
    mean = sum(inverse) / 4
    assert _weights("dice_ce", "inverse", 4) == pytest.approx([w / mean for w in inverse], rel=1e-5)
    roots = [w**0.5 for w in inverse]
    mean = sum(roots) / 4
    assert _weights("dice_ce", "sqrt", 4) == pytest.approx([w / mean for w in roots], rel=1e-5)


def test_a_label_in_no_case_weighs_1_and_leaves_the_others_mean_at_1():
    four = _weights("ce", "inverse", 4)
    assert _weights("ce", "inverse", 5) == [*four, 1.0]
    cavity = [*TRAIN, _entry(ncr=0, ed=0, et=0, rc=500)]
    weights = _weights("ce", "inverse", 5, cavity)
    assert sum(weights) / 5 == pytest.approx(1, rel=1e-5)
    assert min(weights) == weights[0]


def test_region_weights_by_hand():
    # Inside are 200, 125 and 25 of 1000 voxels.
    assert _weights("region_dice_bce", "inverse", 3) == pytest.approx([4, 7, 39], rel=1e-5)
    assert _weights("region_focal", "sqrt", 3) == pytest.approx([2, 7**0.5, 39**0.5], rel=1e-5)
    assert _weights("region_bce", "inverse", 3, TRAIN[:1])[2] == 1


def test_no_balance_leaves_the_config_as_it_is():
    config = RunConfig(recipe="test", loss=LossConfig(name="dice"))
    assert balance_classes(config, TRAIN, 4) is config


def test_a_loss_without_class_weights_is_told_so():
    config = RunConfig(recipe="test", loss=LossConfig(name="region_dice", balance="sqrt"))
    with pytest.raises(
        UsageError,
        match=r"loss.balance is 'sqrt' but the loss 'region_dice' has no class weights; take none, or",
    ):
        balance_classes(config, TRAIN, 3)


def test_weights_given_by_hand_are_not_replaced():
    loss = LossConfig(name="ce", balance="sqrt", options={"class_weights": [1.0, 1.0, 1.0, 1.0]})
    with pytest.raises(UsageError, match=r"class_weights is \[1.0, 1.0, 1.0, 1.0\]; set one of the two"):
        balance_classes(RunConfig(recipe="test", loss=loss), TRAIN, 4)


def test_a_run_carries_the_weights_of_its_training_cases(runs: ModuleType, make_plan: Plans):
    plan = make_plan(**{"loss.name": "dice_ce", "loss.balance": "inverse", "train.max_epochs": 1})
    resolved = balanced(plan)
    counted = balance_classes(plan.config, plan.manifest.select("train"), 4)
    assert resolved.config == counted != plan.config
    assert balance_classes(plan.config, plan.manifest.select("labelled"), 4) != resolved.config
    storage = open_storage(plan.storage)
    claim_run(storage, resolved)
    claim_run(storage, balanced(plan))
    kept = json.loads(storage.read("config.json"))["config"]["loss"]["options"]["class_weights"]
    task, _ = runs.train(resolved)
    assert kept == task.spec.config.loss.options["class_weights"]
    assert task.loss.loss.class_weights.tolist() == pytest.approx(kept)
    # The same run on other cases would be another one.
    assert balanced(dataclasses.replace(plan, manifest=plan.manifest.with_fold(1))).config != resolved.config


def test_a_job_says_so_before_a_run_starts():
    config = RunConfig(recipe="test", loss=LossConfig(name="tversky", balance="inverse"))
    with pytest.raises(UsageError, match=r"^loss.balance is 'inverse' but the loss 'tversky' has no class"):
        check_buildable(config)
    check_buildable(RunConfig(recipe="test", loss=LossConfig(name="focal", balance="inverse")))
    with pytest.raises(
        UsageError, match=r"name is 'tverski'; expected one of boundary, ce, dice, .*mean tversky\?"
    ):
        LossConfig(name="tverski", balance="inverse")


def test_a_session_claims_its_run_with_the_weights(
    runs: ModuleType, make_plan: Plans, monkeypatch: pytest.MonkeyPatch
):
    claimed: list[RunPlan] = []

    class ClaimedError(Exception):
        pass

    def claim(storage: Storage, plan: RunPlan) -> None:
        claimed.append(plan)
        raise ClaimedError

    monkeypatch.setattr("glioray.engine.run.claim_run", claim)
    plan = make_plan(**{"loss.balance": "sqrt"})
    with pytest.raises(ClaimedError):
        train_run(plan, Ranks(), runs.fill)
    assert claimed == [balanced(plan)]
    assert len(claimed[0].config.loss.options["class_weights"]) == 3
