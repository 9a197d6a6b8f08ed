"""Deep supervision: the weights of outputs and the presence of channels in a slice."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from glioray.losses import build_loss
from glioray.losses.deep import output_weights
from glioray.nets.outputs import TrainingOutputs

MakeBatch = Callable[..., tuple[Tensor, Tensor]]
NAMES = ["dice_ce", "region_dice_bce", "region_focal_tversky"]


def test_weights_add_up_to_1():
    assert output_weights(1, "halving") == output_weights(1, "equal") == [1.0]
    assert output_weights(4, "equal") == [0.25] * 4
    assert output_weights(3, "halving") == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    for num_outputs in range(1, 8):
        for side_weights in ("equal", "halving"):
            assert sum(output_weights(num_outputs, side_weights)) == pytest.approx(1)


@pytest.mark.parametrize("name", NAMES)
def test_side_outputs_are_weighted(make_batch: MakeBatch, name: str):
    maps = [make_batch(name, seed)[0] for seed in range(3)]
    masks = make_batch(name)[1]
    each = [float(build_loss(name)(logits, masks)) for logits in maps]
    outputs = TrainingOutputs(maps[0], tuple(maps[1:]))
    assert float(build_loss(name, side_weights="equal")(outputs, masks)) == pytest.approx(sum(each) / 3)
    halving = (4 * each[0] + 2 * each[1] + each[2]) / 7
    assert float(build_loss(name)(outputs, masks)) == pytest.approx(halving)


@pytest.mark.parametrize("name", NAMES)
def test_without_side_outputs_it_equals_the_loss(make_batch: MakeBatch, name: str):
    logits, masks = make_batch(name)
    loss = build_loss(name)
    assert float(loss(TrainingOutputs(logits), masks)) == float(loss(logits, masks))


def test_presence_by_hand(make_batch: MakeBatch):
    # The first slice has only oedema, the second nothing; the logits give 3/4 WT, 1/2 TC and 1/4 ET for both.
    masks = torch.zeros(2, 4, 4, dtype=torch.uint8)
    masks[0, 1, 2] = 2
    presence = torch.tensor([math.log(3), 0.0, -math.log(3)]).expand(2, 3)
    logits = torch.zeros(2, 3, 4, 4)
    plain = float(build_loss("region_dice_bce")(logits, masks))
    bce = -(math.log(3 / 4) + math.log(1 / 2) + math.log(3 / 4)) - (
        math.log(1 / 4) + math.log(1 / 2) + math.log(3 / 4)
    )
    found = build_loss("region_dice_bce", presence_weight=0.5)(TrainingOutputs(logits, (), presence), masks)
    assert float(found) == pytest.approx(plain + 0.5 * bce / 6, rel=1e-5)


def test_presence_of_classes_refers_to_the_last_channels():
    masks = torch.zeros(1, 2, 2, dtype=torch.uint8)
    masks[0, 0, 0] = 3
    logits = torch.zeros(1, 4, 2, 2)
    plain = float(build_loss("dice_ce")(logits, masks))
    certain = torch.tensor([[30.0, -30.0, -30.0, 30.0]])  # background and ET
    for presence in (certain, certain[:, 1:]):
        right = float(build_loss("dice_ce")(TrainingOutputs(logits, (), presence), masks))
        assert right == pytest.approx(plain, abs=1e-6)
        wrong = float(build_loss("dice_ce")(TrainingOutputs(logits, (), -presence), masks))
        assert wrong == pytest.approx(plain + 30, rel=1e-5)


def test_parts_of_an_image_have_the_same_presence_target():
    masks = torch.zeros(1, 2, 2, dtype=torch.uint8)
    masks[0, 0, 0] = 2
    logits = torch.zeros(1, 3, 2, 2)
    plain = float(build_loss("region_dice_bce")(logits, masks))
    parts = torch.tensor([[[30.0, -30.0], [-30.0, -30.0], [-30.0, 30.0]]])  # WT twice, TC and ET of none
    found = float(build_loss("region_dice_bce")(TrainingOutputs(logits, (), parts), masks))
    assert found == pytest.approx(plain + 2 * 30 / 6, rel=1e-5)


def test_every_output_gets_a_gradient_with_every_weight(make_batch: MakeBatch):
    """DDP needs a gradient of every parameter: 0 is a gradient, None is not."""
    logits, masks = make_batch("region_dice_bce")
    maps = [logits.clone().requires_grad_() for _ in range(3)]
    presence = torch.zeros(3, 3, requires_grad=True)
    outputs = TrainingOutputs(maps[0], tuple(maps[1:]), presence)
    build_loss("region_dice_bce", presence_weight=0.0)(outputs, masks).backward()
    assert all(float(m.grad.abs().sum()) > 0 for m in maps)
    assert torch.equal(presence.grad, torch.zeros(3, 3))


def test_unknown_weights():
    with pytest.raises(ValueError, match="side_weights is 'falling'; expected equal or halving"):
        build_loss("dice_ce", side_weights="falling")
