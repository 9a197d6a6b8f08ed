"""The loop on a real task: resumed equals uninterrupted, cached equals decoded, and how a run may end."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from glioray.config import OPTIMIZERS, override
from glioray.engine import loop
from glioray.engine.checkpoint import LATEST, PROGRESS, Saver, fetch_model, load_state
from glioray.engine.collectives import Ranks
from glioray.engine.loop import CLOCKS, check_finite, fit
from glioray.engine.precision import autocast
from glioray.engine.run import CONFIG_FILE, RunPlan, check_claim, claim_run
from glioray.errors import TrainingError, UsageError
from glioray.slices.store import Batch, SliceStore
from glioray.storage import FileStorage, open_storage
from glioray.tasks.segmentation.learner import counts_in_case
from glioray.tasks.segmentation.metrics import mean_dice
from glioray.tasks.segmentation.package import read_package
from glioray.tasks.segmentation.predictor import Predictor

Plans = Callable[..., RunPlan]


def _lasting(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without its clocks."""
    metrics = {k: v for k, v in state["metrics"].items() if k not in CLOCKS}
    return {**state, "metrics": metrics, "spent_s": 0.0, "validation_s": 0.0}


@pytest.fixture(autouse=True)
def _no_save_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run waits for its last save, where it would otherwise leave out the next one."""
    monkeypatch.setattr(Saver, "is_busy", False)


def _resume_and_compare(
    runs: ModuleType, make_plan: Plans, settings: dict[str, Any], *, save_every_s: float = 300.0
) -> None:
    """A run that died in the midst of its third epoch of four, and went on, is bitwise one that did not."""
    uninterrupted, plan = make_plan(**settings), make_plan(**settings)
    whole, whole_metrics = runs.train(uninterrupted)
    with pytest.raises(runs.Killed):
        # Saved after the second of four epochs of three steps, or after each step; dead in the midst of the third.
        runs.train(plan, task=runs.killed_at(8, runs.Recorded), save_every_s=save_every_s)
    saved = load_state(open_storage(plan.storage))
    assert saved is not None
    num_saved = 8 if save_every_s == 0 else 6
    assert saved["step"] == num_saved
    torch.manual_seed(99)  # another process has other numbers up its sleeve
    resumed, metrics = runs.train(plan, save_every_s=save_every_s)
    assert resumed.rows == whole.rows[num_saved:]
    states = [load_state(open_storage(p)) for p in (uninterrupted.storage, plan.storage)]
    assert all(state is not None for state in states)
    first, second = (_lasting(state) for state in states if state is not None)
    runs.assert_same(second, first)
    assert second["step"] == 12
    assert metrics.keys() == whole_metrics.keys()
    assert resumed.spec.val_cases == whole.spec.val_cases


@pytest.mark.parametrize("precision", ["fp32", "auto", "bf16"])
def test_resumed_equals_uninterrupted(runs: ModuleType, make_plan: Plans, precision: str):
    # Dropout draws from the global generator: with the rest in place, it shows that this too goes on where it was.
    settings = {"train.precision": precision, "net.options.dropout": 0.3, "net.options.norm": "batch"}
    _resume_and_compare(runs, make_plan, settings)


def test_a_run_keeps_the_precision_that_it_chose_first(runs: ModuleType, make_plan: Plans):
    """Also where it resumes on a machine that would choose another one."""
    plan = dataclasses.replace(make_plan(**{"train.precision": "auto"}), agree=lambda work, own: "bf16")
    with pytest.raises(runs.Killed):
        runs.train(plan, task=runs.killed_at(3, runs.Recorded))
    resumed, _ = runs.train(dataclasses.replace(plan, agree=lambda work, own: "fp32"), save_every_s=0)
    assert resumed.precisions == {"training": "fp32", "prediction": "fp32"}, "nothing was saved"
    plan = dataclasses.replace(plan, storage=f"{plan.storage}-2")
    with pytest.raises(runs.Killed):
        runs.train(plan, task=runs.killed_at(len(resumed.rows) - 1, runs.Recorded))
    resumed, _ = runs.train(dataclasses.replace(plan, agree=lambda work, own: "fp32"))
    assert resumed.precisions == {"training": "bf16", "prediction": "bf16"}


# A validation every other epoch: after an epoch without one the state is saved too.
@pytest.mark.parametrize("num_validations", [1, 2, 4])
def test_resumed_between_checkpoints_equals_uninterrupted(
    runs: ModuleType, make_plan: Plans, num_validations: int
):
    settings = {"net.options.dropout": 0.3, "train.num_validations": num_validations}
    _resume_and_compare(runs, make_plan, settings, save_every_s=0)


def test_a_run_resumes_after_any_step(runs: ModuleType, make_plan: Plans):
    """A run that is killed at each of its steps in turn ends where one that is not ends."""
    uninterrupted, plan = make_plan(), make_plan()
    whole, _ = runs.train(uninterrupted)
    rows: list[dict[str, float]] = []
    for _ in whole.rows[1:]:
        with pytest.raises(runs.Killed):
            runs.train(plan, task=runs.killed_at(1, _remembering(rows, runs.Recorded)), save_every_s=0)
    _, metrics = runs.train(plan, task=_remembering(rows, runs.Recorded), save_every_s=0)
    assert rows == whole.rows
    states = [load_state(open_storage(p)) for p in (plan.storage, uninterrupted.storage)]
    found, expected = (_lasting(state) for state in states if state is not None)
    runs.assert_same(found, expected)
    assert metrics["step"] == len(whole.rows)
    storage = open_storage(plan.storage)
    assert not storage.exists(PROGRESS)
    assert not list(storage.list("progress/"))


def test_a_run_resumes_where_its_epoch_has_fewer_steps_than_were_taken(runs: ModuleType, make_plan: Plans):
    """As on fewer nodes, which share the slices otherwise."""
    plan = make_plan()
    with pytest.raises(runs.Killed):
        runs.train(plan, task=runs.killed_at(8, runs.Recorded), save_every_s=0)
    built, feed = runs.build(plan)
    feed.num_steps = 2
    storage = open_storage(plan.storage)
    metrics = fit(built, feed, plan.config.train, storage, Ranks(), lambda metrics: None)
    assert metrics["progress"] == 1
    state = load_state(storage)
    assert state is not None
    assert state["step"] == metrics["step"] >= 8


def _remembering(rows: list[dict[str, float]], recorded: type) -> type:
    class Remembering(recorded):  # type: ignore[misc]
        def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
            rows.append(super().train_step(batch, epoch, progress))
            return rows[-1]

    return Remembering


@pytest.mark.parametrize("report_saved", [True, False])
def test_training_goes_on_while_a_checkpoint_is_written(
    runs: ModuleType, make_plan: Plans, report_saved: bool
):
    """The storage takes the first checkpoint, of two epochs, once the third has begun; or before it is reported."""
    plan = make_plan()
    built, feed = runs.build(plan)
    storage = _Gated(plan.storage)
    if report_saved:
        storage.opened.set()

    class Opening:
        num_steps = feed.num_steps

        def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
            if epoch == 3:
                storage.opened.set()
            yield from feed.epoch(epoch, first_step)

    there: list[bool] = []
    fit(
        built,
        Opening(),
        plan.config.train,
        storage,
        Ranks(),
        lambda metrics: there.append(storage.exists(LATEST)),
        report_saved=report_saved,
    )
    assert there[0] is report_saved
    state = load_state(storage)
    assert state is not None
    assert state["step"] == 12


class _Gated(FileStorage):
    """A folder that takes a pointer only when it is let."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.opened = threading.Event()

    def write(self, key: str, data: Any) -> None:
        assert key != LATEST or self.opened.wait(60)
        super().write(key, data)


