"""Augmentation varies the right things, and a sample in the same way whatever its batch."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from glioray.config import AugmentConfig
from glioray.slices.augment import Augment
from glioray.slices.store import Batch

ALL = AugmentConfig(
    flip=(0.5, 0.5),
    affine_p=0.6,
    stretch=0.1,
    shift=0.05,
    curve=0.3,
    gamma_p=0.5,
    bias=0.2,
    noise_p=0.5,
    blur_p=0.4,
    drop_p=0.2,
    elastic_p=0.5,
    elastic_px=4.0,
    lowres_p=0.4,
    ghost_p=0.4,
    motion_p=0.4,
)
OLDER = ALL.replace(elastic_p=0.0, lowres_p=0.0, ghost_p=0.0, motion_p=0.0)
NOTHING = AugmentConfig(flip=(0.0, 0.0), affine_p=0, intensity_p=0, gamma_p=0, noise_p=0)


def batch_of(count: int = 16, *, lateral: bool = True) -> Batch:
    """Brains of noise in a background of 0, with a tumour off the centre."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(48) - 22, torch.arange(64) - 30, indexing="ij")
    brain = (rows / 17) ** 2 + (columns / 22) ** 2 < 1
    images = torch.randn(count, 4, 48, 64, generator=generator) * brain
    masks = (((rows - 4) / 8) ** 2 + ((columns + 7) / 10) ** 2 < 1).to(torch.uint8).repeat(count, 1, 1)
    masks[:, 22:28, 20:25] = 3
    return Batch(images, masks, np.arange(100, 100 + count), np.full(count, lateral))


def part_of(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.images[rows], batch.masks[rows], batch.positions[rows], batch.lateral[rows])


def test_augmentation_depends_on_the_epoch_only() -> None:
    augment, batch = Augment(ALL, seed=1), batch_of()
    first = augment(batch, 3)
    augment(batch, 4)
    for one, other in zip(first, Augment(ALL, seed=1)(batch, 3), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first[0], augment(batch, 4)[0])
    assert not torch.equal(first[0], Augment(ALL, seed=2)(batch, 3)[0])


def test_the_input_is_not_modified() -> None:
    batch = batch_of()
    images, masks = batch.images.clone(), batch.masks.clone()
    varied, moved = Augment(ALL, seed=1)(batch, 0)
    assert torch.equal(batch.images, images)
    assert torch.equal(batch.masks, masks)
    assert varied.data_ptr() != batch.images.data_ptr()
    assert moved.data_ptr() != batch.masks.data_ptr()


@pytest.mark.parametrize(
    ("config", "epoch", "slope", "power", "labels"),
    [
        (OLDER, 0, -630.78, 35230.6, 5079),
        (OLDER, 1, -276.67, 27647.0, 4804),
        (AugmentConfig(), 0, -180.98, 60655.5, 4932),
        (AugmentConfig(), 1, -138.03, 61800.5, 4869),
    ],
    ids=str,
)
def test_earlier_settings_give_the_same_draws_as_before(
    config: AugmentConfig, epoch: int, slope: float, power: float, labels: int
) -> None:
    """Fixed results from before newer settings were added; tolerant of rounding."""
    images, masks = Augment(config, seed=7)(batch_of(), epoch)
    ramp = torch.linspace(-1, 1, 48 * 64).view(48, 64)
    assert float((images * ramp).sum()) == pytest.approx(slope, abs=1)
    assert float(images.square().sum()) == pytest.approx(power, rel=1e-3)
    assert int(masks.sum()) == pytest.approx(labels, abs=5)


def test_enabling_one_augmentation_leaves_other_draws_unchanged() -> None:
    """Elastic deformation, motion, ghosts and low resolution with an extent of 0 change nothing."""
    config = OLDER.replace(affine_p=1.0, gamma_p=0.0)
    extents = {"elastic_px": 0.0, "lowres": 1.0, "ghost": 0.0, "motion_px": 0.0}
    chances = {"elastic_p": 1.0, "lowres_p": 1.0, "ghost_p": 1.0, "motion_p": 1.0}
    images, masks = Augment(config.replace(**extents, **chances), seed=1)(batch_of(), 0)
    expected = Augment(config, seed=1)(batch_of(), 0)
    torch.testing.assert_close(images, expected[0], rtol=0, atol=1e-4)
    assert torch.equal(masks, expected[1])


