"""Candidates against champions, without a registry or Ray."""

from __future__ import annotations

import argparse
import importlib
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glioray.config import override, with_settings
from glioray.engine.promotion import compare_to_champion
from glioray.engine.task import ModelPackage
from glioray.errors import ModelError, UsageError
from glioray.tasks import find_task, load_task
from glioray.tasks.segmentation.objective import Sizes
from glioray.tasks.segmentation.package import ModelSpec
from glioray.tasks.segmentation.recipes import unet_tiny
from glioray.tasks.superres.collapse import CollapseReport
from glioray.tasks.superres.evaluation import Evaluation
from glioray.tasks.superres.package import SuperResSpec
from glioray.tasks.superres.recipes import mri_tiny


def _spec(dice: float, *, fitted: bool, **changes: Any) -> ModelSpec:
    facts: dict[str, Any] = {
        "val_cases": {"c1": {"wt": dice}},
        "val_sizes": {"c1": {"wt": Sizes(10.0, 10.0, 10 * dice)}},
        **changes,
    }
    return ModelSpec(
        config=override(unet_tiny(), **{"postprocess.fit_thresholds": fitted}),
        out_channels=3,
        spacing_mm=(1.0, 1.0, 1.0),
        manifest_hash="m",
        **facts,
    )


@pytest.fixture
def promote(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """The job, of two models of one name: version 2, the candidate, and version 1, the champion where there is one."""

    def promote(
        candidate: ModelSpec | SuperResSpec, present: ModelSpec | SuperResSpec | None
    ) -> dict[str, Any]:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
        module = importlib.import_module("glioray.api.promote")
        monkeypatch.setattr(module, "resolve_registered", lambda uri, name: ("net", "2"))
        monkeypatch.setattr(module, "champion", lambda name: None if present is None else "1")
        specs = {"models:/net/2": candidate, "models:/net/1": present}
        monkeypatch.setattr(
            module,
            "open_package",
            lambda uri, folder: ModelPackage(find_task(specs[uri].to_json()), folder, specs[uri], uri),
        )
        job = runpy.run_path(str(repo / "jobs" / "promote.py"))["job"]
        answer: dict[str, Any] = job.answer(["--storage", str(tmp_path), "--dry-run"])
        return answer

    return promote


def test_the_better_of_two_on_the_same_cases(promote: Callable[..., dict[str, Any]]):
    answer = promote(_spec(0.8, fitted=False), _spec(0.7, fitted=False))
    assert "objective 0.8000 beats 0.7000" in answer["reason"]
    assert answer["objective"] == answer["dice_mean"] == {"candidate": 0.8, "champion": 0.7}
    assert answer["false_alarms"] == {"candidate": 0, "champion": 0}
    assert "the champion stays" in promote(_spec(0.7, fitted=False), _spec(0.7, fitted=False))["reason"]


def test_a_region_that_a_case_lacks_is_no_merit(promote: Callable[..., dict[str, Any]]):
    """The champion never predicts ET; one of its two validation cases has none."""
    whole, empty = Sizes(10.0, 10.0, 9.0), Sizes(0.0, 0.0, 0.0)
    never = _spec(
        0.9,
        fitted=False,
        val_cases={"c1": {"wt": 0.9, "et": 0.0}, "c2": {"wt": 0.9, "et": 1.0}},
        val_sizes={"c1": {"wt": whole, "et": Sizes(4.0, 0.0, 0.0)}, "c2": {"wt": whole, "et": empty}},
    )
    found = _spec(
        0.9,
        fitted=False,
        val_cases={"c1": {"wt": 0.9, "et": 0.75}, "c2": {"wt": 0.9, "et": 0.0}},
        val_sizes={
            "c1": {"wt": whole, "et": Sizes(4.0, 4.0, 3.0)},
            "c2": {"wt": whole, "et": Sizes(0.0, 0.2, 0.0)},
        },
    )
    answer = promote(found, never)
    assert answer["promoted"] is False  # a dry run
    assert "objective" in answer["reason"]
    assert "beats 0.4500" in answer["reason"]
    assert answer["dice_mean"]["candidate"] < answer["dice_mean"]["champion"]


def test_a_package_without_volumes_is_refused_where_it_has_to_be_compared(
    promote: Callable[..., dict[str, Any]],
):
    older = _spec(0.7, fitted=False, val_sizes={})
    for pair, role in (
        ((_spec(0.8, fitted=False), older), "champion"),
        ((older, _spec(0.8, fitted=False)), "candidate"),
    ):
        with pytest.raises(UsageError, match=rf"package of the {role} records no volumes .* give --data"):
            promote(*pair)
    assert promote(older, None)["reason"] == "there was no champion"


@pytest.mark.parametrize(("candidate", "present"), [(True, False), (False, True), (True, True)])
def test_dice_on_cases_that_thresholds_were_fitted_on_does_not_count(
    promote: Callable[..., dict[str, Any]], candidate: bool, present: bool
):
    with pytest.raises(
        UsageError, match=r"thresholds of the (candidate|champion) were fitted on .*give --data"
    ):
        promote(_spec(0.8, fitted=candidate), _spec(0.7, fitted=present))


def test_without_a_champion_the_candidate_wins(promote: Callable[..., dict[str, Any]]):
    assert promote(_spec(0.8, fitted=True), None)["reason"] == "there was no champion"


def _superres(quality: float | None = 0.3, collapse: str = "healthy", **settings: Any) -> SuperResSpec:
    judge = settings.pop("judge", "vgg16 aa")
    return SuperResSpec(
        config=with_settings(mri_tiny(), settings),
        spacing_mm=(1.0, 1.0, 1.0),
        manifest_hash="m",
        collapse=collapse,
        reason="conditioning",
        metrics={"collapse_score": 0.91} | ({} if quality is None else {"quality": quality}),
        extractors={"judge": judge},
    )


def test_the_better_super_resolution_model_by_recorded_quality(promote: Callable[..., dict[str, Any]]):
    answer = promote(_superres(0.4), _superres(0.3))
    assert answer["reason"] == "quality 0.4000 beats 0.3000"
    assert answer["quality"] == {"candidate": 0.4, "champion": 0.3}
    assert "the champion stays" in promote(_superres(0.3), _superres(0.3))["reason"]
    assert promote(_superres(0.3), None)["reason"] == "there was no champion"


@pytest.mark.parametrize("present", [None, _superres(-0.5), _superres(0.1, "collapsed")])
def test_a_collapsed_model_never_becomes_champion(
    promote: Callable[..., dict[str, Any]], present: SuperResSpec | None
):
    with pytest.raises(
        ModelError, match=r"has collapsed \(conditioning, score 0\.91\) and cannot be promoted"
    ):
        promote(_superres(0.9, "collapsed"), present)
    dead = _superres(0.9, "dead")
    dead.metrics.update(gain_psnr=0.05, pixel_gain_psnr=1.5, collapse_reason=6.0)
    with pytest.raises(
        ModelError, match=r"is dead \(a gain over bicubic of 0\.05 dB is left of the 1\.50 dB"
    ):
        promote(dead, present)
    with pytest.raises(ModelError, match="never scored for collapse and cannot be promoted"):
        promote(_superres(0.9, "unjudged"), present)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (_superres(judge="alexnet bb"), "not judged on the same validation images by the same distance"),
        (_superres(None), "not judged on the same"),
        (
            _superres(**{"degrade.lr_size": 32}),
            r"makes x4 of bicubic_aa with noise 0 in axial slices and the champion x2 of",
        ),
        (_superres(**{"degrade.name": "gaussian"}), r"champion x4 of gaussian of sigma 0\.5"),
        (_superres(**{"preprocess.planes": ["coronal"]}), "champion .* in coronal slices, whose gains"),
        (_superres(**{"preprocess.spacing_mm": [2, 2, 2]}), "champion .* of voxels of 2 x 2 x 2 mm, whose"),
        (_superres(**{"degrade.cut": "whole"}), "champion .* slices, 64 x 64 brought to 64 pixels, whose"),
        (_superres(**{"preprocess.modalities": ["t1"]}), "not judged on the same validation images"),
        (_superres(**{"collapse.apart_mm": 4.0}), "not judged on the same validation images"),
    ],
)
def test_what_does_not_compare(promote: Callable[..., dict[str, Any]], other: SuperResSpec, sentence: str):
    with pytest.raises(UsageError, match=sentence):
        promote(_superres(), other)