SCHEDULE_OF = {
    "adam": "cyclic",
    "adamw": "cosine",
    "sgd": "poly",
    "rmsprop": "onecycle",
    "adagrad": "constant",
    "schedulefree": "constant",
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.contracts
def test_resumed_equals_uninterrupted_by_every_optimiser(runs: ModuleType, make_plan: Plans, name: str):
    settings = {"optim.name": name, "optim.schedule": SCHEDULE_OF[name], "optim.ema": 0.0}
    _resume_and_compare(runs, make_plan, settings)


def test_schedulefree_is_judged_and_kept_by_its_average(runs: ModuleType, make_plan: Plans, tmp_path: Path):
    plan = make_plan(**{"optim.name": "schedulefree", "optim.schedule": "constant", "optim.ema": 0.0})
    task, _ = runs.train(plan)
    spec, net = read_package(fetch_model(open_storage(plan.storage), tmp_path))
    # What the last step left is where the next gradient would be taken; the average lies elsewhere.
    last, kept = task.weights[-1], net.state_dict()
    assert not any(torch.equal(last[key], kept[key]) for key in kept)
    task.optimizer.train()
    task.optimizer.eval()
    torch.testing.assert_close(task.net.state_dict(), kept, rtol=1e-5, atol=1e-6)
    (stacks,) = task.val_cases
    labels = Predictor(spec, net, "cpu").predict_stacks(stacks)
    assert mean_dice([counts_in_case(stacks[0], labels)])["dice_mean"] == spec.metrics["dice_mean"]


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_schedulefree_warns_of_batch_norm(
    runs: ModuleType, make_plan: Plans, norm: str, caplog: pytest.LogCaptureFixture
):
    settings = {"optim.name": "schedulefree", "optim.schedule": "constant", "optim.ema": 0.0}
    with caplog.at_level(logging.WARNING, "glioray"):
        runs.build(make_plan(**settings, **{"net.options.norm": norm}))
    assert ("running statistics are of those in training" in caplog.text) is (norm == "batch")


def test_a_run_that_is_over_only_gives_its_figures_again(runs: ModuleType, make_plan: Plans):
    plan = make_plan(**{"train.max_epochs": 1})
    _, metrics = runs.train(plan)
    task, again = runs.train(plan)
    assert task.rows == []
    assert again == metrics


def test_a_run_may_be_made_longer(runs: ModuleType, make_plan: Plans):
    plan = make_plan(**{"train.max_epochs": 1})
    first, _ = runs.train(plan)
    longer = dataclasses.replace(plan, config=override(plan.config, **{"train.max_epochs": 3}))
    task, metrics = runs.train(longer)
    assert len(task.rows) == 6
    assert (metrics["epoch"], metrics["step"], metrics["num_slices"]) == (3, 9, 36)
    assert not torch.equal(task.net.head.weight, first.net.head.weight)


def test_a_run_that_the_clock_ended_is_over(
    runs: ModuleType, make_plan: Plans, monkeypatch: pytest.MonkeyPatch
):
    """Its last validation was quicker than the one before, for which time had been kept."""
    clock = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])

    class Timed(runs.Recorded):  # type: ignore[misc]
        def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
            clock[0] += 10
            return super().train_step(batch, epoch, progress)  # type: ignore[no-any-return]

        def validate(self) -> dict[str, float]:
            clock[0] += 20 if len(self.rows) < 8 else 11
            return super().validate()  # type: ignore[no-any-return]

    plan = make_plan(**{"train.max_epochs": 1000, "train.minutes": 2.0})
    task, metrics = runs.train(plan, task=Timed)
    assert len(task.rows) == 8
    again, figures = runs.train(plan, task=Timed)
    assert again.rows == []
    assert figures == metrics


