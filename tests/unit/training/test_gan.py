"""Super-resolution through the loop: resumed equals uninterrupted, stages, collapse, and how a run may end."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from glioray.config import override
from glioray.engine.checkpoint import Saver, fetch_model, load_state
from glioray.engine.loop import CLOCKS
from glioray.engine.run import RunPlan, claim_run
from glioray.errors import DataError, DivergenceError, ModelError, StorageError, UsageError
from glioray.slices.store import Batch
from glioray.storage import FileStorage, open_storage
from glioray.tasks.segmentation.package import ModelSpec, write_package
from glioray.tasks.segmentation.recipes import unet_tiny
from glioray.tasks.superres.config import COLLAPSE_COMPONENTS
from glioray.tasks.superres.features import judge_extractor
from glioray.tasks.superres.learner import GanLearner
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.package import SuperResSpec, read_superres
from glioray.tasks.superres.recipes import mri_tiny

Plans = Callable[..., RunPlan]
EMA = {"optim_g.ema": 0.9}
# A run that nothing can save: a rate that throws the generator out of the world at its first steps.
RUINOUS = {
    "optim_g.name": "adam",
    "optim_g.lr": 0.1,
    "pretrain.share": 0.0,
    "train.max_epochs": 8,
    "train.num_validations": 8,
}


def _lasting(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if name not in CLOCKS}


def _state(plan: RunPlan) -> dict[str, Any]:
    """The latest checkpoint, without its clocks."""
    state = load_state(open_storage(plan.storage))
    assert state is not None
    return {**state, "metrics": _lasting(state["metrics"]), "spent_s": 0.0, "validation_s": 0.0}


def _package(plan: RunPlan, folder: Path) -> tuple[SuperResSpec, dict[str, torch.nn.Module]]:
    return read_superres(fetch_model(open_storage(plan.storage), folder))


@pytest.mark.parametrize(
    "settings",
    [
        {**EMA, "train.precision": "fp32", "optim_g.name": "adam", "optim_d.name": "rmsprop"},
        {
            **EMA,
            "train.precision": "bf16",
            "d_steps": 2,
            "discriminator.name": "vgg",
            "discriminator.options": {"width": 2, "norm": "batch"},
            "generator.options.norm": "batch",
            "loss.r1": 0.5,
            "loss.r1_every": 2,
            "loss.instance_noise": 0.05,
            "degrade.noise": 0.02,
        },
    ],
    ids=["fp32", "bf16"],
)
@pytest.mark.contracts
def test_resumed_equals_uninterrupted(gan_runs: ModuleType, make_gan_plan: Plans, settings: dict[str, Any]):
    """A run that dies one step after each validation, the switch of stages at step 4 among them."""
    settings = {"train.max_epochs": 4, "pretrain.share": 0.34, **settings}
    uninterrupted, plan = make_gan_plan(**settings), make_gan_plan(**settings)
    whole, whole_metrics, whole_reports = gan_runs.train(uninterrupted)
    rows, weights, reports = [], [], []
    for _ in range(3):
        # Each time three steps are saved, and a fourth, or the first of all, is lost.
        tasks: list[Any] = []
        with pytest.raises(gan_runs.Killed):
            gan_runs.train(plan, task=gan_runs.killed_at(4, gan_runs.Recorded), change=tasks.append)
        torch.manual_seed(99)  # another process has other numbers up its sleeve
        rows += tasks[0].rows[:3]
        weights += tasks[0].weights[:3]
    resumed, metrics, last = gan_runs.train(plan)
    reports += last
    assert len(resumed.rows) == 3
    assert rows + resumed.rows == whole.rows
    for step, (found, expected) in enumerate(zip(weights + resumed.weights, whole.weights, strict=True)):
        gan_runs.assert_same(found, expected, f"step {step}")
    gan_runs.assert_same(_state(plan), _state(uninterrupted))
    assert _state(plan)["task"]["num_d_steps"] == 12 - 5  # steps 0 to 4 are before .34 of the run
    assert _lasting(metrics) == _lasting(whole_metrics) == _lasting(whole_reports[-1])
    assert _lasting(reports[-1]) == _lasting(whole_reports[-1])


def test_resumed_between_checkpoints_equals_uninterrupted(
    gan_runs: ModuleType, make_gan_plan: Plans, monkeypatch: pytest.MonkeyPatch
):
    """A run that saves after each step and dies in both stages, at the first step of the second among them."""
    monkeypatch.setattr(Saver, "is_busy", False)
    settings = {**EMA, "pretrain.share": 0.34, "train.num_validations": 2, "d_steps": 2}
    uninterrupted, plan = make_gan_plan(**settings), make_gan_plan(**settings)
    whole, _, _ = gan_runs.train(uninterrupted)
    rows = []
    for num_steps in (2, 3, 3):  # dead after 2, 5 and 8 of 12 steps
        tasks: list[Any] = []
        killed = gan_runs.killed_at(num_steps, gan_runs.Recorded)
        with pytest.raises(gan_runs.Killed):
            gan_runs.train(plan, task=killed, change=tasks.append, save_every_s=0)
        torch.manual_seed(99)
        rows += tasks[0].rows
    resumed, _, _ = gan_runs.train(plan, save_every_s=0)
    assert rows + resumed.rows == whole.rows
    gan_runs.assert_same(_state(plan), _state(uninterrupted))


def test_a_run_keeps_the_precision_that_it_chose_first(gan_runs: ModuleType, make_gan_plan: Plans):
    """Also where it resumes on a machine that would choose another one."""
    settings = {"train.precision": "auto", "train.max_epochs": 4}
    plan = dataclasses.replace(make_gan_plan(**settings), agree=lambda work, own: "bf16")
    with pytest.raises(gan_runs.Killed):
        gan_runs.train(plan, task=gan_runs.killed_at(4, gan_runs.Recorded))
    resumed, _, _ = gan_runs.train(dataclasses.replace(plan, agree=lambda work, own: "fp32"))
    assert resumed.precisions == {"training": "bf16", "super-resolution": "bf16"}


class _Failing(FileStorage):
    """A folder whose n-th write from now on fails."""

    def __init__(self, uri: str, number: int) -> None:
        super().__init__(uri)
        self.left = number

    def write(self, key: str, data: bytes) -> None:
        self.left -= 1
        if self.left < 0:
            raise StorageError("the disk is full; free some space")
        super().write(key, data)


@pytest.mark.contracts
def test_a_crash_at_any_write_costs_nothing_but_time(
    gan_runs: ModuleType, make_gan_plan: Plans, tmp_path: Path
):
    settings = {**EMA, "train.max_epochs": 2, "pretrain.share": 0.5}
    uninterrupted = make_gan_plan(**settings)
    gan_runs.train(uninterrupted)
    expected_spec, expected = _package(uninterrupted, tmp_path / "whole")
    # Four writes a checkpoint: the state, the weights, the description, the pointer.
    for number in range(2 * 4):
        plan = make_gan_plan(**settings)
        with pytest.raises(StorageError):
            gan_runs.train(plan, storage=_Failing(plan.storage, number))
        assert (load_state(open_storage(plan.storage)) is None) is (number < 4)
        gan_runs.train(plan)
        gan_runs.assert_same(_state(plan), _state(uninterrupted))
        spec, nets = _package(plan, tmp_path / str(number))
        assert _lasting(spec.metrics) == _lasting(expected_spec.metrics)
        gan_runs.assert_same({n: dict(net.state_dict()) for n, net in nets.items()},
                     {n: dict(net.state_dict()) for n, net in expected.items()})  # fmt: skip


def test_every_validation_gives_the_same_finite_figures(gan_runs: ModuleType, make_gan_plan: Plans):
    plan = make_gan_plan(**EMA)
    _, metrics, reports = gan_runs.train(plan)
    judged = {"psnr", "ssim", "nrmse", "hfen", "psnr_whole", "bicubic_psnr", "bicubic_hfen_whole", "hf_db"}
    judged |= {"bicubic_hf_db", "gain_psnr", "quality", "objective", "stage", "is_collapsed"}
    judged |= {"collapse_score", "collapse_reason", *(f"collapse_{name}" for name in COLLAPSE_COMPONENTS)}
    judged |= {"epoch", "step", "num_slices", "progress", *CLOCKS}
    pixel = {"train_pixel", "train_loss", "train_grad_g", "train_rate_g"}
    game = {"train_adversarial", "train_d_loss", "train_d_real", "train_d_fake", "train_grad_d"}
    game |= {"train_grad_ratio", "train_rate_d"}
    for number, report in enumerate(reports):
        assert judged | pixel <= report.keys()
        assert (game <= report.keys()) is (number > 0)
        assert all(type(value) is float or type(value) is int for value in report.values())
        assert all(math.isfinite(value) for value in report.values())
    assert [report["stage"] for report in reports] == [0, 1, 1, 1]
    assert 0 < reports[-1]["train_d_real"] < 1
    assert metrics["objective"] == metrics["quality"]
    assert metrics["gain_psnr"] == pytest.approx(metrics["psnr"] - metrics["bicubic_psnr"])


def test_the_checkpoint_is_the_model_that_was_judged(
    gan_runs: ModuleType, make_gan_plan: Plans, tmp_path: Path
):
    plan = make_gan_plan(**EMA)
    task, metrics, _ = gan_runs.train(plan)
    package = fetch_model(open_storage(plan.storage), tmp_path)
    spec, nets = read_superres(package)
    assert spec.stages == tuple(nets) == ("psnr", "gan")
    assert spec.collapse == "healthy"
    assert spec.metrics == metrics
    assert spec.train_patients == tuple(sorted(e.patient_id for e in plan.manifest.select("train")))
    for name, tensor in task.average.weights.items():
        assert torch.equal(nets["gan"].state_dict()[name], tensor), name
        assert torch.equal(nets["psnr"].state_dict()[name], task.psnr[name]), name
    assert not torch.equal(task.average.weights["first.0.weight"], task.generator.first[0].weight)
    assert not torch.equal(nets["psnr"].first[0].weight, nets["gan"].first[0].weight)
    judged = task.judge(SuperResolver.load(package, "cpu"), True)["metrics"]
    for name in ("psnr", "hfen", "quality", "collapse_score"):
        assert judged[name] == metrics[name], name


def test_the_adversarial_stage_begins_with_the_average_of_the_pixel_stage(
    gan_runs: ModuleType, make_gan_plan: Plans
):
    task, feed = gan_runs.build(make_gan_plan(**EMA))
    batches = list(feed.epoch(1))
    for batch in batches[:2]:
        task.train_step(batch, 1, 0.1)
    average = {name: tensor.clone() for name, tensor in task.average.weights.items()}
    assert not torch.equal(average["first.0.weight"], task.generator.state_dict()["first.0.weight"])
    assert task.optimizers["pixel"].state
    assert not task.optimizers["g"].state
    task._begin_game()
    for name, tensor in task.generator.state_dict().items():
        assert torch.equal(tensor, average[name]), name
        assert torch.equal(task.psnr[name], average[name]), name
    assert task.average.num_updates == 0


def test_the_pixel_stage_alone_is_a_psnr_model(gan_runs: ModuleType, make_gan_plan: Plans, tmp_path: Path):
    plan = make_gan_plan(
        **{
            "pretrain.share": 1.0,
            "pretrain.schedule": "cosine",
            "pretrain.warmup": 0.25,
            "pretrain.rate": 0.2,
        }
    )
    task, metrics, reports = gan_runs.train(plan)
    spec, nets = _package(plan, tmp_path)
    assert spec.stages == tuple(nets) == ("psnr",)
    assert [report["stage"] for report in reports] == [0, 0, 0, 0]
    assert task.num_d_steps == 0
    assert "train_d_loss" not in metrics
    rates = [row["rate_g"] for row in task.rows]
    assert rates[0] == pytest.approx(0.002)
    assert rates[:4] == sorted(rates[:4])
    assert rates[3] == 0.2
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] < 0.02


def test_the_adversarial_stage_alone_holds_no_psnr_model(
    gan_runs: ModuleType, make_gan_plan: Plans, tmp_path: Path
):
    plan = make_gan_plan(**{"pretrain.share": 0.0, "train.max_epochs": 1})
    task, _, reports = gan_runs.train(plan)
    spec, nets = _package(plan, tmp_path)
    assert spec.stages == tuple(nets) == ("gan",)
    assert [report["stage"] for report in reports] == [1]
    assert task.num_d_steps == 3


@pytest.fixture(scope="module")
def pretrained(gan_runs: ModuleType, make_gan_plan: Plans) -> RunPlan:
    """A run of pixels alone, that is over."""
    plan = make_gan_plan(**{"pretrain.share": 1.0, "train.max_epochs": 1})
    gan_runs.train(plan)
    return plan


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_run_begins_with_another_ones_generator(
    gan_runs: ModuleType, make_gan_plan: Plans, pretrained: RunPlan, tmp_path: Path, share: float
):
    source = {"pretrain.source": pretrained.storage, "pretrain.share": share}
    plan = make_gan_plan(**source, **{"train.max_epochs": 2, "train.num_validations": 2, "train.seed": 5})
    _, given = _package(pretrained, tmp_path / "given")
    first = given["psnr"].state_dict()
    task, _ = gan_runs.build(plan)
    gan_runs.assert_same(dict(task.generator.state_dict()), dict(first))
    task, _, reports = gan_runs.train(plan)
    spec, nets = _package(plan, tmp_path / "made")
    assert spec.stages == ("psnr", "gan")
    assert [report["stage"] for report in reports] == ([1, 1] if share == 0 else [0, 1])
    kept = nets["psnr"].state_dict()
    # With a pixel stage of its own the PSNR model is what came of that.
    same = [torch.equal(kept[name], first[name]) for name in first]
    assert all(same) if share == 0 else not any(same)
    if share:
        gan_runs.assert_same(dict(kept), {n.removeprefix("generator."): t for n, t in task.weights[2].items()
                                  if n.startswith("generator.")})  # fmt: skip
    assert not torch.equal(nets["gan"].first[0].weight, nets["psnr"].first[0].weight)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"generator.options.width": 8}, r"has the generator .*'width': 4.* but this run wants .*'width': 8"),
        (
            {"degrade.name": "kspace"},
            r"has the degrade .*bicubic_aa.* wants .*kspace.*; start from a model of",
        ),
        ({"degrade.lr_size": 10}, r"has the degrade .*lr_size=8.* wants .*lr_size=10"),
        ({"channels": "joint"}, "has the channels each but this run wants joint"),
    ],
    ids=["generator", "degradation", "scale", "channels"],
)
def test_a_source_of_another_kind(
    gan_runs: ModuleType, make_gan_plan: Plans, pretrained: RunPlan, settings: dict[str, Any], sentence: str
):
    plan = make_gan_plan(**{"pretrain.source": pretrained.storage, **settings})
    with pytest.raises(ModelError, match=sentence):
        gan_runs.build(plan)


def test_a_source_without_a_psnr_generator(gan_runs: ModuleType, make_gan_plan: Plans):
    source = make_gan_plan(**{"pretrain.share": 0.0, "train.max_epochs": 1})
    gan_runs.train(source)
    with pytest.raises(ModelError, match="has no PSNR generator to start from; name a model with a"):
        gan_runs.build(make_gan_plan(**{"pretrain.source": source.storage}))


def test_a_healthy_run_stays_healthy(gan_runs: ModuleType, make_gan_plan: Plans):
    settings = {"optim_g.name": "adam", "optim_g.lr": 1e-3, "pretrain.rate": 5e-3, "optim_d.name": "adam"}
    settings |= {"optim_d.lr": 1e-3, "loss.adversarial_weight": 5e-3, "pretrain.schedule": "constant"}
    more = {"train.max_epochs": 8, "train.num_validations": 4, "pretrain.share": 0.5, **EMA}
    task, metrics, reports = gan_runs.train(make_gan_plan(**settings, **more))
    assert task.stopped == ""
    assert metrics["progress"] == 1
    for report in reports:
        assert report["collapse_score"] < 0.3
        assert report["is_collapsed"] == 0
        assert report["objective"] == report["quality"]
    # It ends near bicubic, with which it begins; how much better it becomes in so few steps is chance.
    assert metrics["gain_psnr"] > -1


def test_the_pixel_stage_learns(gan_runs: ModuleType, make_gan_plan: Plans):
    """Without bicubic to begin with, an image has to be learned: some 6 dB in 27 steps, whatever the arithmetic."""
    settings = {"generator.options.skip": False, "optim_g.name": "adam", "pretrain.rate": 5e-3, **EMA}
    plan = make_gan_plan(
        **settings,
        **{"pretrain.schedule": "constant", "pretrain.share": 1.0, "collapse.stop": False},
        **{"train.max_epochs": 9, "train.num_validations": 3},
    )
    task, _, reports = gan_runs.train(plan)
    losses = [row["pixel"] for row in task.rows]
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])
    assert reports[-1]["psnr"] > reports[0]["psnr"] + 2


def test_a_collapsed_run_ends_itself_and_stays_over(
    gan_runs: ModuleType, make_gan_plan: Plans, tmp_path: Path
):
    plan = make_gan_plan(**RUINOUS)
    task, metrics, reports = gan_runs.train(plan)
    # Two evaluations of grace, and two bad ones in a row.
    assert [report["is_collapsed"] for report in reports] == [0, 0, 0, 1]
    assert all(report["collapse_score"] >= 0.5 for report in reports[2:])
    assert metrics["progress"] < 1
    reason = COLLAPSE_COMPONENTS[int(metrics["collapse_reason"])]
    assert task.stopped == f"collapsed: {reason} {metrics['collapse_score']:.2f}"
    assert metrics["objective"] == pytest.approx(-1 - max(r["collapse_score"] for r in reports[2:]))
    spec, _ = _package(plan, tmp_path)
    assert (spec.collapse, spec.reason, spec.metrics) == ("collapsed", reason, metrics)
    # Started again, also for longer, it is over.
    for config in (plan.config, override(plan.config, **{"train.max_epochs": 20})):
        again, figures, more = gan_runs.train(dataclasses.replace(plan, config=config))
        assert again.rows == more == []
        assert again.stopped == task.stopped
        assert figures == metrics


def test_a_collapsed_run_goes_on_where_it_is_told_to(
    gan_runs: ModuleType, make_gan_plan: Plans, tmp_path: Path
):
    plan = make_gan_plan(**RUINOUS, **{"collapse.stop": False})
    task, metrics, reports = gan_runs.train(plan)
    assert task.stopped == ""
    assert metrics["progress"] == 1
    assert [report["is_collapsed"] for report in reports] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert metrics["objective"] <= -1.5
    assert _package(plan, tmp_path)[0].collapse == "collapsed"


def test_the_watch_remembers_through_an_interruption(gan_runs: ModuleType, make_gan_plan: Plans):
    """Dead between the first bad evaluation that counts and the second."""
    plan = make_gan_plan(**RUINOUS)
    with pytest.raises(gan_runs.Killed):
        gan_runs.train(plan, task=gan_runs.killed_at(10, gan_runs.Recorded))
    assert load_state(open_storage(plan.storage))["step"] == 9  # type: ignore[index]
    task, metrics, reports = gan_runs.train(plan)
    assert [report["is_collapsed"] for report in reports] == [1]
    assert metrics["step"] == 12
    assert task.stopped


def test_outputs_that_are_no_numbers_count_at_once(gan_runs: ModuleType, make_gan_plan: Plans):
    task, _ = gan_runs.build(make_gan_plan())
    with torch.no_grad():
        task.generator.first[0].bias.fill_(float("nan"))
    metrics = task.validate()
    assert metrics["is_collapsed"] == metrics["collapse_score"] == 1
    assert all(math.isfinite(value) for value in metrics.values())
    assert task.stopped == "collapsed: invalid 1.00"
    assert task.spec.collapse == "collapsed"


def test_divergence_keeps_the_last_checkpoint(gan_runs: ModuleType, make_gan_plan: Plans, tmp_path: Path):
    plan = make_gan_plan()

    class Poisoned(gan_runs.Recorded):  # type: ignore[misc, name-defined]
        def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
            if len(self.rows) == 7:
                batch.images[:, :, 20:24, 20:24] = float("nan")
            return super().train_step(batch, epoch, progress)  # type: ignore[no-any-return]

    with pytest.raises(DivergenceError, match="the discriminator's gradient became non-finite"):
        gan_runs.train(plan, task=Poisoned)
    assert load_state(open_storage(plan.storage))["step"] == 6  # type: ignore[index]
    _, nets = _package(plan, tmp_path)
    assert all(torch.isfinite(t).all() for net in nets.values() for t in net.state_dict().values())


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_segmenter_s_judgement_comes_last(gan_runs: ModuleType, make_gan_plan: Plans, weight: float):
    settings = {"use.segmenter": "models:/unet/1", "use.weight": weight, "train.max_epochs": 2}
    figures = {"dice_sr": 0.7, "dice_bicubic": 0.5, "dice_hr": 0.8}
    calls: list[Any] = []

    def judge(resolver: SuperResolver) -> dict[str, float]:
        calls.append(resolver)
        return dict(figures)

    plan = make_gan_plan(**{"train.max_epochs": 2})
    judged = plan.config.replace(use=override(plan.config, **settings).use)

    def change(task: Any) -> None:
        task.config, task.judge_use = judged, judge

    _, metrics, reports = gan_runs.train(plan, change=change)
    assert len(calls) == 1
    assert {name: metrics[name] for name in figures} == figures
    assert not any(name.startswith("dice") for name in reports[0])
    assert metrics["objective"] == pytest.approx(metrics["quality"] + weight * 0.2)


def test_patients_that_the_source_was_trained_on_are_not_unseen(
    gan_runs: ModuleType, make_gan_plan: Plans, pretrained: RunPlan, caplog: pytest.LogCaptureFixture
):
    splits = pretrained.manifest.splits
    other = dataclasses.replace(
        make_gan_plan(**{"pretrain.source": pretrained.storage}),
        manifest=dataclasses.replace(
            pretrained.manifest, splits={**splits, "train": splits["val"], "val": splits["train"]}
        ),
    )
    with caplog.at_level(logging.WARNING, "glioray"):
        task, _ = gan_runs.build(other)
    every = {entry.patient_id for entry in pretrained.manifest.select("labelled")}
    assert set(task.spec.train_patients) == every
    assert f"trained on {len(splits['train'])} of the validation patients" in caplog.text


def test_weights_that_shall_judge_and_cannot_are_a_mistake(tmp_path: Path):
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    config = override(mri_tiny(), **{"collapse.judge": "auto"})
    named = override(config, **{"collapse.judge_weights": str(tmp_path / "weights.pth")})
    with pytest.raises(UsageError, match=r"weights.pth' is not a state dict of torchvision's vgg16"):
        judge_extractor(named)


def test_a_segmenter_that_cannot_judge_is_refused_before_training(
    gan_runs: ModuleType, make_gan_plan: Plans, tmp_path: Path
):
    spec = ModelSpec(
        config=override(unet_tiny(), **{"preprocess.normalize": "none"}),
        out_channels=3,
        spacing_mm=(1.0, 1.0, 1.0),
        manifest_hash="m",
    )
    write_package(tmp_path / "unet", spec, spec.build().state_dict())
    plan = make_gan_plan(**{"use.segmenter": str(tmp_path / "unet")})
    with pytest.raises(UsageError, match="normalises by 'none' and cannot see"):
        gan_runs.build(plan)


def test_too_few_images_to_judge_by(gan_runs: ModuleType, make_gan_plan: Plans):
    plan = make_gan_plan(**{"collapse.apart_mm": 60.0, "collapse.min_slices": 16})
    with pytest.raises(DataError, match=r"give \d+ images to judge collapse by.*expected 16, so validate on"):
        gan_runs.build(plan)
    none = dataclasses.replace(plan.manifest, splits={**plan.manifest.splits, "val": ()})
    with pytest.raises(DataError, match="is scored on validation cases but the split has none"):
        gan_runs.build(dataclasses.replace(plan, manifest=none))


def test_minutes_end_a_run_in_either_stage(gan_runs: ModuleType, make_gan_plan: Plans, tmp_path: Path):
    plan = make_gan_plan(**{"train.max_epochs": 1000, "train.minutes": 0.01})
    task, metrics, _ = gan_runs.train(plan)
    assert 1 <= len(task.rows) < 3000
    assert metrics["progress"] == 1
    spec, _ = _package(plan, tmp_path)
    assert spec.metrics == metrics


def test_a_name_is_one_run_s(make_gan_plan: Plans):
    plan = make_gan_plan()
    claim_run(open_storage(plan.storage), plan)
    claim_run(open_storage(plan.storage), plan)
    assert json.loads(open_storage(plan.storage).read("config.json"))["config"]["recipe"] == "test"


def test_seeds_make_the_weights_and_the_pairs(gan_runs: ModuleType, make_gan_plan: Plans):
    def first(seed: int) -> float:
        task, feed = gan_runs.build(make_gan_plan(**{"train.seed": seed}))
        return float(task.train_step(next(feed.epoch(1)), 1, 0.0)["loss"])

    assert first(3) == first(3)
    assert first(3) != first(4)


def test_divergence_in_the_pixel_stage_names_its_rate(gan_runs: ModuleType, make_gan_plan: Plans):
    task, feed = gan_runs.build(make_gan_plan())
    task.pretrain_pixel = lambda sr, hr: sr.mean() + float("inf")
    with pytest.raises(
        DivergenceError,
        match=r"the generator's gradient .*its pixel loss is not finite\): the run diverged; lower pretrain\.rate",
    ):
        task.train_step(next(feed.epoch(1)), 1, 0.0)


def test_the_encoder_of_a_segmentation_model_is_an_extractor(
    gan_runs: ModuleType, make_gan_plan: Plans, tmp_path: Path
):
    spec = ModelSpec(
        config=unet_tiny(), out_channels=3, spacing_mm=(1.0, 1.0, 1.0), manifest_hash="m", regions=("wt",)
    )
    write_package(tmp_path / "unet", spec, spec.build().state_dict())
    settings = {
        "loss.perceptual_weight": 0.1,
        "loss.extractor": "unet",
        "loss.extractor_weights": str(tmp_path / "unet"),
        "loss.layers": {"level1": 1.0, "level3": 1.0},
        "pretrain.share": 0.0,
    }
    task, _ = gan_runs.build(make_gan_plan(**settings, channels="joint"), task=GanLearner)
    assert re.fullmatch(r"unet [0-9a-f]{12}", task.spec.extractors["loss"])
    # The spec holds the intensities of the training slices inside the brain.
    assert task.perceptual.features.mean.shape == (4, 1, 1)
    assert (task.perceptual.features.std > 0.01).all()
    with pytest.raises(
        UsageError, match=r"sees 4 channels \(t1, t1c, t2, flair\) but this run makes .* channels each"
    ):
        gan_runs.build(make_gan_plan(**settings))
    with pytest.raises(UsageError, match=r"'unet' without a model; name one by loss\.extractor_weights"):
        gan_runs.build(make_gan_plan(**{**settings, "loss.extractor_weights": None}, channels="joint"))


def test_a_discriminator_that_has_won_is_told_of(
    gan_runs: ModuleType, make_gan_plan: Plans, caplog: pytest.LogCaptureFixture
):
    task, _ = gan_runs.build(make_gan_plan())
    task.certainty = [0.9, 0.94]
    with caplog.at_level(logging.WARNING, "glioray"):
        task.validate()
        assert "discriminator" not in caplog.text
        task.certainty = [0.97, 0.99]
        task.validate()
    assert "98 % sure" in caplog.text
    assert task.certainty == []


def test_tags_name_the_extractors_and_the_verdict(gan_runs: ModuleType, make_gan_plan: Plans):
    task, _ = gan_runs.build(make_gan_plan())
    assert task.tags == {
        "glioray.extractor_loss": "none", "glioray.extractor_judge": "none", "glioray.collapse": "unjudged"
    }  # fmt: skip
    task.validate()
    assert task.tags["glioray.collapse"] == "healthy"
