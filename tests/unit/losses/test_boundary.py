"""Boundary losses, computed by hand and compared with MONAI's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.losses import BoundaryLoss as MonaiBoundaryLoss
from monai.losses import HausdorffDTLoss as MonaiHausdorffDTLoss
from torch import Tensor

from glioray.losses import build_loss
from glioray.losses.targets import region_targets

MakeBatch = Callable[..., tuple[Tensor, Tensor]]

# A row of five pixels, of which the first two are ET.
ROW = torch.tensor([[[3, 3, 0, 0, 0]]], dtype=torch.uint8)


def test_boundary_by_hand():
    # Signed distances: -1 and 0 inside, 1, 2 and 3 outside; every p is 1/2.
    loss = build_loss("region_boundary", boundary_weight=1.0, dice_weight=0.0)
    assert float(loss(torch.zeros(1, 3, 1, 5), ROW)) == pytest.approx((-1 + 0 + 1 + 2 + 3) / 2 / 5)


def test_hausdorff_by_hand():
    # The prediction has one pixel too many: distances to the boundary of the truth are 2 1 1 2 3, to that of
    # the prediction 3 2 1 1 2; the only error is 1, in the middle.
    logits = torch.tensor([50.0, 50.0, 50.0, -50.0, -50.0]).expand(1, 3, 1, 5)
    loss = build_loss("region_hausdorff", hausdorff_weight=1.0, dice_weight=0.0)
    assert float(loss(logits, ROW)) == pytest.approx((1 + 1) / 5)
    far = build_loss("region_hausdorff", hausdorff_weight=1.0, dice_weight=0.0, alpha=3.0)
    # Everything is predicted, so the prediction has no boundary; the errors are 1, 2 and 3 from that of the truth.
    assert float(far(torch.full_like(logits, 50.0), ROW)) == pytest.approx((1 + 2**3 + 3**3) / 5)


@pytest.mark.parametrize("target", ["", "region_"])
def test_distances_equal_monais(make_batch: MakeBatch, target: str):
    logits, masks = make_batch(f"{target}boundary")
    masks[0] = 0
    if target:
        inputs, truth, activation = logits, region_targets(masks), {"sigmoid": True}
    else:
        inputs, truth, activation = logits, masks[:, None], {"softmax": True, "to_onehot_y": True}
    background = bool(target)
    theirs = MonaiBoundaryLoss(include_background=background, **activation)(inputs, truth)
    ours = build_loss(f"{target}boundary", boundary_weight=2.0, dice_weight=0.0)(logits, masks)
    assert float(ours) == pytest.approx(2 * float(theirs), rel=1e-5)
    theirs = MonaiHausdorffDTLoss(include_background=background, **activation)(inputs, truth)
    ours = build_loss(f"{target}hausdorff", hausdorff_weight=0.5, dice_weight=0.0)(logits, masks)
    assert float(ours) == pytest.approx(float(theirs) / 2, rel=1e-5)


@pytest.mark.parametrize("target", ["", "region_"])
@pytest.mark.parametrize("name", ["boundary", "hausdorff"])
def test_dice_is_added_with_its_weight(make_batch: MakeBatch, target: str, name: str):
    logits, masks = make_batch(f"{target}dice")
    alone = float(build_loss(f"{target}{name}", dice_weight=0.0)(logits, masks))
    dice = float(build_loss(f"{target}dice")(logits, masks))
    both = build_loss(f"{target}{name}", dice_weight=3.0)(logits, masks)
    assert float(both) == pytest.approx(alone + 3 * dice, rel=1e-5)