def test_a_run_that_is_made_shorter_is_finished(runs: ModuleType, make_plan: Plans):
    plan = make_plan(**{"postprocess.fit_thresholds": True})
    with pytest.raises(runs.Killed):
        runs.train(plan, task=runs.killed_at(8, runs.Recorded))
    shorter = dataclasses.replace(plan, config=override(plan.config, **{"train.max_epochs": 2}))
    task, metrics = runs.train(shorter)
    assert len(task.rows) == 1
    assert (metrics["progress"], metrics["step"]) == (1, 7)
    assert "threshold_wt" in metrics
    task, again = runs.train(shorter)
    assert task.rows == []
    assert again == metrics


@pytest.mark.contracts
def test_validations_come_evenly_and_the_last_one_always(runs: ModuleType, make_plan: Plans):
    for num_validations, epochs in ((1, [5]), (2, [3, 5]), (5, [1, 2, 3, 4, 5]), (50, [1, 2, 3, 4, 5])):
        plan = make_plan(**{"train.max_epochs": 5, "train.num_validations": num_validations})
        task, feed = runs.build(plan)
        seen: list[float] = []
        storage = open_storage(plan.storage)
        metrics = fit(
            task, feed, plan.config.train, storage, Ranks(), lambda m, seen=seen: seen.append(m["epoch"])
        )
        assert seen == epochs
        assert metrics["progress"] == 1
        assert 0 <= metrics["dice_mean"] <= 1


