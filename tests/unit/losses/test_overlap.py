"""Overlap losses, computed by hand and compared with MONAI's."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from monai.losses import DiceLoss as MonaiDiceLoss
from monai.losses import GeneralizedDiceLoss as MonaiGeneralizedDiceLoss
from monai.losses import TverskyLoss as MonaiTverskyLoss
from torch import Tensor

from glioray.losses import SEGMENTATION_LOSSES, build_loss
from glioray.losses.overlap import overlap_sums
from glioray.losses.targets import region_targets

MakeBatch = Callable[..., tuple[Tensor, Tensor]]

# One pixel of ET, which is in all three regions; the logits give p = 3/4, 1/2, 1/4.
LOGITS = torch.tensor([math.log(3), 0.0, -math.log(3)]).view(1, 3, 1, 1)
ET = torch.tensor([[[3]]], dtype=torch.uint8)
PROBS = (3 / 4, 1 / 2, 1 / 4)

# Two pixels, NCR and background; these logits give NCR 1/2 and the other three 1/6 everywhere.
CLASS_LOGITS = torch.tensor([0.0, math.log(3), 0.0, 0.0]).view(1, 4, 1, 1).expand(1, 4, 1, 2)
NCR_AND_NONE = torch.tensor([[[1, 0]]], dtype=torch.uint8)


def _theirs(name: str, loss: type, logits: Tensor, masks: Tensor, **options: object) -> float:
    if "regions" in SEGMENTATION_LOSSES[name].targets:
        return float(loss(sigmoid=True, **options)(logits, region_targets(masks)))
    background = loss is MonaiGeneralizedDiceLoss
    return float(
        loss(softmax=True, to_onehot_y=True, include_background=background, **options)(logits, masks[:, None])
    )


def test_overlap_sums_by_hand():
    probs = torch.tensor([[[[0.5, 1.0]]], [[[0.25, 0.0]]]])
    targets = torch.tensor([[[[1.0, 1.0]]], [[[0.0, 0.0]]]])
    whole = overlap_sums(probs, targets, batch=True, reduce=None)
    assert [s.tolist() for s in whole] == [[1.5], [1.75], [2.0]]
    each = overlap_sums(probs, targets, batch=False, reduce=None)
    assert [s.flatten().tolist() for s in each] == [[1.5, 0.0], [1.5, 0.25], [2.0, 0.0]]
    squared = overlap_sums(probs, targets, batch=True, reduce=None, squared=True)
    assert [s.tolist() for s in squared] == [[1.5], [0.25 + 1 + 0.0625], [2.0]]
    doubled = overlap_sums(probs, targets, batch=True, reduce=lambda sums: 2 * sums)
    assert [s.tolist() for s in doubled] == [[3.0], [3.5], [4.0]]


def test_region_dice_by_hand():
    expected = sum(1 - (2 * p + 1) / (p + 1 + 1) for p in PROBS) / 3
    assert float(build_loss("region_dice")(LOGITS, ET)) == pytest.approx(expected, rel=1e-5)
    squared = sum(1 - (2 * p + 1) / (p * p + 1 + 1) for p in PROBS) / 3
    assert float(build_loss("region_soft_dice")(LOGITS, ET)) == pytest.approx(squared, rel=1e-5)


def test_class_dice_by_hand():
    dice = [(2 / 2 + 1) / (1 + 1 + 1), 1 / (2 / 6 + 1), 1 / (2 / 6 + 1)]
    found = build_loss("dice")(CLASS_LOGITS, NCR_AND_NONE)
    assert float(found) == pytest.approx(1 - sum(dice) / 3, rel=1e-5)
    squared = [(2 / 2 + 1) / (1 / 2 + 1 + 1), 1 / (2 / 36 + 1), 1 / (2 / 36 + 1)]
    found = build_loss("soft_dice")(CLASS_LOGITS, NCR_AND_NONE)
    assert float(found) == pytest.approx(1 - sum(squared) / 3, rel=1e-5)


def test_tversky_by_hand():
    # Overlap p, no false positives, false negatives 1 - p.
    missed = [1 - (p + 1) / (p + 0.7 * (1 - p) + 1) for p in PROBS]
    assert float(build_loss("region_tversky")(LOGITS, ET)) == pytest.approx(sum(missed) / 3, rel=1e-5)
    focal = sum(m**0.75 for m in missed) / 3
    assert float(build_loss("region_focal_tversky")(LOGITS, ET)) == pytest.approx(focal, rel=1e-5)
    halved = sum(m**0.5 for m in missed) / 3
    assert float(build_loss("region_focal_tversky", gamma=2.0)(LOGITS, ET)) == pytest.approx(halved, rel=1e-5)
    # NCR: overlap, false negatives and false positives are half a pixel each; the others have 1/3 false positives.
    classes = [1 - 1.5 / (1.5 + 0.3 / 2 + 0.7 / 2), *[1 - 1 / (1 + 0.3 / 3)] * 2]
    found = build_loss("tversky")(CLASS_LOGITS, NCR_AND_NONE)
    assert float(found) == pytest.approx(sum(classes) / 3, rel=1e-5)


def test_generalised_dice_by_hand():
    # Background and NCR have one pixel each: all four weights are equal, and the masses of two pixels sum to 2.
    overlap = 1 / 6 + 1 / 2
    found = build_loss("generalised_dice")(CLASS_LOGITS, NCR_AND_NONE)
    assert float(found) == pytest.approx(1 - (2 * overlap + 1) / (2 + 2 + 1), rel=1e-5)
    # Three pixels of background and one of NCR: the weight of background is a ninth of the others.
    logits = CLASS_LOGITS.repeat(1, 1, 1, 2)
    masks = torch.tensor([[[1, 0, 0, 0]]], dtype=torch.uint8)
    overlap = (3 / 6) / 9 + 1 / 2
    masses = (4 / 6 + 3) / 9 + (4 / 2 + 1) + 2 * 4 / 6
    found = build_loss("generalised_dice")(logits, masks)
    assert float(found) == pytest.approx(1 - (2 * overlap + 1) / (masses + 1), rel=1e-5)
    # No region is present: only the prediction counts.
    nothing = build_loss("region_generalised_dice")(LOGITS, torch.zeros_like(ET))
    assert float(nothing) == pytest.approx(1 - 1 / (sum(PROBS) + 1), rel=1e-5)


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("name", ["dice", "region_dice", "soft_dice", "region_soft_dice"])
def test_dice_equals_monais(make_batch: MakeBatch, name: str, batch: bool):
    logits, masks = make_batch(name, labels=4)
    options = {"batch": batch, "squared_pred": "soft" in name, "smooth_nr": 1, "smooth_dr": 1}
    ours = float(build_loss(name, batch_dice=batch)(logits, masks))
    assert ours == pytest.approx(_theirs(name, MonaiDiceLoss, logits, masks, **options), rel=1e-5)


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.7), (0.5, 0.5), (1.0, 0.2)])
@pytest.mark.parametrize("name", ["tversky", "region_tversky"])
def test_tversky_equals_monais(make_batch: MakeBatch, name: str, alpha: float, beta: float, batch: bool):
    logits, masks = make_batch(name)
    ours = float(build_loss(name, alpha=alpha, beta=beta, batch_dice=batch)(logits, masks))
    options = {"alpha": alpha, "beta": beta, "batch": batch, "smooth_nr": 1, "smooth_dr": 1}
    assert ours == pytest.approx(_theirs(name, MonaiTverskyLoss, logits, masks, **options), rel=1e-5)


@pytest.mark.parametrize("name", ["generalised_dice", "region_generalised_dice"])
@pytest.mark.parametrize("labels", [4, 2])
def test_generalised_dice_equals_monais(make_batch: MakeBatch, name: str, labels: int):
    """With two labels, two channels are empty: ED and ET."""
    logits, masks = make_batch(name, labels=labels)
    targets = region_targets(masks) if "regions" in SEGMENTATION_LOSSES[name].targets else None
    counts = (
        targets.sum((0, 2, 3)) if targets is not None else torch.bincount(masks.flatten().long(), minlength=4)
    )
    # Our weights, and so the added pixel, are relative to the smallest channel; MONAI's are not.
    smooth = 1 / float(counts[counts > 0].min()) ** 2
    options = {"batch": True, "smooth_nr": smooth, "smooth_dr": smooth}
    expected = _theirs(name, MonaiGeneralizedDiceLoss, logits, masks, **options)
    assert float(build_loss(name)(logits, masks)) == pytest.approx(expected, rel=1e-4)


def test_dice_is_a_tversky_index(make_batch: MakeBatch):
    """Up to the pixel added, half a pixel here, which is negligible for large masses."""
    logits, masks = make_batch("dice")
    logits, masks = logits.repeat(50, 1, 1, 1), masks.repeat(50, 1, 1)
    dice = float(build_loss("dice")(logits, masks))
    assert float(build_loss("tversky", alpha=0.5, beta=0.5)(logits, masks)) == pytest.approx(dice, abs=1e-4)


def test_options_out_of_range():
    for options in ({"alpha": -0.1}, {"beta": -1.0}, {"gamma": 0.0}):
        with pytest.raises(ValueError, match="expected alpha >= 0, beta >= 0 and gamma > 0"):
            build_loss("tversky", **options)
