"""Pairs of high and low resolution depend on the sample only, not on its batch or rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from glioray.config import PreprocessConfig, TrainConfig, with_settings
from glioray.slices.store import Batch
from glioray.tasks.superres.config import DegradeConfig, GanConfig
from glioray.tasks.superres.degrade import degrade, resize
from glioray.tasks.superres.pairs import Pairs, draw_pairs, fixed_images

CONFIG = GanConfig(
    recipe="test",
    preprocess=PreprocessConfig(normalize="unit", size=(64, 48)),
    degrade=DegradeConfig(hr_size=32, lr_size=9),
    train=TrainConfig(seed=3),
)
Make = Callable[..., Pairs]


def _batch(num: int = 24, *, lateral: bool = True) -> Batch:
    """Slices whose pixels encode their modality, row and column."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(48), indexing="ij")
    channels = torch.arange(4).view(4, 1, 1)
    images = (channels * 64 * 64 + y * 64 + x).float() / (4 * 64 * 64)
    return Batch(
        images.repeat(num, 1, 1, 1),
        torch.zeros(num, 64, 48, dtype=torch.uint8),
        np.arange(num) + 5,
        np.full(num, lateral),
    )


def _read(hr: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The modality, row and column of each pixel of patches (B, C, H, W)."""
    code = np.rint(hr.numpy() * 4 * 64 * 64).astype(int)
    return code // 4096, code // 64 % 64, code % 64


def draw(batch: Batch, epoch: int = 1, **settings: Any) -> Pairs:
    return draw_pairs(batch, with_settings(CONFIG, settings), epoch)


@pytest.mark.parametrize("channels", ["each", "joint"])
@pytest.mark.parametrize("cut", ["patch", "whole"])
def test_shapes_and_range(channels: str, cut: str):
    pairs = draw(_batch(), **{"channels": channels, "degrade.cut": cut, "degrade.noise": 0.02})
    num = 1 if channels == "each" else 4
    assert pairs.hr.shape == (24, num, 32, 32)
    assert pairs.lr.shape == (24, num, 9, 9)
    assert pairs.hr.dtype == pairs.lr.dtype == torch.float32
    assert 0 <= float(pairs.hr.min()) < float(pairs.hr.max()) <= 1
    assert len(pairs.rngs) == 24


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"channels": "joint", "degrade.noise": 0.1, "degrade.name": "kspace"},
        {"degrade.cut": "whole", "degrade.noise": 0.1},
    ],
    ids=str,
)
def test_a_sample_is_the_same_on_every_rank(settings: dict[str, Any]):
    batch = _batch()
    whole = draw(batch, **settings)
    for low, high in ((0, 12), (12, 24), (7, 8)):
        part = Batch(
            batch.images[low:high], batch.masks[low:high], batch.positions[low:high], batch.lateral[low:high]
        )
        found = draw(part, **settings)
        assert torch.equal(found.hr, whole.hr[low:high])
        torch.testing.assert_close(found.lr, whole.lr[low:high], rtol=1e-6, atol=1e-7)
        # Later draws are the same, too.
        fresh = draw(batch, **settings).rngs[low:high]
        assert [rng.random() for rng in found.rngs] == [rng.random() for rng in fresh]


def test_low_resolution_is_computed_from_high_resolution():
    pairs = draw(_batch())
    torch.testing.assert_close(pairs.lr, degrade(pairs.hr, (9, 9), CONFIG.degrade))


def test_draws_vary_with_sample_epoch_and_seed():
    first = draw(_batch())
    assert torch.equal(first.hr, draw(_batch()).hr)
    for other in (draw(_batch(), epoch=2), draw(_batch(), **{"train.seed": 4})):
        same = (first.hr == other.hr).flatten(1).all(1)
        assert float(same.float().mean()) < 0.2
    modality, rows, columns = _read(first.hr)
    assert set(np.unique(modality)) == {0, 1, 2, 3}
    assert len({(r.min(), c.min()) for r, c in zip(rows, columns, strict=True)}) > 15


def test_two_nodes_have_different_draws():
    """Each node numbers its samples from 0."""
    one, two = (draw_pairs(_batch(), CONFIG, 1, node_rank=rank) for rank in (0, 1))
    assert torch.equal(one.hr, draw(_batch()).hr)
    assert float((one.hr == two.hr).flatten(1).all(1).float().mean()) < 0.2


def test_patches_lie_inside_and_reach_every_edge():
    _, rows, columns = _read(draw(_batch(300), flip=0.0).hr)
    tops, lefts = rows.min((1, 2, 3)), columns.min((1, 2, 3))
    assert (tops.min(), tops.max(), lefts.min(), lefts.max()) == (0, 64 - 32, 0, 48 - 32)
    assert (rows.max((1, 2, 3)) - tops == 31).all()
    assert (columns.max((1, 2, 3)) - lefts == 31).all()


def test_flips_have_the_configured_probability_and_sagittal_columns_are_never_flipped():
    _, rows, columns = _read(draw(_batch(400)).hr[:, 0])
    upside, mirrored = rows[:, 0, 0] > rows[:, 1, 0], columns[:, 0, 0] > columns[:, 0, 1]
    assert 0.4 < upside.mean() < 0.6
    assert 0.4 < mirrored.mean() < 0.6
    assert 0.15 < (upside & mirrored).mean() < 0.35
    _, rows, columns = _read(draw(_batch(50, lateral=False), flip=1.0).hr[:, 0])
    assert (rows[:, 0, 0] > rows[:, 1, 0]).all()
    assert (columns[:, 0, 0] < columns[:, 0, 1]).all()
    _, rows, columns = _read(draw(_batch(50), flip=0.0).hr[:, 0])
    assert (rows[:, 0, 0] < rows[:, 1, 0]).all()
    assert (columns[:, 0, 0] < columns[:, 0, 1]).all()


def test_each_draws_one_modality_and_joint_keeps_all():
    modality, _, _ = _read(draw(_batch(400)).hr)
    counts = np.bincount(modality[:, 0, 0, 0], minlength=4)
    assert (modality == modality[:, :, :1, :1]).all()
    assert counts.min() > 60
    modality, rows, columns = _read(draw(_batch(), channels="joint").hr)
    assert (modality == np.arange(4).reshape(1, 4, 1, 1)).all()
    assert (rows == rows[:, :1]).all()
    assert (columns == columns[:, :1]).all()


def test_whole_slices_are_resized():
    batch = _batch(3)
    pairs = draw(batch, **{"degrade.cut": "whole", "channels": "joint", "flip": 0.0})
    torch.testing.assert_close(pairs.hr, resize(batch.images, (32, 32)))


def _head(top: int, left: int, *, height: int = 20, width: int = 14) -> torch.Tensor:
    image = torch.zeros(4, 64, 48)
    image[:, top : top + height, left : left + width] = torch.rand(4, height, width) + 0.1
    return image.clamp(0, 1)


@pytest.mark.parametrize(("top", "left"), [(18, 17), (12, 10), (30, 20)])
def test_fixed_images_are_centred_on_the_brain(top: int, left: int):
    image = _head(top, left)
    made = fixed_images(image, CONFIG)
    assert made.shape == (4, 1, 32, 32)
    filled = (made > 0).any(0)[0]
    for axis, side in ((0, 20), (1, 14)):
        present = torch.nonzero(filled.any(1 - axis)).flatten()
        assert len(present) == side  # all of it is inside
        assert abs(float(present.double().mean()) - 15.5) <= 1
    assert torch.equal(made, fixed_images(image, CONFIG))


def test_fixed_images_of_brains_at_the_edge_and_of_empty_slices():
    assert (fixed_images(_head(0, 0), CONFIG)[:, 0, :20, :14] > 0).all()
    assert (fixed_images(_head(44, 34), CONFIG)[:, 0, -20:, -14:] > 0).all()
    assert fixed_images(torch.zeros(4, 64, 48), CONFIG).shape == (4, 1, 32, 32)
    image = _head(10, 10)
    joint = fixed_images(image, with_settings(CONFIG, {"channels": "joint"}))
    assert joint.shape == (1, 4, 32, 32)
    assert torch.equal(joint[0], fixed_images(image, CONFIG)[:, 0])
    whole = fixed_images(image, with_settings(CONFIG, {"degrade.cut": "whole"}))
    torch.testing.assert_close(whole, resize(image[:, None], (32, 32)))