@pytest.mark.contracts
def test_training_learns(runs: ModuleType, make_plan: Plans):
    settings = {"augment.strength": 0.0, "optim.lr": 0.03, "net.options.width": 8}
    task, metrics = runs.train(make_plan(**settings, **{"train.max_epochs": 20, "train.num_validations": 1}))
    losses = [row["loss"] for row in task.rows]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert metrics["train_loss"] == pytest.approx(sum(losses[-3:]) / 3)


def test_cached_equals_decoded(runs: ModuleType, make_plan: Plans):
    plan = make_plan(**{"train.max_epochs": 2, "preprocess.planes": ["axial", "sagittal"]})
    cached, _ = runs.train(plan)
    task, feed = runs.build(plan)
    assert all(getattr(stack.images, "_mmap", None) is not None for stack in feed.store.stacks)
    config = plan.config.preprocess
    entries = {name: plan.manifest.select(name) for name in ("train", "val")}
    fresh = {
        name: [runs.decode(plan.manifest.data, entry, config) for entry in found]
        for name, found in entries.items()
    }
    feed.store = SliceStore([stack for case in fresh["train"] for stack in case], config)
    task.val_cases = fresh["val"]
    storage = open_storage(make_plan().storage)
    fit(task, feed, plan.config.train, storage, Ranks(), lambda metrics: None)
    assert task.rows == cached.rows
    runs.assert_same(task.weights, cached.weights)
    assert task.spec.val_cases == cached.spec.val_cases


@pytest.mark.parametrize("minutes", [1e-9, 0.003])
def test_minutes_end_a_run_with_a_valid_checkpoint(
    runs: ModuleType, make_plan: Plans, minutes: float, tmp_path: Path
):
    plan = make_plan(**{"train.max_epochs": 1000, "train.minutes": minutes})
    task, metrics = runs.train(plan)
    assert 1 <= len(task.rows) < 3000
    assert metrics["step"] == len(task.rows)
    spec, _ = read_package(fetch_model(open_storage(plan.storage), tmp_path))
    assert spec.metrics == metrics
    state = load_state(open_storage(plan.storage))
    assert state is not None
    assert state["step"] == len(task.rows)  # no step was taken in vain


