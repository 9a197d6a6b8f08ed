"""A panel's judge remembers what the pixel stage had gained, and says when it is gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from glioray.cases.phantom import make_phantom
from glioray.config import with_settings
from glioray.tasks.superres.learner import GanLearner
from glioray.tasks.superres.package import SuperResSpec
from glioray.tasks.superres.panel import Panel
from glioray.tasks.superres.panel_judge import PanelJudge
from glioray.tasks.superres.planted import plant
from glioray.tasks.superres.recipes import mri_tiny

CONFIG = with_settings(mri_tiny(), {"collapse.grace": 1})


@pytest.fixture(scope="module")
def panel() -> Panel:
    slices = []
    for number in range(4):
        phantom = make_phantom(number, shape=(64, 64, 40))
        for place in (14, 20, 26):
            image = torch.from_numpy(phantom.images[number % 4, :, :, place].astype("float32"))
            slices.append(image / image.quantile(0.999))
    names = tuple(map(str, range(len(slices))))
    return Panel(torch.stack(slices).clamp(0, 1)[:, None], names, names)


class Resolver:
    """Two generators whose outputs are planted."""

    def __init__(self, panel: Panel, psnr: str, gan: str) -> None:
        self.panel, self.nets = panel, {"psnr": psnr, "gan": gan}

    def images(self, lr: Tensor, size: tuple[int, int], blend: float | None = None) -> Tensor:
        name = self.nets["psnr" if blend == 0 else "gan"]
        return plant(name, self.panel.hr[:, 0], lr[:, 0])[:, None]


def found(judge: PanelJudge, gan: str, *, adversarial: bool = True) -> dict[str, Any]:
    resolver: Any = Resolver(judge.panel, "some detail", gan)
    if not adversarial:
        resolver.nets = {"psnr": "some detail", "gan": "some detail"}
    return judge(resolver, adversarial)


@pytest.mark.contracts
def test_a_generator_that_falls_back_to_bicubic_is_dead_after_three_evaluations(panel: Panel):
    judge = PanelJudge(panel, CONFIG)
    assert "pixel_gain_psnr" not in found(judge, "", adversarial=False)["metrics"]
    answers = [found(judge, name) for name in ("some detail", "bicubic", "untrained on bicubic", "bicubic")]
    metrics = [answer["metrics"] for answer in answers]
    assert metrics[0]["pixel_gain_psnr"] == pytest.approx(metrics[0]["gain_psnr"])
    assert metrics[0]["pixel_gain_psnr"] > 1
    assert [row["collapse_dead"] >= 0.5 for row in metrics] == [False, True, True, True]
    assert [row["is_collapsed"] for row in metrics] == [0, 0, 0, 1]
    # A model is judged by its latest evaluation, a run by what lasts.
    assert [answer["verdict"] for answer in answers] == ["healthy", "dead", "dead", "dead"]
    assert [row["objective"] < -1 for row in metrics] == [False, True, True, True]
    assert answers[-1]["reason"] == "dead"
    # Alone, without a pixel stage, bicubic is healthy.
    fresh = PanelJudge(panel, CONFIG)
    alone: Any = SimpleNamespace(nets={"gan": ""}, images=lambda lr, size: fresh.bicubic)
    assert [fresh(alone, True)["verdict"] for _ in range(5)] == ["healthy"] * 5


def test_a_resumed_judge_remembers_the_gain(panel: Panel):
    whole, part = PanelJudge(panel, CONFIG), PanelJudge(panel, CONFIG)
    course = ["some detail", "bicubic", "bicubic", "bicubic", "some detail"]
    expected = [found(whole, name) for name in course]
    for name in course[:2]:
        found(part, name)
    resumed = PanelJudge(panel, CONFIG)
    resumed.load_state(part.state())
    assert [found(resumed, name) for name in course[2:]] == expected[2:]
    assert [answer["metrics"]["is_collapsed"] for answer in expected] == [0, 0, 0, 1, 0]


def test_a_dead_run_stops_with_its_reason(panel: Panel):
    learner: Any = SimpleNamespace(
        judge=PanelJudge(panel, CONFIG),
        is_adversarial=True,
        config=CONFIG,
        precisions={"super-resolution": "fp32"},
        spec=SuperResSpec(config=CONFIG, spacing_mm=(1.0, 1.0, 1.0), manifest_hash="m"),
        stopped="",
        _resolver=lambda: Resolver(panel, "some detail", "bicubic"),
        _warn_of_saturation=lambda: None,
    )
    for _ in range(4):
        assert learner.stopped == ""
        GanLearner.validate(learner)
    assert learner.stopped.startswith("dead: a gain over bicubic of 0.00 dB is left of the ")
    assert (learner.spec.collapse, learner.spec.reason) == ("dead", "dead")