@pytest.mark.parametrize(
    ("chance", "extent", "whole", "half"),
    [
        ("elastic_p", "elastic_px", 6.0, 3.0),
        ("lowres_p", "lowres", 3.0, 2.0),
        ("ghost_p", "ghost", 0.4, 0.2),
        ("motion_p", "motion_px", 6.0, 3.0),
    ],
)
def test_strength_scales_extents(chance: str, extent: str, whole: float, half: float) -> None:
    config = NOTHING.replace(**{chance: 1.0})
    strong = config.replace(**{extent: whole}, strength=0.5)
    found = Augment(strong, seed=1)(batch_of(), 0)
    expected = Augment(config.replace(**{extent: half}), seed=1)(batch_of(), 0)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)
    assert torch.equal(found[1], expected[1])
    assert not torch.equal(found[0], batch_of().images)


@pytest.mark.parametrize("config", [ALL, ALL.replace(affine_p=0.0, elastic_p=0.0)], ids=str)
def test_a_mask_channel_is_deformed_but_not_varied(config: AugmentConfig) -> None:
    """The other channels are varied as they are without it."""
    batch = batch_of()
    brain = (batch.images[:, :1] != 0).float()
    is_intensity = np.array([True, True, False, True, True])
    joined = torch.cat([batch.images[:, :2], brain, batch.images[:, 2:]], dim=1)
    with_brain = dataclasses.replace(batch, images=joined, is_intensity=is_intensity)
    images, masks = Augment(config, seed=1)(with_brain, 0)
    alone = Augment(config, seed=1)(batch, 0)
    assert torch.equal(images[:, is_intensity], alone[0])
    assert torch.equal(masks, alone[1])
    found = images[:, 2]
    assert set(found.unique().tolist()) == {0, 1}
    if config.affine_p == 0:
        flipped = Augment(NOTHING.replace(flip=config.flip), seed=1)(with_brain, 0)[0][:, 2]
        assert torch.equal(found, flipped)
    else:
        assert not torch.equal(found, brain[:, 0])
        assert ((found > 0) | (masks == 0)).float().mean() > 0.99


@pytest.mark.parametrize("width", [1, 4, 8])
def test_augmentation_does_not_depend_on_how_a_batch_is_divided(width: int) -> None:
    """Single samples, four ranks and two ranks give the same as one rank."""
    augment, batch = Augment(ALL, seed=1), batch_of()
    images, masks = augment(batch, 2)
    parts = [augment(part_of(batch, slice(low, low + width)), 2) for low in range(0, 16, width)]
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), images, rtol=0, atol=1e-5)
    assert torch.equal(torch.cat([part[1] for part in parts]), masks)


def test_samples_are_varied_independently() -> None:
    batch = batch_of()
    same = Batch(
        batch.images[:1].repeat(16, 1, 1, 1), batch.masks[:1].repeat(16, 1, 1), batch.positions, batch.lateral
    )
    images, _ = Augment(ALL, seed=1)(same, 0)
    assert len({image.numpy().tobytes() for image in images}) == 16


def test_the_background_stays_0_and_values_finite() -> None:
    config = ALL.replace(strength=2.0, affine_p=0.0, elastic_p=0.0, flip=(0.0, 0.0))
    batch = batch_of()
    images, _ = Augment(config, seed=1)(batch, 0)
    assert not images[batch.images == 0].any()
    assert torch.isfinite(images).all()
    moved, _ = Augment(ALL.replace(strength=2.0), seed=1)(batch, 0)
    assert (moved == 0).float().mean() > 0.3
    assert torch.isfinite(moved).all()


def test_an_empty_image_stays_empty() -> None:
    batch = batch_of()
    empty = Batch(
        torch.zeros_like(batch.images), torch.zeros_like(batch.masks), batch.positions, batch.lateral
    )
    images, masks = Augment(ALL, seed=1)(empty, 0)
    assert not images.any()
    assert not masks.any()


def test_strength_0_is_the_identity() -> None:
    batch = batch_of()
    images, masks = Augment(ALL.replace(strength=0.0), seed=1)(batch, 0)
    assert torch.equal(images, batch.images)
    assert torch.equal(masks, batch.masks)


def test_with_every_probability_at_0_nothing_changes() -> None:
    batch = batch_of()
    images, masks = Augment(NOTHING, seed=1)(batch, 0)
    assert torch.equal(images, batch.images)
    assert torch.equal(masks, batch.masks)