class _Poisoned:
    """A feed whose batches hold a NaN from some step on."""

    def __init__(self, feed: Any, step: int) -> None:
        self.feed, self.num_steps, self.step = feed, feed.num_steps, step

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(self.feed.epoch(epoch, first_step), first_step):
            if (epoch - 1) * self.num_steps + number >= self.step:
                batch.images[0, 0, 20, 20] = float("nan")
            yield batch


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(
    runs: ModuleType, make_plan: Plans, tmp_path: Path
):
    plan = make_plan()
    task, feed = runs.build(plan)
    storage = open_storage(plan.storage)
    with pytest.raises(
        TrainingError, match="became nan: the run diverged; lower the learning rate or turn on"
    ):
        fit(task, _Poisoned(feed, 7), plan.config.train, storage, Ranks(), lambda metrics: None)
    assert len(task.rows) == 7
    assert all(torch.isfinite(tensor).all() for tensor in task.net.state_dict().values())
    state = load_state(storage)
    assert state is not None
    assert state["step"] == 6
    read_package(fetch_model(storage, tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_check_finite(value: float):
    assert check_finite("the loss", 1.5) == 1.5
    with pytest.raises(TrainingError, match=r"^the loss became -?(nan|inf): the run diverged; lower"):
        check_finite("the loss", value)


def test_the_checkpoint_is_the_model_that_validation_judged(
    runs: ModuleType, make_plan: Plans, tmp_path: Path
):
    plan = make_plan()
    task, _ = runs.train(plan)
    package = fetch_model(open_storage(plan.storage), tmp_path)
    spec, net = read_package(package)
    for name, tensor in task.average.weights.items():
        assert torch.equal(net.state_dict()[name], tensor), name
    assert not torch.equal(net.head.weight, task.net.head.weight)
    (stacks,) = task.val_cases
    labels = Predictor.load(package, "cpu").predict_stacks(stacks)
    dice = mean_dice([counts_in_case(stacks[0], labels)])
    assert dice["dice_mean"] == spec.metrics["dice_mean"]
    (val,) = plan.manifest.select("val")
    assert list(spec.val_cases) == [val.case_id]
    assert spec.train_patients == tuple(sorted(e.patient_id for e in plan.manifest.select("train")))


def test_pictures_are_the_same_slices_every_time(runs: ModuleType, make_plan: Plans):
    task, _ = runs.build(make_plan())
    task.validate()
    first = task.pictures
    task.train_step(next(runs.build(make_plan())[1].epoch(1)), 1, 0.5)
    task.validate()
    assert [p.title for p in task.pictures] == [p.title for p in first]
    for before, after in zip(first, task.pictures, strict=True):
        assert (before.image == after.image).all()
        assert (before.truth == after.truth).all()
        assert before.truth.any()
        assert before.image.shape == before.truth.shape == before.prediction.shape == (48, 48)


def test_gradients_are_clipped_to_the_limit_and_not_without_one(runs: ModuleType, make_plan: Plans):
    for limit in (0.0, 1e-3):
        task, feed = runs.build(make_plan(**{"optim.grad_clip": limit, "optim.ema": 0.0}))
        figures = task.train_step(next(feed.epoch(1)), 1, 0.5)
        assert figures["grad_norm"] > 0.01
        left = torch.cat([p.grad.flatten() for p in task.net.parameters()]).norm()
        assert float(left) == pytest.approx(limit or figures["grad_norm"], rel=1e-3)


def test_seeds_make_the_weights_and_the_order(runs: ModuleType, make_plan: Plans):
    def first_step(seed: int) -> float:
        task, feed = runs.build(make_plan(**{"train.seed": seed}))
        return float(task.train_step(next(feed.epoch(1)), 1, 0.0)["loss"])

    assert first_step(3) == first_step(3)
    assert first_step(3) != first_step(4)


def test_autocast_goes_by_the_precision():
    cpu = torch.device("cpu")
    x = torch.randn(1, 4, 8, 8)
    net = torch.nn.Conv2d(4, 4, 3)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(cpu, precision):
            assert net(x).dtype == dtype


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"optim.lr": 3e-3}, "settings"),
        ({"train.seed": 1}, "settings"),
        ({"train.batch_size": 8}, "settings"),
        ({"preprocess.neighbours": 1}, "settings"),
        ({"augment.strength": 0.5}, "settings"),
    ],
    ids=str,
)
def test_a_name_is_not_taken_over_by_other_settings(make_plan: Plans, settings: dict[str, Any], changed: str):
    plan = make_plan()
    storage = open_storage(plan.storage)
    claim_run(storage, plan)
    claim_run(storage, plan)
    other = dataclasses.replace(plan, config=override(plan.config, **settings))
    with pytest.raises(UsageError, match=f"the run 'run' exists with other {changed}; choose another"):
        claim_run(storage, other)


