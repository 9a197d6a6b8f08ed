"""Where slices are split: nothing that is judged was trained on but the patients, and the figures are what they say."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from glioray.config import PreprocessConfig, SampleConfig
from glioray.engine import splits
from glioray.engine.run import RunPlan
from glioray.engine.splits import split_store
from glioray.slices.splits import deal_slices
from glioray.slices.store import SliceStore
from glioray.tasks.segmentation.metrics import confusion, mean_dice
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.segmentation.slice_validation import predict_slices

Plans = Callable[..., RunPlan]
SPLIT: dict[str, Any] = {"sample.slice_split": [0.5, 0.3, 0.2], "sample.min_tumour_px": 9}


def test_what_is_judged_is_not_trained_on(runs: ModuleType, make_plan: Plans) -> None:
    plan = make_plan(**SPLIT)
    task, feed = runs.build(plan)
    store, held_out = feed.store, task.val_slices.indices
    tumour_px = store.tumour_px()
    assert ((tumour_px > 0) & (tumour_px < 9)).any()
    train, val, test = deal_slices(tumour_px, plan.config.sample, plan.config.train.seed)
    np.testing.assert_array_equal(held_out, np.flatnonzero(val))
    drawn = np.concatenate([feed.sampler.epoch(epoch).ravel() for epoch in range(60)])
    assert {*drawn} == {*np.flatnonzero(train)}
    assert not {*drawn} & {*held_out, *np.flatnonzero(test)}
    # All cases of both parts of the split by patients are on both sides: this is what flatters.
    cases = {case_id for part in ("train", "val") for case_id in plan.manifest.splits[part]}
    for indices in (drawn, held_out):
        assert {store.stacks[store.locate(int(index))[0]].case_id for index in indices} == cases
    assert task.spec.train_patients == tuple(sorted(cases))


def test_the_figures_are_means_over_slices(
    runs: ModuleType, make_plan: Plans, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the very predictions that a case gets, but for what a prediction of slices leaves out."""
    settings = {"postprocess.mirror": [False, False], "optim.lr": 0.03, "train.max_epochs": 8}
    with caplog.at_level(logging.WARNING):
        task, metrics = runs.train(make_plan(**SPLIT, **settings))
    (warning,) = [record.message for record in caplog.records if "slice_split" in record.message]
    assert "deals slices, not patients" in warning
    assert task.spec.val_cases == {}
    predictor = Predictor(task.spec, task._inference_net())
    tables, store = [], task.val_slices.store
    whole = [stack.cut(predictor.predict_stacks([stack])) for stack in store.stacks]
    for index, truth, prediction in predict_slices(predictor, task.val_slices):
        number, place = store.locate(index)
        np.testing.assert_array_equal(truth, store.stacks[number].mask[place])
        # Other slices in the batch may round a probability to the threshold's other side.
        assert (prediction != whole[number][place]).mean() < 0.005
        tables.append(confusion(truth, prediction))
    expected = mean_dice(tables)
    assert len(tables) == len(task.val_slices.indices) > 10
    assert {name: metrics[name] for name in expected} == expected
    assert 0 < metrics["dice_wt"] < 1
    assert [picture.truth.shape for picture in task.pictures] == [(48, 48)] * 4


def test_a_slice_lies_in_one_part_whatever_node_holds_it(
    runs: ModuleType, make_plan: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, feed = runs.build(make_plan())
    config = SampleConfig(slice_split=(0.6, 0.2, 0.2), min_tumour_px=9)
    stacks = feed.store.stacks
    whole = split_store(feed.store, config, 3)
    ends = np.cumsum([len(stack.images) for stack in stacks])[:-1]
    parts = np.split(whole, ends, axis=1)
    nodes = [SliceStore(stacks[low::2], PreprocessConfig(size=(48, 48))) for low in (0, 1)]
    counts: list[Any] = []
    monkeypatch.setattr(splits, "gather", lambda mine: counts.append(mine) or [mine])
    for node in nodes:
        split_store(node, config, 3)
    assert len(counts) == 2
    monkeypatch.setattr(splits, "gather", lambda mine: counts)
    for low, node in enumerate(nodes):
        np.testing.assert_array_equal(split_store(node, config, 3), np.concatenate(parts[low::2], axis=1))
