"""Thresholds that a training fits at its end: on validation cases, once, and said."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from glioray.cases.labels import REGION_LABELS
from glioray.config import override
from glioray.engine.checkpoint import fetch_model, load_state
from glioray.engine.run import RunPlan
from glioray.errors import UsageError
from glioray.storage import open_storage
from glioray.tasks.segmentation.learner import counts_in_case
from glioray.tasks.segmentation.metrics import mean_dice
from glioray.tasks.segmentation.package import read_package
from glioray.tasks.segmentation.predictor import Predictor

Plans = Callable[..., RunPlan]
NAMES = ("threshold_wt", "threshold_tc", "threshold_et")


def _region_dice(stacks: Any, probs: np.ndarray, thresholds: tuple[float, ...]) -> list[float]:
    """Each region's Dice by itself, of the one validation case."""
    truth = stacks[0].restore(np.asarray(stacks[0].mask))
    found = []
    for region, labels, threshold in zip(probs, REGION_LABELS.values(), thresholds, strict=True):
        inside = region > threshold
        true = sum(stacks[0].label_voxels[label] for label in labels)
        found.append(float(2 * (inside & np.isin(truth, labels)).sum() / (inside.sum() + true)))
    return found


@pytest.mark.contracts
def test_the_model_is_kept_and_judged_with_fitted_thresholds(
    runs: ModuleType, make_plan: Plans, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    plan = make_plan(**{"postprocess.fit_thresholds": True, "train.max_epochs": 2, "net.options.width": 6})
    with caplog.at_level(logging.INFO, "glioray"):
        task, metrics = runs.train(plan)
    assert "thresholds fitted on the 1 validation cases" in caplog.text
    assert "optimistic" in caplog.text
    thresholds = tuple(metrics[name] for name in NAMES)
    assert thresholds != (0.5, 0.5, 0.5)
    package = fetch_model(open_storage(plan.storage), tmp_path)
    spec, _ = read_package(package)
    assert spec.config.postprocess.thresholds == thresholds
    assert spec.metrics == metrics
    # Whom the thresholds were fitted on may judge them as little as whom the weights were.
    seen = [*plan.manifest.select("train"), *plan.manifest.select("val")]
    assert spec.train_patients == tuple(sorted({entry.patient_id for entry in seen}))
    (stacks,) = task.val_cases
    predictor = Predictor.load(package, "cpu")
    labels = predictor.predict_stacks(stacks)
    assert mean_dice([counts_in_case(stacks[0], labels)])["dice_mean"] == metrics["dice_mean"]
    probs = predictor.probs_of_stacks(stacks)
    fitted, even = (_region_dice(stacks, probs, ts) for ts in (thresholds, (0.5, 0.5, 0.5)))
    assert all(new >= old for new, old in zip(fitted, even, strict=True))
    assert sum(fitted) > sum(even)


@pytest.mark.contracts
def test_it_is_done_once_at_the_end(runs: ModuleType, make_plan: Plans, caplog: pytest.LogCaptureFixture):
    plan = make_plan(**{"postprocess.fit_thresholds": True})
    reports: list[dict[str, float]] = []
    task, feed = runs.build(plan)
    with caplog.at_level(logging.INFO, "glioray"):
        runs.fit(task, feed, plan.config.train, open_storage(plan.storage), runs.Ranks(), reports.append)
    assert [NAMES[0] in metrics for metrics in reports] == [False, True]
    assert caplog.text.count("thresholds fitted") == 1
    # The same run without it: the same weights and the same way there.
    plain, _ = runs.train(make_plan())
    assert plain.rows == task.rows
    with caplog.at_level(logging.INFO, "glioray"):
        _, again = runs.train(plan)
    assert again == reports[-1]
    assert caplog.text.count("thresholds fitted") == 1


def test_a_run_that_the_clock_ends_is_fitted_too(runs: ModuleType, make_plan: Plans):
    settings = {"postprocess.fit_thresholds": True, "train.max_epochs": 1000, "train.minutes": 1e-9}
    _, metrics = runs.train(make_plan(**settings))
    assert set(NAMES) <= set(metrics)


def test_without_validation_cases_thresholds_stay(
    runs: ModuleType, make_plan: Plans, caplog: pytest.LogCaptureFixture
):
    plan = make_plan(**{"postprocess.fit_thresholds": True, "train.max_epochs": 1})
    task, _ = runs.build(plan)
    task.val_cases = []
    assert task.validate() == {}
    with caplog.at_level(logging.WARNING, "glioray"):
        assert task.finish() == {}
    assert "no validation case to fit thresholds on" in caplog.text
    assert task.spec.config.postprocess.thresholds == (0.5, 0.5, 0.5)


def test_classes_and_slices_have_no_thresholds(make_plan: Plans):
    with pytest.raises(UsageError, match=r"fit_thresholds is True; expected False with loss.name 'dice_ce'"):
        override(make_plan().config, **{"postprocess.fit_thresholds": True, "loss.name": "dice_ce"})
    settings = {"postprocess.fit_thresholds": True, "sample.slice_split": [0.5, 0.5, 0.0]}
    with pytest.raises(UsageError, match=r"fit_thresholds is True; expected False with sample.slice_split"):
        override(make_plan().config, **settings)


def test_the_newest_models_of_a_run_are_kept(runs: ModuleType, make_plan: Plans):
    plan = make_plan(**{"train.num_kept": 2, "train.num_validations": 4})
    runs.train(plan)
    folders = sorted(path.parent.name for path in (Path(plan.storage) / "checkpoints").glob("*/model.json"))
    assert folders == ["step-0000000009", "step-0000000012"]
    for name in folders:
        spec, _ = read_package(Path(plan.storage) / "checkpoints" / name)
        assert spec.metrics["step"] == int(name.removeprefix("step-"))
    assert load_state(open_storage(plan.storage)) is not None
