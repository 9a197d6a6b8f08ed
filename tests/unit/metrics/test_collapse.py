"""The collapse score detects every simulated collapse and no healthy output, on phantoms and real slices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from glioray.cases.layouts import discover_cases
from glioray.cases.load import load_case
from glioray.config import PreprocessConfig
from glioray.slices.preprocess import SliceStack, preprocess
from glioray.storage import open_storage
from glioray.tasks.superres.collapse import CollapseReport, CollapseWatch, collapse_report, lost_share
from glioray.tasks.superres.config import COLLAPSE_COMPONENTS, CollapseConfig, DegradeConfig, GanConfig
from glioray.tasks.superres.degrade import degrade
from glioray.tasks.superres.panel import pick_panel
from glioray.tasks.superres.planted import HEALTHY, HEALTHY_LIMIT, PLANTED, calibrate, plant
from glioray.tasks.superres.recipes import build_gan_recipe

Stacks = list[tuple[SliceStack, ...]]


def load_stacks(folder: Path, size: tuple[int, int], modalities: Sequence[str]) -> Stacks:
    storage = open_storage(folder)
    wanted = PreprocessConfig(normalize="unit", size=size, modalities=tuple(modalities))
    return [preprocess(load_case(storage, case), wanted) for case in discover_cases(storage)[0]]


def lower(images: Tensor, config: DegradeConfig) -> Tensor:
    return degrade(images[:, None], (config.lr_size, config.lr_size), config)[:, 0]


def missed(stacks: Stacks, config: GanConfig) -> list[str]:
    """The rows of the calibration that are on the wrong side of their threshold."""
    panel = pick_panel(stacks, {case[0].case_id: case[0].case_id for case in stacks}, config)
    assert len(panel) == 64
    hr, again = panel.hr[:, 0], partial(lower, config=config.degrade)
    rows = calibrate(hr, again(hr), again, config.collapse)
    assert [row.name for row in rows] == [*PLANTED, *HEALTHY]
    assert all(row.is_ok == (row.score >= 0.5) for row in rows if row.expected == "collapsed")
    dead = [row for row in rows if row.expected == "dead"]
    assert len(dead) == 3
    assert all(row.is_ok == (row.reason == "dead" and row.score >= 0.5) for row in dead)
    assert all(row.is_ok == (row.score < HEALTHY_LIMIT) for row in rows if row.expected == "healthy")
    return [f"{row.name}: {row.score:.2f} by {row.reason}" for row in rows if not row.is_ok]


@pytest.fixture(scope="module")
def phantom_stacks(phantom_data: Path) -> Stacks:
    return load_stacks(phantom_data, (96, 96), ("flair",))


@pytest.fixture(scope="module")
def scene(phantom_stacks: Stacks) -> tuple[Tensor, Tensor]:
    """(hr, lr) of a panel of phantoms."""
    config = phantom_config(DegradeConfig(hr_size=64, lr_size=16))
    panel = pick_panel(phantom_stacks, {case[0].case_id: case[0].case_id for case in phantom_stacks}, config)
    return panel.hr[:, 0], lower(panel.hr[:, 0], config.degrade)


def phantom_config(degraded: DegradeConfig) -> GanConfig:
    return GanConfig(
        recipe="test",
        preprocess=PreprocessConfig(normalize="unit", size=(96, 96), modalities=("flair",)),
        degrade=degraded,
        collapse=CollapseConfig(per_patient=16, apart_mm=4),
    )


def judge(sr: Tensor, scene: tuple[Tensor, Tensor], config: CollapseConfig | None = None) -> CollapseReport:
    again = partial(lower, config=DegradeConfig(hr_size=64, lr_size=16))
    return collapse_report(sr, *scene, again, config or CollapseConfig())


def test_enough_kinds_of_collapse_are_simulated():
    assert len(PLANTED) >= 24
    assert not set(PLANTED) & set(HEALTHY)


@pytest.mark.parametrize(
    "degraded",
    [
        DegradeConfig(name="bicubic_aa", hr_size=64, lr_size=16),
        DegradeConfig(name="bicubic_aa", hr_size=64, lr_size=14),
        DegradeConfig(name="kspace", hr_size=64, lr_size=16),
        DegradeConfig(name="gaussian", hr_size=64, lr_size=16),
    ],
    ids=lambda degraded: f"{degraded.name} {degraded.lr_size}",
)
@pytest.mark.contracts
def test_collapsed_and_healthy_outputs_are_separated_on_phantoms(
    phantom_stacks: Stacks, degraded: DegradeConfig
):
    assert missed(phantom_stacks, phantom_config(degraded)) == []


@pytest.fixture(scope="module")
def real_stacks(real_data: Path) -> Stacks:
    return load_stacks(real_data / "brats2021", (192, 160), PreprocessConfig().modalities)


@pytest.mark.real
@pytest.mark.parametrize(
    ("modality", "degraded"),
    [
        (None, DegradeConfig()),
        (None, DegradeConfig(lr_size=28)),
        ("flair", DegradeConfig(name="kspace")),
        ("t1", DegradeConfig(name="gaussian")),
    ],
    ids=["all", "all 28", "flair kspace", "t1 gaussian"],
)
def test_collapsed_and_healthy_outputs_are_separated_on_real_slices(
    real_stacks: Stacks, modality: str | None, degraded: DegradeConfig
):
    config = build_gan_recipe("mri").replace(degrade=degraded)
    if modality is not None:
        channel = config.preprocess.modalities.index(modality)
        alone = slice(channel, channel + 1)
        config = config.replace(preprocess=config.preprocess.replace(modalities=(modality,)))
        real_stacks = [
            (dataclasses.replace(case[0], images=case[0].images[:, alone]),) for case in real_stacks
        ]
    assert missed(real_stacks, config) == []


@pytest.mark.real
@pytest.mark.parametrize("inside", [False, True], ids=["everywhere", "inside the brain"])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.25])
def test_a_faint_repeated_texture_is_detected(real_stacks: Stacks, inside: bool, share: float):
    """The texture has a fraction of the energy of real detail and is added to an interpolation, which has little."""
    config = build_gan_recipe("mri")
    panel = pick_panel(real_stacks, {case[0].case_id: case[0].case_id for case in real_stacks}, config)
    hr, again = panel.hr[:, 0], partial(lower, config=config.degrade)
    bicubic = plant("bicubic", hr, again(hr))

    def detail(images: Tensor) -> Tensor:
        return images - plant("bicubic", images, again(images))

    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((128, 128), dtype=np.float32))
    pattern = noise * (hr > 0) if inside else noise.expand_as(hr)
    pattern = pattern * (share * detail(hr).square().mean() / detail(pattern).square().mean()).sqrt()
    report = collapse_report(bicubic + pattern, hr, again(hr), again, config.collapse)
    assert report.components["texture"] >= 0.5


@pytest.mark.parametrize("name", [*PLANTED, *HEALTHY])
def test_simulated_outputs_are_reproducible_and_their_reports_are_finite(
    name: str, scene: tuple[Tensor, Tensor]
):
    made = plant(name, *scene)
    assert made.shape == scene[0].shape
    torch.testing.assert_close(plant(name, *scene), made, rtol=0, atol=0, equal_nan=True)
    report = judge(made, scene)
    assert tuple(report.components) == tuple(report.values) == COLLAPSE_COMPONENTS
    assert all(map(math.isfinite, [*report.values.values(), report.score]))
    assert all(0 <= value <= 1 for value in report.components.values())
    assert report.score == max(report.components.values()) == report.components[report.reason]


def test_an_unknown_simulated_output_lists_the_available_ones():
    with pytest.raises(ValueError, match="'blank' is not a planted output; choose from constant, black"):
        plant("blank", torch.zeros(2, 8, 8), torch.zeros(2, 4, 4))


def test_one_bad_pixel_is_detected_and_changes_no_other_component(scene: tuple[Tensor, Tensor]):
    made = plant("some detail", *scene)
    healthy = judge(made, scene)
    assert healthy.is_finite
    made[5, 3, 3] = 0
    clean = judge(made, scene)
    for value in (math.nan, math.inf, -math.inf):
        made[5, 3, 3] = value
        report = judge(made, scene)
        assert (report.score, report.reason, report.is_finite) == (1.0, "invalid", False)
        if math.isnan(value):
            rest = [name for name in COLLAPSE_COMPONENTS if name != "invalid"]
            assert [report.values[name] for name in rest] == [clean.values[name] for name in rest]


def test_components_equal_their_definitions(scene: tuple[Tensor, Tensor]):
    hr, lr = scene
    num = len(hr)
    made = plant("quarter the mean", hr, lr)
    again = lower(made, DegradeConfig(hr_size=64, lr_size=16))
    points, inputs = (np.asarray(part.flatten(1), np.float64) for part in (again, lr))
    distances = ((points[:, None] - inputs[None]) ** 2).sum(-1)
    values = judge(made, scene).values
    assert values["conditioning"] == pytest.approx(1 - np.mean(distances.argmin(1) == np.arange(num)))

    among = ((inputs[:, None] - inputs[None]) ** 2).sum(-1)
    variance = np.median(among[np.triu_indices(num, 1)]) / 4

    def vendi(squares: np.ndarray) -> float:
        shares = np.linalg.eigvalsh(np.exp(-squares / (2 * variance)) / num)
        shares = shares[shares > 1e-12]
        return float(np.exp(-(shares * np.log(shares)).sum()))

    kept = (vendi(((points[:, None] - points[None]) ** 2).sum(-1)) - 1) / (vendi(among) - 1)
    assert values["diversity"] == pytest.approx(1 - kept, abs=1e-3)
    assert judge(hr, scene).values["diversity"] == pytest.approx(0, abs=1e-6)
    assert judge(plant("constant", hr, lr), scene).values["diversity"] == pytest.approx(1, abs=1e-6)
    assert judge(hr, scene).values["texture"] == judge(hr, scene).values["artefact"] == 0
    outside = hr.clone()
    outside[:, :16] = 1.2  # a quarter of the pixels
    assert judge(outside, scene).values["invalid"] == pytest.approx(0.25)


def test_repeated_detail_counts_in_proportion_to_its_energy(scene: tuple[Tensor, Tensor]):
    hr, lr = scene
    bicubic = plant("bicubic", hr, lr)
    pattern = torch.from_numpy(np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32))
    size = (hr - bicubic).square().mean().sqrt()
    assert judge(bicubic + 0.7 * size * pattern, scene).components["texture"] > 0.5
    flat = torch.full_like(hr, 0.4)
    assert judge(flat + 0.7 * size * pattern, scene).components["texture"] == 1
    assert judge(flat + 0.05 * size * pattern, scene).components["texture"] == 0


def test_the_order_of_the_panel_does_not_matter(scene: tuple[Tensor, Tensor]):
    made = plant("three eighths, nearest", *scene)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(made)))
    mixed = judge(made[order], (scene[0][order], scene[1][order]))
    assert mixed.values == pytest.approx(judge(made, scene).values, abs=1e-4)


def test_a_component_rises_between_its_bounds(scene: tuple[Tensor, Tensor]):
    made = plant("quarter the mean", *scene)
    value = judge(made, scene).values["conditioning"]
    config = CollapseConfig(conditioning=(value - 0.03, value + 0.01))
    assert judge(made, scene, config).components["conditioning"] == pytest.approx(0.75, abs=1e-6)


@pytest.mark.parametrize(
    ("hr", "message"),
    [
        (torch.rand(1, 64, 64), "of at least 2 images"),
        (torch.rand(1, 64, 64).repeat(4, 1, 1), "the same image"),
    ],
)
def test_an_unusable_panel_is_rejected(hr: Tensor, message: str):
    again = partial(lower, config=DegradeConfig(hr_size=64, lr_size=16))
    with pytest.raises(ValueError, match=message):
        collapse_report(hr, hr, again(hr), again, CollapseConfig())


def report_of(score: float, *, is_finite: bool = True) -> CollapseReport:
    return CollapseReport(score, "conditioning", {}, is_finite=is_finite)


def test_a_run_is_collapsed_after_grace_and_patience():
    scores = [1.0, 1.0, 0.9, 0.2, 0.6, 0.5, 0.1]
    in_a_row = CollapseWatch(CollapseConfig(grace=2, patience=2, window=2))
    assert [in_a_row.judge(report_of(score)) for score in scores] == [False] * 5 + [True, False]
    # Bad ones need not follow one another, but for those of the grace, and those too long ago.
    watch = CollapseWatch(CollapseConfig(grace=2, patience=2))
    assert [watch.judge(report_of(score)) for score in scores] == [False] * 4 + [True, True, False]
    leaping = CollapseWatch(CollapseConfig(grace=2, patience=2, window=5))
    scores = [0, 0, 1.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 1.0]
    assert [leaping.judge(report_of(score)) for score in scores] == [False] * 11 + [True]
    # One leap in the grace is forgiven, however the run goes on beside bicubic.
    forgiving = CollapseWatch(CollapseConfig(grace=1, patience=1))
    assert [forgiving.judge(report_of(score)) for score in (1.0, 0.21, 0.0, 0.39)] == [False] * 4
    # Evaluations of the pixel stage neither count nor use up the grace.
    watch = CollapseWatch(CollapseConfig(grace=1, patience=1))
    assert [watch.judge(report_of(1.0), adversarial=stage) for stage in (False, False, True, True)] == [
        False, False, False, True,
    ]  # fmt: skip


def test_values_that_are_not_finite_count_immediately():
    watch = CollapseWatch(CollapseConfig(grace=5, patience=3))
    assert watch.judge(report_of(1.0, is_finite=False), adversarial=False)
    assert watch.is_collapsed
    assert watch.objective(0.5) == -2


def test_a_resumed_watch_equals_an_uninterrupted_one():
    config = CollapseConfig(grace=2, patience=2)
    scores = [0.9, 0.9, 0.7, 0.1, 0.8, 0.9, 0.3, 0.2]
    whole = CollapseWatch(config)
    expected = [(whole.judge(report_of(score)), whole.objective(0.2)) for score in scores]
    for cut in range(len(scores)):
        watch = CollapseWatch(config)
        found = [(watch.judge(report_of(score)), watch.objective(0.2)) for score in scores[:cut]]
        resumed = CollapseWatch(config)
        resumed.load_state(watch.state())
        assert resumed.is_collapsed == watch.is_collapsed
        found += [(resumed.judge(report_of(score)), resumed.objective(0.2)) for score in scores[cut:]]
        assert found == expected


def lost_of(dead: float, collapse: float = 0.0) -> CollapseReport:
    parts = {"conditioning": collapse, "dead": dead}
    return CollapseReport(max(parts.values()), max(parts, key=lambda name: parts[name]), parts)


def verdicts(reports: Sequence[CollapseReport], **rules: int) -> list[str]:
    watch = CollapseWatch(CollapseConfig(**rules))
    found = []
    for report in reports:
        watch.judge(report)
        found.append(watch.verdict)
    return found


def test_a_run_that_lost_its_gain_for_good_is_dead():
    gone, back, leap = lost_of(1.0), lost_of(0.2), lost_of(0.0, collapse=1.0)
    assert verdicts([gone] * 6) == ["healthy"] * 4 + ["dead"] * 2
    # What comes back was not lost for good, however often.
    assert verdicts([gone, gone, back] * 4, grace=0) == ["healthy"] * 12
    # A leap in the grace, and dead from then on: the score alone stays below its threshold.
    assert verdicts([leap, *[lost_of(0.9, collapse=0.4)] * 4], grace=1) == ["healthy"] * 3 + ["dead"] * 2
    # A leap among dead evaluations is no sign of life; two leaps are a collapse.
    assert verdicts([gone, leap, gone], grace=0) == ["healthy", "healthy", "dead"]
    assert verdicts([gone, leap, leap, gone], grace=0)[2:] == ["collapsed", "dead"]
    assert verdicts([gone] * 3, grace=0, window=2) == ["healthy", "healthy", "dead"]
    # Before the adversarial stage there is nothing to lose.
    watch = CollapseWatch(CollapseConfig(grace=0))
    assert not any(watch.judge(gone, adversarial=False) for _ in range(5))


def test_a_dead_run_ranks_below_every_healthy_one():
    worst, dead = (CollapseWatch(CollapseConfig(grace=0)) for _ in range(2))
    worst.judge(lost_of(0.49))
    for _ in range(3):
        dead.judge(lost_of(0.6))
    assert dead.verdict == "dead"
    assert worst.objective(-1) == -1 > dead.objective(0.9) == -1.6
    # Too short to be dead for good, but its model is: of the latest evaluation alone.
    short = CollapseWatch(CollapseConfig())
    short.judge(lost_of(1.0))
    assert (short.verdict, short.objective(0.3)) == ("healthy", -2)
    short.judge(lost_of(0.0))
    assert short.objective(0.3) == 0.3


def test_the_share_that_is_lost_of_a_given_course():
    """(gain in dB, quality) of the pixel stage, then of each evaluation."""
    before = {"gain_psnr": 1.6, "quality": 0.2}
    course = [(1.6, 0.2), (1.2, 0.15), (0.4, 0.1), (0.0, 0.0), (-1.6, -0.1), (-1.0, 0.35), (0.1, 0.2)]
    shares = [lost_share(before, {"gain_psnr": gain, "quality": quality}) for gain, quality in course]
    assert shares == pytest.approx([0, 0.25, 0.75, 1, 2, 0, 0.9375])
    # A pixel stage without a gain leaves nothing to lose; one that only blurs has no quality to excuse a loss by.
    nothing = {"gain_psnr": 0.2, "quality": 0.3}
    assert lost_share(nothing, {"gain_psnr": -3.0, "quality": 0.0}) == 0
    blurred = {"gain_psnr": 1.0, "quality": -0.1}
    assert lost_share(blurred, {"gain_psnr": 0.0, "quality": 0.0}) == 1
    assert lost_share(blurred, {"gain_psnr": 0.0, "quality": 0.1}) == 0


def test_a_collapse_is_not_called_dead(scene: tuple[Tensor, Tensor]):
    hr, lr = scene
    again = partial(lower, config=DegradeConfig(hr_size=64, lr_size=16))
    black = collapse_report(torch.zeros_like(hr), hr, lr, again, CollapseConfig(), lost=15.0)
    assert (black.score, black.reason, black.components["dead"]) == (1.0, "conditioning", 0.0)
    bicubic = collapse_report(plant("bicubic", hr, lr), hr, lr, again, CollapseConfig(), lost=0.9)
    assert (bicubic.score, bicubic.reason) == (pytest.approx(0.8), "dead")
    assert bicubic.collapse == 0


def test_every_healthy_run_outranks_every_collapsed_one():
    healthy, bad = (CollapseWatch(CollapseConfig(grace=0)) for _ in range(2))
    healthy.judge(report_of(0.49))
    bad.judge(report_of(0.5))
    assert healthy.objective(-1) > bad.objective(1)
    assert healthy.objective(0.3) == 0.3
    assert bad.objective(1) == -1.5
    bad.judge(report_of(0.9))
    assert bad.objective(1) == -1.9
    bad.judge(report_of(0.0))
    bad.judge(report_of(0.0))
    assert bad.objective(0.7) == 0.7
    assert math.isfinite(healthy.objective(math.nan))
    assert healthy.objective(math.nan) < -1
