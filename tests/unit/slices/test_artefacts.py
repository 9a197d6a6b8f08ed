"""Artefacts compared with results computed by hand or in NumPy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from glioray.slices.artefacts import add_ghosts, add_motion, simulate_low_resolution

Artefact = Callable[[torch.Tensor, slice], torch.Tensor]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def brains(count: int) -> torch.Tensor:
    """(B, 2, 30, 40) z-scores in a background of 0."""
    rows, columns = torch.meshgrid(torch.arange(30) - 14, torch.arange(40) - 20, indexing="ij")
    return noise(count, 2, 30, 40) * ((rows / 11) ** 2 + (columns / 15) ** 2 < 1)


def test_half_resolution_by_hand() -> None:
    """Of eight pixels the samples are 1, 3, 5 and 7, each at the centre of two pixels."""
    line = torch.tensor([0.0, 10, 0, 20, 0, 40, 0, 80])
    expected = torch.tensor([10, 12.5, 17.5, 25, 35, 50, 70, 80])
    factors = np.array([[2.0]])
    columns = simulate_low_resolution(line.expand(1, 1, 8, 8).contiguous(), factors)
    torch.testing.assert_close(columns, expected.expand(1, 1, 8, 8))
    rows = simulate_low_resolution(line[:, None].expand(1, 1, 8, 8).contiguous(), factors)
    torch.testing.assert_close(rows, expected[:, None].expand(1, 1, 8, 8))


def test_each_channel_has_its_own_resolution() -> None:
    images, factors = noise(3, 2, 24, 40), np.array([[1.0, 1.3], [2.0, 1.0], [3.7, 100.0]])
    lowered = simulate_low_resolution(images, factors)
    assert torch.equal(lowered[0, 0], images[0, 0])
    assert torch.equal(lowered[1, 1], images[1, 1])
    assert torch.isfinite(lowered).all()
    # A factor of 100 leaves a single sample.
    assert len(lowered[2, 1].unique()) == 1
    for row in range(3):
        for channel in range(2):
            alone = simulate_low_resolution(
                images[row : row + 1, channel : channel + 1], factors[row, channel].reshape(1, 1)
            )
            assert torch.equal(alone[0, 0], lowered[row, channel])
    assert torch.equal(
        simulate_low_resolution(torch.full((1, 2, 24, 40), 3.0), factors[:1]), torch.full((1, 2, 24, 40), 3.0)
    )


@pytest.mark.parametrize(("axis", "period", "distance"), [(0, 4.0, 12), (0, 2.0, 24), (1, 8.0, 8)])
def test_a_point_has_two_ghosts(axis: int, period: float, distance: int) -> None:
    size = (48, 64)
    image = torch.zeros(1, 1, *size)
    image[0, 0, 24, 32] = 1
    found = add_ghosts(image, torch.tensor([[0.3]]), torch.tensor([period]), torch.tensor([axis]))
    expected = torch.zeros(1, 1, *size)
    expected[0, 0, 24, 32] = 0.7
    for sign in (-1, 1):
        place = [24, 32]
        place[axis] = (place[axis] + sign * distance) % size[axis]
        expected[0, 0, place[0], place[1]] += 0.15
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_outer_lines_come_from_the_shifted_head(axis: int) -> None:
    image = brains(1)[:, :1].abs()
    found = add_motion(image, torch.tensor([[[3.0, -2.0]]]), torch.tensor([[0.2]]), torch.tensor([axis]))
    size = image.shape[2 + axis]
    lines = np.fft.fftfreq(size) * size
    outer = np.reshape(lines >= 0.2 * size, (-1, 1) if axis == 0 else (1, -1))
    assert 0 < outer.sum() < size / 2
    plain = image[0, 0].double().numpy()
    shifted = np.roll(plain, (3, -2), (0, 1))
    expected = np.abs(np.fft.ifft2(np.where(outer, np.fft.fft2(shifted), np.fft.fft2(plain))))
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-5)
    assert np.abs(expected - plain).max() > 0.1


def with_ghosts(images: torch.Tensor, rows: slice) -> torch.Tensor:
    shares, periods = torch.tensor([[0.3, 0.0], [0.5, 0.1], [0.2, 0.4]]), torch.tensor([2.0, 3.3, 7.0])
    return add_ghosts(images, shares[rows], periods[rows], torch.tensor([0, 1, 0])[rows])


def with_motion(images: torch.Tensor, rows: slice) -> torch.Tensor:
    shifts_px = torch.tensor([[[2.0, 5.0], [0.0, 0.0]], [[-3.0, 1.5], [6.0, 0.0]], [[1.0, 1.0], [0.0, 2.5]]])
    starts = torch.tensor([[0.05, 0.1], [0.2, 0.03], [0.04, 0.04]])
    return add_motion(images, shifts_px[rows], starts[rows], torch.tensor([1, 0, 0])[rows])


@pytest.mark.parametrize("artefact", [with_ghosts, with_motion])
def test_a_batch_equals_its_samples_and_zero_strength_changes_nothing(artefact: Artefact) -> None:
    images = brains(3)
    whole = artefact(images, slice(0, 3))
    for row in range(3):
        alone = artefact(images[row : row + 1], slice(row, row + 1))
        torch.testing.assert_close(alone[0], whole[row], rtol=0, atol=1e-5)
    still = (0, 1)
    inside = images[still] != 0
    torch.testing.assert_close(whole[still][inside], images[still][inside], rtol=0, atol=1e-5)
    assert (whole[2] - images[2]).abs().max() > 0.1


@pytest.mark.parametrize("artefact", [with_ghosts, with_motion])
def test_the_background_gives_the_brain_no_false_outline(artefact: Artefact) -> None:
    """Air counts as darkest whatever 0 means in z-scores: a brighter brain has the same artefacts."""
    images = brains(3)
    inside = images != 0
    lower = images.amin((2, 3), keepdim=True)
    brighter = torch.where(inside, images - 0.5 * lower, 0)
    difference = artefact(brighter, slice(0, 3)) - artefact(images, slice(0, 3))
    torch.testing.assert_close(difference, (-0.5 * lower).expand_as(difference), rtol=0, atol=1e-4)


@pytest.mark.parametrize("artefact", [with_ghosts, with_motion])
def test_an_empty_slice_stays_empty(artefact: Artefact) -> None:
    assert not artefact(torch.zeros(3, 2, 30, 40), slice(0, 3)).any()