@pytest.mark.parametrize(
    "settings",
    [
        {"flip": (0.5, 0.5), "affine_p": 1.0, "stretch": 0.1, "shift": 0.1, "rotate_deg": 40},
        {"elastic_p": 1.0, "elastic_px": 4.0},
        {"flip": (0.5, 0.5), "affine_p": 1.0, "elastic_p": 0.5, "elastic_px": 3.0},
    ],
    ids=str,
)
def test_masks_stay_labels_and_follow_the_image(settings: dict[str, Any]) -> None:
    """A mask drawn into the image moves with the mask, apart from rounding at its edge."""
    batch = batch_of()
    drawn = Batch(
        batch.masks[:, None].repeat(1, 4, 1, 1).float(), batch.masks, batch.positions, batch.lateral
    )
    images, masks = Augment(NOTHING.replace(**settings), seed=1)(drawn, 0)
    assert masks.dtype == torch.uint8
    assert set(masks.unique().tolist()) == {0, 1, 3}
    for image, mask, before in zip(images[:, 0], masks, batch.masks, strict=True):
        tumour = mask > 0
        assert not torch.equal(mask, before)
        assert ((image > 0.5) != tumour).sum() < 0.1 * tumour.sum()


@pytest.mark.parametrize(("flip", "axis"), [((1.0, 0.0), 0), ((0.0, 1.0), 1)])
def test_a_flip_mirrors_image_and_mask(flip: tuple[float, float], axis: int) -> None:
    batch = batch_of()
    images, masks = Augment(NOTHING.replace(flip=flip), seed=1)(batch, 0)
    assert torch.equal(images, batch.images.flip(2 + axis))
    assert torch.equal(masks, batch.masks.flip(1 + axis))


def test_columns_are_mirrored_only_if_they_run_from_left_to_right() -> None:
    batch = batch_of(lateral=False)
    images, masks = Augment(NOTHING.replace(flip=(0.0, 1.0)), seed=1)(batch, 0)
    assert torch.equal(images, batch.images)
    assert torch.equal(masks, batch.masks)


def test_flips_have_the_configured_probability() -> None:
    batch = batch_of(16)
    augment = Augment(NOTHING.replace(flip=(0.0, 0.25)), seed=1)
    flipped = [
        not torch.equal(mask, batch.masks[0]) for epoch in range(40) for mask in augment(batch, epoch)[1]
    ]
    # 640 draws: five standard deviations are 0.086.
    assert abs(np.mean(flipped) - 0.25) < 0.086


def test_a_rotation_keeps_pixels_square() -> None:
    """A rotated disc remains a disc in an image that is not square."""
    rows, columns = torch.meshgrid(torch.arange(48) - 23.5, torch.arange(96) - 47.5, indexing="ij")
    disc = (rows**2 + columns**2 < 20**2).float()
    batch = Batch(
        disc.repeat(8, 1, 1, 1), disc.to(torch.uint8).repeat(8, 1, 1), np.arange(8), np.full(8, True)
    )
    config = NOTHING.replace(affine_p=1.0, rotate_deg=90, scale=0.0)
    _, masks = Augment(config, seed=1)(batch, 0)
    assert ((masks != batch.masks).sum(dim=(1, 2)) < 0.05 * disc.sum()).all()


@pytest.mark.parametrize(
    "setting",
    [
        {"intensity_p": 1.0, "contrast": 0.3, "brightness": 0.0},
        {"intensity_p": 1.0, "contrast": 0.0, "brightness": 0.3},
        {"intensity_p": 1.0, "contrast": 0.0, "brightness": 0.0, "curve": 0.5},
        {"gamma_p": 1.0},
        {"bias": 0.3},
        {"noise_p": 1.0},
        {"blur_p": 1.0},
        {"lowres_p": 1.0},
        {"ghost_p": 1.0},
        {"motion_p": 1.0},
    ],
    ids=lambda setting: next(reversed(setting)),
)
def test_each_intensity_setting_has_an_effect_and_leaves_the_mask(setting: dict[str, Any]) -> None:
    batch = batch_of()
    images, masks = Augment(NOTHING.replace(**setting), seed=1)(batch, 0)
    assert torch.equal(masks, batch.masks)
    changed = (images != batch.images).flatten(1).any(dim=1)
    assert changed.all()
    assert not images[batch.images == 0].any()


def test_a_dropped_modality_is_blank_and_the_others_are_unchanged() -> None:
    batch = batch_of()
    images, _ = Augment(NOTHING.replace(drop_p=0.5), seed=1)(batch, 0)
    dropped = ~images.flatten(2).any(dim=2)
    assert 0.2 < dropped.float().mean() < 0.8
    assert torch.equal(images[~dropped], batch.images[~dropped])
