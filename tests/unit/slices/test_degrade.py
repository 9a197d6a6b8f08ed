"""Degradations keep positions and flat images, and noise is independent for each image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from glioray.tasks.superres.config import DEGRADATIONS, DegradeConfig
from glioray.tasks.superres.degrade import degrade, resize, upsample

SIZES = (28, 31, 32, 64)


def _config(name: str, noise: float = 0.0, sigma: float = 0.5) -> DegradeConfig:
    return DegradeConfig(name=name, noise=noise, sigma=sigma)


def _blobs(size: int, centres: list[tuple[float, float]], sigma: float = 9.0) -> Tensor:
    """(B, 1, size, size) with a Gaussian at each centre, (y, x) in pixels from the image's centre."""
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    images = [
        torch.exp(-((place[:, None] - y) ** 2 + (place[None] - x) ** 2) / (2 * sigma**2)) for y, x in centres
    ]
    return torch.stack(images)[:, None].float()


def _centroids(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 2), in pixels of an image of `size`, relative to its centre."""
    found = []
    for axis in (0, 1):
        length = images.shape[axis - 2]
        place = (torch.arange(length) + 0.5) * size[axis] / length - size[axis] / 2
        line = images.double().sum((1, 3 - axis if axis == 0 else 2))
        found.append((line * place).sum(1) / line.sum(1))
    return torch.stack(found, 1)


def _slices() -> Tensor:
    """(4, 1, 128, 128) in [0, 1]: heads with edges, folds and a background of 0."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    images = []
    for _ in range(4):
        angle, radius = np.arctan2(y, x), np.hypot(1.2 * x, y)
        folds = 0.3 * np.sin(9 * angle + rng.uniform(0, 6)) * np.sin(14 * radius + rng.uniform(0, 6))
        image = np.where(radius < 0.8, 0.5 + folds + 0.3 * (radius > 0.65), 0)
        images.append(np.where(np.hypot(x - 0.2, y + 0.1) < 0.12, 0.95, image))
    return torch.from_numpy(np.stack(images)[:, None].astype(np.float32)).clamp(0, 1)