def test_a_run_from_before_a_setting_was_added_is_the_same(make_plan: Plans):
    plan = make_plan()
    storage = open_storage(plan.storage)
    claim_run(storage, plan)
    stored = json.loads(storage.read(CONFIG_FILE))
    stored["identity"]["settings"] = "of old"
    del stored["config"]["optim"]["ema"]
    storage.write(CONFIG_FILE, json.dumps(stored).encode())
    check_claim(storage, dataclasses.replace(plan, config=override(plan.config, **{"optim.ema": 0.99})))
    with pytest.raises(UsageError, match="exists with other settings;"):
        check_claim(storage, dataclasses.replace(plan, config=override(plan.config, **{"optim.ema": 0.5})))


def test_a_name_is_not_taken_over_by_other_data(make_plan: Plans):
    plan = make_plan()
    storage = open_storage(plan.storage)
    claim_run(storage, plan)
    with pytest.raises(UsageError, match="exists with other data;"):
        claim_run(storage, dataclasses.replace(plan, manifest=plan.manifest.with_fold(1)))
    both = dataclasses.replace(plan, config=override(plan.config, **{"optim.lr": 1.0}))
    with pytest.raises(UsageError, match="with other settings and other data;"):
        claim_run(storage, dataclasses.replace(both, manifest=plan.manifest.with_fold(1)))


def test_a_run_goes_on_for_longer_and_on_other_ranks_under_its_name(make_plan: Plans):
    plan = make_plan()
    storage = open_storage(plan.storage)
    claim_run(storage, plan)
    for settings in ({"train.max_epochs": 9}, {"train.minutes": 3.0}, {"train.num_workers": 2}):
        claim_run(storage, dataclasses.replace(plan, config=override(plan.config, **settings)))


def test_two_nodes_vary_their_samples_by_draws_of_their_own(runs: ModuleType, make_plan: Plans) -> None:
    """Each numbers its samples from 0 on."""
    (one, feed), (same, _), (other, _) = (
        runs.build(make_plan(), Ranks(node_rank=number)) for number in (0, 0, 1)
    )
    batch = next(iter(feed.epoch(1)))
    varied = one.augment(batch, 1)[0]
    assert torch.equal(varied, same.augment(batch, 1)[0])
    assert not torch.equal(varied, other.augment(batch, 1)[0])


def test_the_objective_is_the_mean_of_the_last_two_validations_across_a_resume(
    runs: ModuleType, make_plan: Plans
):
    plan = make_plan(**{"train.max_epochs": 4, "train.num_validations": 4})
    history: list[dict[str, float]] = []
    built, feed = runs.build(plan)
    fit(built, feed, plan.config.train, open_storage(plan.storage), Ranks(), history.append)
    scores = [row["present_dice"] - row["false_alarms"] for row in history]
    assert len(set(scores)) > 1
    expected = [scores[0], *(sum(pair) / 2 for pair in itertools.pairwise(scores))]
    assert [row["objective"] for row in history] == pytest.approx(expected)

    again, _ = runs.build(plan)
    again.load_state(built.state())
    later = again.validate()
    assert later["objective"] == pytest.approx(later["present_dice"] - later["false_alarms"])
    assert again.precisions == built.precisions == {"training": "fp32", "prediction": "fp32"}
