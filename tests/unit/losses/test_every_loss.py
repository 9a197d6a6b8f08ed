"""Properties of every loss in the registry."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from glioray.losses import SEGMENTATION_LOSSES, LossEntry, build_loss, takes_class_weights
from glioray.losses.targets import region_targets

MakeBatch = Callable[..., tuple[Tensor, Tensor]]
NAMES = sorted(SEGMENTATION_LOSSES)
WEIGHTED = [name for name in NAMES if takes_class_weights(name)]
# Means over samples, which need no sums over the batch.
WITHOUT_SUMS = {"ce", "region_bce", "focal", "region_focal"}


def _truth(name: str, masks: Tensor) -> Tensor:
    if "regions" in SEGMENTATION_LOSSES[name].targets:
        return region_targets(masks)
    return torch.nn.functional.one_hot(masks.long(), 4).movedim(-1, 1).float()


@pytest.mark.parametrize("name", NAMES)
def test_both_targets_have_the_same_losses(name: str):
    other = {"ce": "region_bce", "dice_ce": "region_dice_bce"}
    if "classes" in SEGMENTATION_LOSSES[name].targets:
        assert SEGMENTATION_LOSSES[other.get(name, f"region_{name}")].build is SEGMENTATION_LOSSES[name].build
    assert len(NAMES) % 2 == 0


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_on_empty_and_on_full_masks(
    make_batch: MakeBatch, name: str, subtests: pytest.Subtests
):
    for label, scale in itertools.product(range(5), (1, 1000)):
        with subtests.test(label=label, scale=scale):
            logits, masks = make_batch(name)
            logits = (logits * scale).requires_grad_()
            loss = build_loss(name)(logits, torch.full_like(masks, label))
            loss.backward()
            assert torch.isfinite(loss)
            assert torch.isfinite(logits.grad).all()
            # At scale 1 nothing saturates, so that every truth gives a gradient.
            assert scale > 1 or logits.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_at_a_perfect_prediction(make_batch: MakeBatch, name: str):
    _, masks = make_batch(name)
    for sharpness in (10, 100, 1e4):
        logits = (sharpness * (2 * _truth(name, masks) - 1)).requires_grad_()
        build_loss(name)(logits, masks).backward()
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_increases_from_the_truth_to_chance_to_the_opposite(make_batch: MakeBatch, name: str):
    _, masks = make_batch(name)
    truth, loss = _truth(name, masks), build_loss(name)
    right, chance, wrong = (float(loss(k * (2 * truth - 1), masks)) for k in (20, 0, -20))
    assert right < 0.05
    assert right + 0.1 < chance < wrong


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_logits_are_computed_in_float32(make_batch: MakeBatch, name: str):
    logits, masks = make_batch(name)
    rounded = logits.bfloat16().requires_grad_()
    loss = build_loss(name)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(rounded, masks)
    assert inside.dtype == torch.float32
    assert float(inside.detach()) == float(loss(rounded.detach().float(), masks))
    inside.backward()
    assert rounded.grad.dtype == torch.bfloat16
    assert torch.isfinite(rounded.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_minimising_a_loss_recovers_the_truth(name: str):
    """Optimised logits become the truth, a small tumour with nested labels."""
    masks = torch.zeros(2, 12, 12, dtype=torch.uint8)
    masks[0, 2:9, 2:9], masks[0, 3:7, 3:7], masks[0, 4:6, 4:6] = 2, 3, 1
    logits = torch.zeros(
        2, 3 if "regions" in SEGMENTATION_LOSSES[name].targets else 4, 12, 12, requires_grad=True
    )
    optimizer, loss = torch.optim.Adam([logits], lr=0.3), build_loss(name)
    for _ in range(60):
        optimizer.zero_grad()
        loss(logits, masks).backward()
        optimizer.step()
    found = logits.detach()
    if "regions" in SEGMENTATION_LOSSES[name].targets:
        assert torch.equal(found > 0, region_targets(masks) > 0)
    else:
        assert torch.equal(found.argmax(1), masks.long())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WEIGHTED])
def test_losses_without_class_weights_reject_them(name: str):
    with pytest.raises(ValueError, match=f"loss '{name}' does not accept these options: .*class_weights"):
        build_loss(name, class_weights=[1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("name", "weighted"), [(name, False) for name in NAMES] + [(name, True) for name in WEIGHTED]
)
def test_sums_over_ranks_give_the_mean_loss_of_the_whole_batch(
    make_batch: MakeBatch, name: str, weighted: bool
):
    """Each half of a batch gets the sums of both, as by `reduce_sum` between processes."""
    logits, masks = make_batch(name)
    logits, masks = logits.repeat(2, 1, 1, 1) + torch.arange(6).view(6, 1, 1, 1), masks.repeat(2, 1, 1)
    logits[:, -1] += torch.arange(6).view(6, 1, 1)
    masks[:3] = masks[:3] // 2
    options = {"class_weights": [0.2, 0.5, 2.0, 3.0][-logits.shape[1] :]} if weighted else {}
    halves = [slice(0, 3), slice(3, 6)]
    recorded: list[list[Tensor]] = [[], []]
    local = []
    for half, sums in zip(halves, recorded, strict=True):

        def record(tensor: Tensor, sums: list[Tensor] = sums) -> Tensor:
            sums.append(tensor)
            return tensor

        local.append(float(build_loss(name, reduce=record, **options)(logits[half], masks[half])))
    totals = [a + b for a, b in zip(*recorded, strict=True)]
    reduced = []
    for half in halves:
        rest = iter(totals)
        loss = build_loss(name, reduce=lambda _, rest=rest: next(rest), **options)
        reduced.append(float(loss(logits[half], masks[half])))
    whole = float(build_loss(name, **options)(logits, masks))
    assert sum(reduced) / 2 == pytest.approx(whole, rel=1e-5)
    if totals:
        assert abs(sum(local) / 2 - whole) > 1e-4
    else:
        assert name in WITHOUT_SUMS


@pytest.mark.parametrize("name", NAMES)
def test_a_mean_of_samples_needs_no_sums_over_ranks(make_batch: MakeBatch, name: str):
    def forbidden(sums: Tensor) -> Tensor:
        raise AssertionError("reduce was called")

    logits, masks = make_batch(name)
    if name in WITHOUT_SUMS:
        build_loss(name, reduce=forbidden)(logits, masks)
    else:
        build_loss(name, reduce=forbidden, batch_dice=False)(logits, masks)
        with pytest.raises(AssertionError, match="reduce was called"):
            build_loss(name, reduce=forbidden)(logits, masks)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_SUMS])
def test_ratios_per_sample_are_averaged_over_samples(make_batch: MakeBatch, name: str):
    logits, masks = make_batch(name)
    loss = build_loss(name, batch_dice=False)
    one_by_one = [float(loss(logits[i : i + 1], masks[i : i + 1])) for i in range(len(masks))]
    assert float(loss(logits, masks)) == pytest.approx(sum(one_by_one) / len(masks), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if "classes" in SEGMENTATION_LOSSES[name].targets])
def test_the_resection_cavity_is_background_unless_the_network_predicts_it(make_batch: MakeBatch, name: str):
    logits, masks = make_batch(name, labels=5)
    without = torch.where(masks == 4, 0, masks)
    loss = build_loss(name)
    assert float(loss(logits, masks)) == float(loss(logits, without))
    five = torch.cat([logits, logits[:, :1] + 1], dim=1)
    assert float(loss(five, masks)) != float(loss(five, without))


def test_an_entry_states_its_targets(monkeypatch: pytest.MonkeyPatch, make_batch: MakeBatch):
    """The target does not depend on the name: one entry can support both."""
    both = LossEntry(SEGMENTATION_LOSSES["dice"].build, ("regions", "classes"))
    monkeypatch.setitem(SEGMENTATION_LOSSES, "either", both)
    for target, name in (("classes", "dice"), ("regions", "region_dice"), (None, "region_dice")):
        logits, masks = make_batch(name)
        assert torch.equal(
            build_loss("either", target=target)(logits, masks), build_loss(name)(logits, masks)
        )
    with pytest.raises(
        ValueError, match="loss 'dice' does not support the target 'regions'; expected classes"
    ):
        build_loss("dice", target="regions")


def test_unknown_names_and_options():
    with pytest.raises(ValueError, match=r"No loss 'dice_bce'; available: boundary, ce, dice, "):
        build_loss("dice_bce")
    with pytest.raises(ValueError, match=r"No loss 'dice_bce'; available: boundary, ce, dice, "):
        takes_class_weights("dice_bce")
    with pytest.raises(ValueError, match=r"loss 'dice_ce' does not accept these options: .*'gamma'"):
        build_loss("dice_ce", gamma=2.0)
    with pytest.raises(ValueError, match=r"logits have 4 channels; expected 3 \(WT, TC, ET\)"):
        build_loss("region_dice")(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.uint8))


def test_region_targets_are_nested():
    masks = torch.tensor([[[0, 1, 2, 3, 4]]], dtype=torch.uint8)
    targets = region_targets(masks)
    assert targets.dtype == torch.float32
    assert targets[0, :, 0].tolist() == [[0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 0, 0, 1, 0]]
