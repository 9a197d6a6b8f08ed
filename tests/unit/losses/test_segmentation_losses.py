"""Losses against values worked out by hand and against MONAI's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from monai.losses import DiceCELoss as MonaiDiceCELoss
from monai.losses import DiceLoss as MonaiDiceLoss
from torch import Tensor

from glioray.losses import SEGMENTATION_LOSSES, build_loss
from glioray.losses.segmentation import region_targets, soft_dice

CHANNELS = {"dice_ce": 4, "region_dice_bce": 3}


def _case(name: str, seed: int = 0, labels: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, CHANNELS[name], 12, 10, generator=generator)
    return logits, torch.randint(0, labels, (3, 12, 10), generator=generator, dtype=torch.uint8)


def test_every_loss_is_tested():
    assert set(CHANNELS) == set(SEGMENTATION_LOSSES)


def test_region_targets_are_nested():
    masks = torch.tensor([[[0, 1, 2, 3, 4]]], dtype=torch.uint8)
    targets = region_targets(masks)
    assert targets.dtype == torch.float32
    assert targets[0, :, 0].tolist() == [[0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 0, 0, 1, 0]]


def test_soft_dice_by_hand():
    probs = torch.tensor([[[[0.5, 1.0]]], [[[0.25, 0.0]]]])
    targets = torch.tensor([[[[1.0, 1.0]]], [[[0.0, 0.0]]]])
    # Overlap 1.5, sums 1.75 + 2; and 0, 0.25 + 0 in the second sample alone.
    assert soft_dice(probs, targets, batch=True).tolist() == pytest.approx([(3 + 1) / (3.75 + 1)])
    each = soft_dice(probs, targets, batch=False)
    assert each.flatten().tolist() == pytest.approx([(3 + 1) / (3.5 + 1), 1 / 1.25])


def test_region_loss_by_hand():
    # One pixel of ET: all three regions are 1 there; the logits say p = 3/4, 1/2, 1/4.
    logits = torch.tensor([math.log(3), 0.0, -math.log(3)]).view(1, 3, 1, 1)
    masks = torch.tensor([[[3]]], dtype=torch.uint8)
    ce = -(math.log(3 / 4) + math.log(1 / 2) + math.log(1 / 4)) / 3
    dice = sum(1 - (2 * p + 1) / (p + 1 + 1) for p in (3 / 4, 1 / 2, 1 / 4)) / 3
    assert float(build_loss("region_dice_bce")(logits, masks)) == pytest.approx(ce + dice, rel=1e-5)
    weighted = build_loss("region_dice_bce", dice_weight=2.0, ce_weight=0.5)(logits, masks)
    assert float(weighted) == pytest.approx(0.5 * ce + 2 * dice, rel=1e-5)


def test_class_loss_by_hand():
    # Two pixels, NCR and background; logits give NCR 1/2 and the other three 1/6 everywhere.
    logits = torch.tensor([0.0, math.log(3), 0.0, 0.0]).view(1, 4, 1, 1).expand(1, 4, 1, 2)
    masks = torch.tensor([[[1, 0]]], dtype=torch.uint8)
    ce = (math.log(2) + math.log(6)) / 2
    dice = [(2 * 0.5 + 1) / (1 + 1 + 1), 1 / (2 / 6 + 1), 1 / (2 / 6 + 1)]
    expected = ce + 1 - sum(dice) / 3
    assert float(build_loss("dice_ce")(logits, masks)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize(("dice", "ce"), [(1.0, 1.0), (0.3, 2.0), (1.0, 0.0), (0.0, 1.0)])
def test_class_loss_equals_monais(batch: bool, dice: float, ce: float):
    logits, masks = _case("dice_ce")
    theirs = MonaiDiceCELoss(
        softmax=True,
        to_onehot_y=True,
        include_background=False,
        batch=batch,
        smooth_nr=1,
        smooth_dr=1,
        lambda_dice=dice,
        lambda_ce=ce,
    )
    ours = build_loss("dice_ce", dice_weight=dice, ce_weight=ce, batch_dice=batch)
    assert float(ours(logits, masks)) == pytest.approx(float(theirs(logits, masks[:, None])), rel=1e-5)


@pytest.mark.parametrize("batch", [True, False])
def test_region_loss_equals_monais(batch: bool):
    logits, masks = _case("region_dice_bce", labels=5)
    theirs = MonaiDiceLoss(sigmoid=True, batch=batch, smooth_nr=1, smooth_dr=1)
    targets = region_targets(masks)
    expected = theirs(logits, targets) + torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    ours = build_loss("region_dice_bce", batch_dice=batch)(logits, masks)
    assert float(ours) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("label", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("scale", [1, 1000])
def test_gradients_are_finite_on_masks_of_one_label(name: str, batch: bool, label: int, scale: float):
    logits, masks = _case(name)
    logits = (logits * scale).requires_grad_()
    loss = build_loss(name, batch_dice=batch)(logits, torch.full_like(masks, label))
    loss.backward()
    assert torch.isfinite(loss)
    assert float(loss.detach()) >= 0
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", CHANNELS)
def test_a_perfect_prediction_costs_next_to_nothing_and_its_opposite_much(name: str):
    _, masks = _case(name)
    if name == "dice_ce":
        truth = torch.nn.functional.one_hot(masks.long(), 4).movedim(-1, 1).float()
    else:
        truth = region_targets(masks)
    loss = build_loss(name)
    assert float(loss(40 * truth - 20, masks)) < 1e-6
    assert float(loss(20 - 40 * truth, masks)) > 10


@pytest.mark.parametrize("name", CHANNELS)
def test_half_precision_logits_are_computed_in_float32(name: str):
    logits, masks = _case(name)
    rounded = logits.bfloat16()
    loss = build_loss(name)(rounded, masks)
    assert loss.dtype == torch.float32
    assert float(loss) == float(build_loss(name)(rounded.float(), masks))


@pytest.mark.parametrize("name", CHANNELS)
def test_a_weight_of_0_says_absent(name: str):
    def forbidden(sums: Tensor) -> Tensor:
        raise AssertionError("ranks were asked to agree on a Dice that is not wanted")

    logits, masks = _case(name)
    build_loss(name, dice_weight=0.0, reduce=forbidden)(logits, masks)
    whole = float(build_loss(name)(logits, masks))
    parts = [float(build_loss(name, **{f"{part}_weight": 0.0})(logits, masks)) for part in ("dice", "ce")]
    assert sum(parts) == pytest.approx(whole)
    assert min(parts) > 0
    assert float(build_loss(name, dice_weight=0.0, ce_weight=0.0)(logits, masks)) == 0


def test_the_resection_cavity_is_a_class_where_the_network_has_one_and_background_else():
    logits, masks = _case("dice_ce", labels=5)
    without = torch.where(masks == 4, 0, masks)
    loss = build_loss("dice_ce")
    assert float(loss(logits, masks)) == float(loss(logits, without))
    five = torch.cat([logits, logits[:, :1]], dim=1)
    assert float(loss(five, masks)) != float(loss(five, without))


@pytest.mark.parametrize("name", CHANNELS)
def test_sums_over_ranks_make_the_mean_loss_that_of_the_whole_batch(name: str):
    """Two halves of a batch, each told the other's sums, as `reduce_sum` does between processes."""
    logits, masks = _case(name)
    logits, masks = logits.repeat(2, 1, 1, 1) + torch.arange(6).view(6, 1, 1, 1), masks.repeat(2, 1, 1)
    halves = [slice(0, 3), slice(3, 6)]
    sums: list[Tensor] = []

    def keep(local: Tensor) -> Tensor:
        sums.append(local)
        return local

    local = [float(build_loss(name, reduce=keep)(logits[half], masks[half])) for half in halves]
    total = sum(sums)
    told = [float(build_loss(name, reduce=lambda _: total)(logits[half], masks[half])) for half in halves]
    whole = float(build_loss(name)(logits, masks))
    assert sum(told) / 2 == pytest.approx(whole, rel=1e-6)
    assert abs(sum(local) / 2 - whole) > 1e-4


def test_unknown_names_and_options():
    with pytest.raises(ValueError, match=r"'focal' is not a loss; the losses are dice_ce, region_dice_bce"):
        build_loss("focal")
    options: dict[str, Any] = {"gamma": 2.0}
    with pytest.raises(ValueError, match=r"loss 'dice_ce' does not take these options: .*'gamma'"):
        build_loss("dice_ce", **options)