def test_each_kind_under_a_name_of_its_own(promote: Callable[..., dict[str, Any]]):
    with pytest.raises(ModelError, match="register each kind under a --name of its own"):
        promote(_superres(), _spec(0.5, fitted=False))


@pytest.fixture
def compare_now(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`compare_to_champion` with data, of models whose quality and collapse score on them are given."""

    def compare_now(
        quality: dict[str, float], score: dict[str, float], more: dict[str, dict[str, float]] | None = None
    ) -> Any:
        def evaluate(path: Path, *_: Any, **__: Any) -> Evaluation:
            made = {"t1": quality[path.name]} | (more or {}).get(path.name, {})
            figures = {name: {"quality": value} for name, value in made.items()}
            figures["mean"] = {"quality": sum(made.values()) / len(made)}
            images = dict.fromkeys(("a", "b"), figures)
            return Evaluation(images=images, use={}, pictures={}, failed={}, judge="hfen")

        monkeypatch.setattr("glioray.tasks.superres.promotion.evaluate_cases", evaluate)
        monkeypatch.setattr(
            "glioray.tasks.superres.promotion.report_collapse",
            lambda path, *rest: CollapseReport(score[path.name], "diversity", {}),
        )
        monkeypatch.setattr("glioray.tasks.superres.promotion.select_cases", lambda *_, **__: [])
        manifest: Any = argparse.Namespace(data="/data")
        task = load_task("superres")
        packages = {role: ModelPackage(task, Path(role), _superres(), role) for role in quality}
        return compare_to_champion(packages, manifest)

    return compare_now


def test_on_unseen_cases_the_better_one_that_did_not_collapse(compare_now: Callable[..., Any]):
    better, worse = {"candidate": 0.4, "champion": 0.2}, {"candidate": 0.2, "champion": 0.4}
    healthy = {"candidate": 0.1, "champion": 0.0}
    outcome = compare_now(better, healthy)
    assert outcome.wins
    assert outcome.reason == "quality 0.4000 beats 0.2000 on 2 cases"
    assert outcome.answer["collapse"]["candidate"] == {"score": 0.1, "reason": "diversity"}
    assert not compare_now(worse, healthy).wins
    # Its training said that it was healthy.
    with pytest.raises(ModelError, match=r"collapsed on unseen cases \(diversity, score 0\.50\)"):
        compare_now(better, {"candidate": 0.5, "champion": 0.0})
    with pytest.raises(ModelError, match="collapsed on unseen cases"):
        compare_now({"candidate": 0.4}, {"candidate": 1.0})
    assert compare_now({"candidate": 0.4}, {"candidate": 0.0}).wins
    outcome = compare_now(worse, {"candidate": 0.1, "champion": 0.9})
    assert (outcome.wins, outcome.reason) == (True, "the champion has collapsed on unseen cases")


def test_models_are_compared_on_what_both_make(compare_now: Callable[..., Any]):
    healthy = {"candidate": 0.0, "champion": 0.0}
    # Alone on t1 the champion is better; flair, which it was not made for, is easy.
    outcome = compare_now({"candidate": 0.2, "champion": 0.3}, healthy, {"candidate": {"flair": 0.9}})
    assert not outcome.wins
    assert outcome.answer["quality"] == {"candidate": pytest.approx(0.2), "champion": pytest.approx(0.3)}
    assert outcome.answer["modalities"] == ["t1"]
