"""Pixel losses, alone and with Dice, computed by hand and compared with torch's and MONAI's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss as MonaiDiceCELoss
from monai.losses import DiceLoss as MonaiDiceLoss
from monai.losses import FocalLoss as MonaiFocalLoss
from torch import Tensor

from glioray.losses import build_loss
from glioray.losses.targets import region_targets

MakeBatch = Callable[..., tuple[Tensor, Tensor]]

# One pixel of ET, which is in all three regions; the logits give p = 3/4, 1/2, 1/4.
LOGITS = torch.tensor([math.log(3), 0.0, -math.log(3)]).view(1, 3, 1, 1)
ET = torch.tensor([[[3]]], dtype=torch.uint8)
PROBS = (3 / 4, 1 / 2, 1 / 4)

# Two pixels, NCR and background; these logits give NCR 1/2 and the other three 1/6 everywhere.
CLASS_LOGITS = torch.tensor([0.0, math.log(3), 0.0, 0.0]).view(1, 4, 1, 1).expand(1, 4, 1, 2)
NCR_AND_NONE = torch.tensor([[[1, 0]]], dtype=torch.uint8)

CLASS_WEIGHTS = [0.1, 2.0, 0.5, 1.4]


def test_cross_entropy_by_hand():
    plain = build_loss("ce")(CLASS_LOGITS, NCR_AND_NONE)
    assert float(plain) == pytest.approx((math.log(2) + math.log(6)) / 2, rel=1e-5)
    weighted = build_loss("ce", class_weights=CLASS_WEIGHTS)(CLASS_LOGITS, NCR_AND_NONE)
    assert float(weighted) == pytest.approx((2 * math.log(2) + 0.1 * math.log(6)) / 2.1, rel=1e-5)
    regions = build_loss("region_bce", class_weights=[1.0, 2.0, 5.0])(LOGITS, ET)
    expected = -(math.log(3 / 4) + 2 * math.log(1 / 2) + 5 * math.log(1 / 4)) / 3
    assert float(regions) == pytest.approx(expected, rel=1e-5)
    # A region's weight has no effect outside it.
    outside = build_loss("region_bce", class_weights=[1.0, 2.0, 5.0])(LOGITS, torch.zeros_like(ET))
    expected = -(math.log(1 / 4) + math.log(1 / 2) + math.log(3 / 4)) / 3
    assert float(outside) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weights", [None, CLASS_WEIGHTS])
def test_cross_entropy_equals_torchs(make_batch: MakeBatch, weights: list[float] | None):
    logits, masks = make_batch("ce")
    tensor = None if weights is None else torch.tensor(weights)
    ours = float(build_loss("ce", class_weights=weights)(logits, masks))
    assert ours == pytest.approx(float(F.cross_entropy(logits, masks.long(), tensor)), rel=1e-5)
    logits, masks = make_batch("region_bce", labels=5)
    tensor = None if weights is None else torch.tensor(weights[1:])[:, None, None]
    expected = F.binary_cross_entropy_with_logits(logits, region_targets(masks), pos_weight=tensor)
    ours = float(build_loss("region_bce", class_weights=weights and weights[1:])(logits, masks))
    assert ours == pytest.approx(float(expected), rel=1e-5)


def test_focal_by_hand():
    expected = (math.log(2) / 4 + math.log(6) * (5 / 6) ** 2) / 2
    assert float(build_loss("focal")(CLASS_LOGITS, NCR_AND_NONE)) == pytest.approx(expected, rel=1e-5)
    weighted = (2 * math.log(2) / 2 + 0.1 * math.log(6) * 5 / 6) / 2.1
    found = build_loss("focal", gamma=1.0, class_weights=CLASS_WEIGHTS)(CLASS_LOGITS, NCR_AND_NONE)
    assert float(found) == pytest.approx(weighted, rel=1e-5)
    regions = sum(-math.log(p) * (1 - p) ** 2 for p in PROBS) / 3
    assert float(build_loss("region_focal")(LOGITS, ET)) == pytest.approx(regions, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_equals_monais(make_batch: MakeBatch, gamma: float):
    logits, masks = make_batch("focal")
    theirs = MonaiFocalLoss(gamma=gamma, use_softmax=True, to_onehot_y=True)(logits, masks[:, None])
    ours = float(build_loss("focal", gamma=gamma)(logits, masks))
    assert ours == pytest.approx(4 * float(theirs), rel=1e-4)
    logits, masks = make_batch("region_focal", labels=5)
    theirs = MonaiFocalLoss(gamma=gamma)(logits, region_targets(masks))
    ours = float(build_loss("region_focal", gamma=gamma)(logits, masks))
    assert ours == pytest.approx(float(theirs), rel=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_gradients_are_finite_for_certain_predictions(gamma: float):
    logits = torch.tensor([50.0, 0.0, 0.0, -50.0]).view(1, 4, 1, 1).requires_grad_()
    for masks in (torch.zeros(1, 1, 1), torch.full((1, 1, 1), 3)):
        logits.grad = None
        build_loss("focal", gamma=gamma)(logits, masks.to(torch.uint8)).backward()
        assert torch.isfinite(logits.grad).all()


def test_region_dice_bce_by_hand():
    ce = -sum(math.log(p) for p in PROBS) / 3
    dice = sum(1 - (2 * p + 1) / (p + 1 + 1) for p in PROBS) / 3
    assert float(build_loss("region_dice_bce")(LOGITS, ET)) == pytest.approx(ce + dice, rel=1e-5)
    weighted = build_loss("region_dice_bce", dice_weight=2.0, ce_weight=0.5)(LOGITS, ET)
    assert float(weighted) == pytest.approx(0.5 * ce + 2 * dice, rel=1e-5)


def test_dice_ce_by_hand():
    ce = (math.log(2) + math.log(6)) / 2
    dice = [(2 * 0.5 + 1) / (1 + 1 + 1), 1 / (2 / 6 + 1), 1 / (2 / 6 + 1)]
    expected = ce + 1 - sum(dice) / 3
    assert float(build_loss("dice_ce")(CLASS_LOGITS, NCR_AND_NONE)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize(("dice", "ce"), [(1.0, 1.0), (0.3, 2.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("weights", [None, CLASS_WEIGHTS])
def test_dice_ce_equals_monais(
    make_batch: MakeBatch, batch: bool, dice: float, ce: float, weights: list[float] | None
):
    logits, masks = make_batch("dice_ce")
    # MONAI applies class weights to Dice as well, so its two parts are computed separately.
    theirs = MonaiDiceCELoss(
        softmax=True,
        to_onehot_y=True,
        include_background=False,
        batch=batch,
        smooth_nr=1,
        smooth_dr=1,
        lambda_dice=dice,
        lambda_ce=ce if weights is None else 0.0,
    )
    expected = float(theirs(logits, masks[:, None]))
    if weights is not None:
        expected += ce * float(F.cross_entropy(logits, masks.long(), torch.tensor(weights)))
    ours = build_loss("dice_ce", dice_weight=dice, ce_weight=ce, batch_dice=batch, class_weights=weights)
    assert float(ours(logits, masks)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch", [True, False])
def test_region_dice_bce_equals_monais(make_batch: MakeBatch, batch: bool):
    logits, masks = make_batch("region_dice_bce", labels=5)
    theirs = MonaiDiceLoss(sigmoid=True, batch=batch, smooth_nr=1, smooth_dr=1)
    targets = region_targets(masks)
    expected = theirs(logits, targets) + F.binary_cross_entropy_with_logits(logits, targets)
    ours = build_loss("region_dice_bce", batch_dice=batch)(logits, masks)
    assert float(ours) == pytest.approx(float(expected), rel=1e-5)


def test_exp_log_by_hand():
    dice = [(2 * 0.5 + 1) / (1 + 1 + 1), 1 / (2 / 6 + 1), 1 / (2 / 6 + 1)]
    overlap = sum((-math.log(d)) ** 0.3 for d in dice) / 3
    pixels = (math.log(2) ** 0.3 + math.log(6) ** 0.3) / 2
    found = build_loss("exp_log")(CLASS_LOGITS, NCR_AND_NONE)
    assert float(found) == pytest.approx(0.2 * overlap + 0.7 * pixels, rel=1e-5)
    paper = build_loss("exp_log", dice_weight=0.8, ce_weight=0.2, class_weights=CLASS_WEIGHTS)
    pixels = (2 * math.log(2) ** 0.3 + 0.1 * math.log(6) ** 0.3) / 2.1
    found = paper(CLASS_LOGITS, NCR_AND_NONE)
    assert float(found) == pytest.approx(0.8 * overlap + 0.2 * pixels, rel=1e-5)
    regions = build_loss("region_exp_log", dice_weight=0.0, ce_weight=1.0, gamma=2.0)(LOGITS, ET)
    assert float(regions) == pytest.approx(sum(math.log(p) ** 2 for p in PROBS) / 3, rel=1e-5)


@pytest.mark.parametrize("name", ["dice_ce", "region_dice_bce", "exp_log", "region_exp_log"])
def test_a_weight_of_zero_switches_a_term_off(make_batch: MakeBatch, name: str):
    def forbidden(sums: Tensor) -> Tensor:
        raise AssertionError("ranks were asked to agree on a Dice that is not wanted")

    logits, masks = make_batch(name)
    build_loss(name, dice_weight=0.0, reduce=forbidden)(logits, masks)
    whole = float(build_loss(name)(logits, masks))
    parts = [float(build_loss(name, **{f"{part}_weight": 0.0})(logits, masks)) for part in ("dice", "ce")]
    assert sum(parts) == pytest.approx(whole)
    assert min(parts) > 0
    assert float(build_loss(name, dice_weight=0.0, ce_weight=0.0)(logits, masks)) == 0


def test_options_out_of_range(make_batch: MakeBatch):
    invalid: list[tuple[str, dict[str, Any], str]] = [
        ("focal", {"gamma": -1.0}, "gamma is -1.0; expected at least 0"),
        ("exp_log", {"gamma": 0.0}, "gamma is 0.0; expected more than 0"),
        (
            "ce",
            {"class_weights": [1.0, 0.0]},
            "class_weights is .*; expected a number above 0 for each channel",
        ),
        ("ce", {"class_weights": []}, "expected a number above 0 for each channel"),
    ]
    for name, options, message in invalid:
        with pytest.raises(ValueError, match=message):
            build_loss(name, **options)
    for name in ("ce", "region_bce"):
        with pytest.raises(
            ValueError, match=r"class_weights has 2 numbers; expected one for each of the \d channels"
        ):
            build_loss(name, class_weights=[1.0, 2.0])(*make_batch(name))