def _psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", DEGRADATIONS)
def test_the_centroid_does_not_move(name: str, size: int):
    centres = [(0.0, 0.0), (7.3, -11.6), (-20.0, 15.5)]
    hr = _blobs(128, centres)
    lr = degrade(hr, (size, size), _config(name))
    assert lr.shape == (3, 1, size, size)
    assert lr.dtype == torch.float32
    torch.testing.assert_close(
        _centroids(lr, (128, 128)), torch.tensor(centres, dtype=torch.float64), rtol=0, atol=0.01
    )
    # The same after upsampling.
    back = upsample(lr, (128, 128))
    torch.testing.assert_close(
        _centroids(back, (128, 128)), torch.tensor(centres, dtype=torch.float64), rtol=0, atol=0.02
    )


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_sides_may_differ(name: str):
    hr = _blobs(128, [(5.0, -9.0)])[:, :, 10:110]  # 100 x 128
    lr = degrade(hr, (31, 48), _config(name))
    assert lr.shape == (1, 1, 31, 48)
    wanted = _centroids(hr, (100, 128))
    torch.testing.assert_close(_centroids(lr, (100, 128)), wanted, rtol=0, atol=0.01)
    turned = degrade(hr.mT, (48, 31), _config(name))
    torch.testing.assert_close(turned.mT, lr, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_flat_images_stay_flat_and_zero_stays_zero(name: str):
    for value in (0.0, 0.37, 1.0):
        for size in (28, 31, 32, 64):
            lr = degrade(torch.full((1, 2, 128, 96), value), (size, size - 3), _config(name))
            torch.testing.assert_close(lr, torch.full_like(lr, value), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_the_background_stays_near_zero(name: str):
    hr = _slices()
    lr = degrade(hr, (32, 32), _config(name))
    far = torch.nn.functional.max_pool2d(hr, 12, 4, 4)[..., :32, :32] == 0
    assert far.float().mean() > 0.1
    assert float(lr[far].abs().max()) < (0.05 if name == "kspace" else 0.02)  # kspace rings
    assert float(lr.mean()) == pytest.approx(float(hr.mean()), rel=0.05)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_images_and_channels_are_degraded_independently(name: str):
    hr = _slices().view(2, 2, 128, 128)
    together = degrade(hr, (28, 28), _config(name))
    for number in range(2):
        for channel in range(2):
            alone = degrade(hr[number : number + 1, channel : channel + 1], (28, 28), _config(name))
            torch.testing.assert_close(together[number, channel], alone[0, 0], rtol=1e-5, atol=1e-6)


def test_degradations_are_linear_apart_from_the_modulus_and_differ():
    hr = _slices()
    made = {name: degrade(hr, (32, 32), _config(name)) for name in DEGRADATIONS}
    for name in ("bicubic_aa", "gaussian"):
        torch.testing.assert_close(
            degrade(0.5 * hr, (32, 32), _config(name)), 0.5 * made[name], rtol=0, atol=1e-6
        )
    assert float(made["kspace"].min()) >= 0
    for first, second in (("bicubic_aa", "kspace"), ("bicubic_aa", "gaussian"), ("kspace", "gaussian")):
        assert not torch.allclose(made[first], made[second], atol=1e-2)
        assert _psnr(made[first], made[second]) > 20
    blurred = degrade(hr, (32, 32), _config("gaussian", sigma=2.0))
    assert float(blurred.var()) < float(made["gaussian"].var())


@pytest.mark.parametrize("size", [31, 32])
def test_cropping_the_fourier_plane_needs_a_phase(size: int):
    """Without it the image is shifted by (s - 1) / 2 pixels, which upsampling cannot undo."""
    low = 64 - size // 2

    def plain(hr: Tensor) -> Tensor:
        plane = torch.fft.fftshift(torch.fft.fft2(hr), dim=(-2, -1))
        crop = torch.fft.ifftshift(plane[..., low : low + size, low : low + size], dim=(-2, -1))
        return torch.fft.ifft2(crop).abs() * (size / 128) ** 2

    blobs = _blobs(128, [(0.0, 0.0), (7.3, -11.6)])
    off = _centroids(plain(blobs), (128, 128)) - _centroids(blobs, (128, 128))
    torch.testing.assert_close(off, torch.full_like(off, (128 / size - 1) / 2), rtol=0, atol=0.01)
    hr = _slices()
    ours = degrade(hr, (size, size), _config("kspace"))
    good, bad = (_psnr(upsample(lr, (128, 128)), hr) for lr in (ours, plain(hr)))
    assert good > bad + 2


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_noise_is_independent_per_image_and_reproducible(name: str):
    hr = _slices()
    config = _config(name, noise=0.05)
    quiet = degrade(hr, (32, 32), config)
    assert torch.equal(quiet, degrade(hr, (32, 32), _config(name)))

    def noisy(images: Tensor, seeds: list[int]) -> Tensor:
        return degrade(images, (32, 32), config, [np.random.default_rng(seed) for seed in seeds])

    all_four = noisy(hr, [0, 1, 2, 3])
    assert torch.equal(all_four, noisy(hr, [0, 1, 2, 3]))
    assert not torch.equal(all_four, noisy(hr, [4, 1, 2, 3]))
    torch.testing.assert_close(torch.cat([noisy(hr[:2], [0, 1]), noisy(hr[2:], [2, 3])]), all_four)
    same = noisy(hr[:1].repeat(2, 1, 1, 1), [0, 1])
    assert not torch.equal(same[0], same[1])
    inside = quiet > 0.3
    assert float((all_four - quiet)[inside].std()) == pytest.approx(0.05, rel=0.1)


def test_rician_noise_is_positive_and_has_the_expected_mean():
    lr = degrade(
        torch.zeros(8, 1, 64, 64), (32, 32), _config("kspace", noise=0.1),
        [np.random.default_rng(seed) for seed in range(8)],
    )  # fmt: skip
    assert float(lr.min()) > 0
    # Without signal the modulus has a Rayleigh distribution.
    assert float(lr.mean()) == pytest.approx(0.1 * np.sqrt(np.pi / 2), rel=0.02)
    gauss = degrade(
        torch.zeros(8, 1, 64, 64), (32, 32), _config("gaussian", noise=0.1),
        [np.random.default_rng(seed) for seed in range(8)],
    )  # fmt: skip
    assert float(gauss.min()) < 0
    assert float(gauss.mean()) == pytest.approx(0, abs=0.005)


def test_upsampling_and_resizing():
    hr = _slices()
    assert upsample(hr[..., ::4, ::4], (119, 130)).shape == (4, 1, 119, 130)
    small = resize(hr, (61, 70))
    assert small.shape == (4, 1, 61, 70)
    assert float(small.min()) >= 0
    assert float(small.max()) <= 1
    torch.testing.assert_close(_centroids(small, (128, 128)), _centroids(hr, (128, 128)), rtol=0, atol=0.1)
