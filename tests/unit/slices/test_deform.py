"""Elastic deformation: its units and signs, and its combination with the affine map."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from glioray.slices.deform import deform, sampling_grid

SIZE = (24, 40)
IDENTITY = torch.eye(2, 3)[None]


def displaced(x_px: float, y_px: float) -> torch.Tensor:
    return torch.tensor([x_px, y_px]).view(1, 2, 1, 1).expand(1, 2, 3, 3).contiguous()


@pytest.mark.parametrize(("x_px", "y_px"), [(3.0, 0.0), (0.0, -2.0), (-5.0, 4.0)])
def test_displacements_point_to_the_source_in_pixels(x_px: float, y_px: float) -> None:
    images = torch.randn(1, 2, *SIZE, generator=torch.Generator().manual_seed(0))
    masks = torch.randint(0, 4, (1, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    grid = sampling_grid(IDENTITY, SIZE, displaced(x_px, y_px))
    moved, labels = deform(images, masks, grid, np.ones(2, bool))
    shift = (-int(y_px), -int(x_px))
    inside = torch.roll(torch.ones(SIZE), shift, (0, 1)).bool()
    inside[F.pad(torch.ones(1, 1, 8, 8), (16, 16, 8, 8))[0, 0] == 0] = False
    torch.testing.assert_close(moved[..., inside], images.roll(shift, (2, 3))[..., inside], rtol=0, atol=1e-4)
    assert torch.equal(labels[:, inside], masks.roll(shift, (1, 2))[:, inside])
    # Outside the image there is background.
    column = -1 if x_px > 0 else 0
    row = -1 if y_px > 0 else 0
    assert not (x_px and moved[..., column].any())
    assert not (y_px and moved[..., row, :].any())


def test_without_displacements_the_map_is_affine() -> None:
    theta = torch.tensor([[[0.9, 0.2, 0.1], [-0.2, 1.1, 0.0]]])
    affine = F.affine_grid(theta, [1, 1, *SIZE], align_corners=False)
    assert torch.equal(sampling_grid(theta, SIZE), affine)
    assert torch.equal(sampling_grid(theta, SIZE, torch.zeros(1, 2, 3, 3)), affine)
    moved = sampling_grid(theta, SIZE, displaced(2.0, 3.0)) - affine
    torch.testing.assert_close(moved, torch.tensor([4 / 40, 6 / 24]).expand_as(moved))


def test_a_displacement_is_largest_at_its_grid_point_and_fades_smoothly() -> None:
    coarse = torch.zeros(1, 2, 3, 3)
    coarse[0, 0, 1, 1] = 10
    size = (25, 41)
    pixels = (sampling_grid(IDENTITY, size, coarse) - sampling_grid(IDENTITY, size))[0, ..., 0] * 41 / 2
    assert float(pixels[12, 20]) == pytest.approx(10, abs=1e-4)
    assert int(pixels.argmax()) == 12 * 41 + 20
    assert float(pixels[:, [0, -1]].abs().max()) < 1e-4
    assert float(pixels.diff(dim=1).abs().max()) < 1


def test_a_mask_channel_stays_binary() -> None:
    mask = torch.zeros(1, 1, *SIZE)
    mask[..., 6:18, 10:30] = 1
    images = torch.cat([mask, mask], dim=1)
    grid = sampling_grid(IDENTITY, SIZE, displaced(0.4, 0.3))
    moved, _ = deform(images, mask[:, 0].to(torch.uint8), grid, np.array([True, False]))
    assert len(moved[:, 0].unique()) > 2
    assert torch.equal(moved[:, 1], (moved[:, 0] > 0.5).float())
