"""Image metrics compared with scikit-image, SciPy and NumPy, and what they exclude."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_laplace
from torch import Tensor

from glioray.metrics.image import above_nyquist, hf_db, hfen, image_metrics, nrmse, power_spectrum, psnr, ssim
from glioray.tasks.superres.config import DegradeConfig
from glioray.tasks.superres.degrade import degrade, upsample

FIGURES = (psnr, ssim, nrmse, hfen)


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor, Tensor]:
    """A truth with a dark surround, its bicubic version and its foreground."""
    rng = np.random.default_rng(0)
    rough = gaussian_filter(rng.standard_normal((6, 60, 52)), (0, 1.2, 1.2)) * 4
    hr = torch.from_numpy(np.clip(0.5 + 0.2 * rough, 0.01, 1).astype(np.float32))
    hr[:, :9] = hr[:, :, 45:] = 0
    low = degrade(hr[:, None], (15, 13), DegradeConfig())
    return hr, upsample(low, (60, 52))[:, 0].clamp(0, 1), hr > 0


def test_metrics_of_whole_images_equal_scikit_images(images: tuple[Tensor, Tensor, Tensor]):
    metrics = pytest.importorskip("skimage.metrics")
    hr, other, mask = images
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    for number, (truth, image) in enumerate(zip(hr.numpy(), other.numpy(), strict=True)):
        mean, full = metrics.structural_similarity(truth, image, full=True, **options)
        assert ssim(other, hr)[number].item() == pytest.approx(mean, abs=1e-4)
        inside = full[mask[number].numpy()].mean()
        assert ssim(other, hr, mask)[number].item() == pytest.approx(inside, abs=1e-4)
        expected = metrics.peak_signal_noise_ratio(truth, image, data_range=1)
        assert psnr(other, hr)[number].item() == pytest.approx(expected, abs=1e-3)
        expected = metrics.normalized_root_mse(truth, image)
        assert nrmse(other, hr)[number].item() == pytest.approx(expected, rel=1e-4)


def test_hfen_equals_a_laplacian_of_gaussian(images: tuple[Tensor, Tensor, Tensor]):
    hr, other, mask = images
    for number, (truth, image) in enumerate(zip(hr.numpy(), other.numpy(), strict=True)):
        edges = [gaussian_laplace(a, 1.5, mode="reflect", truncate=7 / 1.5) for a in (image - truth, truth)]
        for chosen in (None, mask):
            picked = [edge if chosen is None else edge[chosen[number].numpy()] for edge in edges]
            expected = np.linalg.norm(picked[0]) / np.linalg.norm(picked[1])
            assert hfen(other, hr, chosen)[number].item() == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("figure", FIGURES)
def test_each_image_is_measured_alone_and_inside_its_mask(images: tuple[Tensor, Tensor, Tensor], figure):
    hr, other, mask = images
    alone = torch.cat([figure(other[k : k + 1], hr[k : k + 1], mask[k : k + 1]) for k in range(len(hr))])
    torch.testing.assert_close(figure(other, hr, mask), alone)
    if figure in (psnr, nrmse):
        torch.testing.assert_close(figure(torch.where(mask, other, 1), hr, mask), alone)


def test_equal_images_have_the_best_metrics(images: tuple[Tensor, Tensor, Tensor]):
    hr, _, mask = images
    best = {psnr: 100.0, ssim: 1.0, nrmse: 0.0, hfen: 0.0}
    for figure, value in best.items():
        for chosen in (None, mask):
            torch.testing.assert_close(figure(hr, hr, chosen), torch.full((6,), value), atol=1e-5, rtol=0)


def test_images_smaller_than_the_window_are_rejected():
    with pytest.raises(ValueError, match="expected more than 10 per side"):
        ssim(torch.zeros(1, 10, 40), torch.zeros(1, 10, 40))


@pytest.mark.parametrize("size", [(12, 16), (13, 15), (12, 9)])
def test_the_spectrum_covers_all_frequencies(size: tuple[int, int]):
    made = np.random.default_rng(1).random((3, *size), dtype=np.float32)
    # torch's window is the periodic one.
    rows, columns = (np.hanning(side + 1)[:-1] for side in size)
    expected = (np.abs(np.fft.fft2(made * (rows[:, None] * columns))) ** 2).mean(0)
    np.testing.assert_allclose(power_spectrum(torch.from_numpy(made)).numpy(), expected, rtol=1e-3, atol=1e-4)
    # A wave that low resolution can just hold is not above it, one more period is.
    above = above_nyquist((12, 16), (4, 8))
    assert [bool(above[at]) for at in ((2, 0), (3, 0), (0, 4), (0, 5))] == [False, True, False, True]


def test_bicubic_has_little_detail_and_twice_the_detail_has_6_db_more(
    images: tuple[Tensor, Tensor, Tensor],
):
    hr, other, _ = images
    assert hf_db(hr, hr, (15, 13)) == pytest.approx(0, abs=1e-4)
    assert hf_db(other, hr, (15, 13)) < -3
    noise = torch.rand(6, 60, 52)
    assert hf_db(2 * noise, noise, (15, 13)) == pytest.approx(20 * math.log10(2), abs=1e-3)


def test_all_metrics_are_returned_and_quality_increases_from_bicubic_to_the_truth(
    images: tuple[Tensor, Tensor, Tensor],
):
    hr, other, _ = images
    found = image_metrics(other, hr, other, lr_size=(15, 13))
    names = {f"{name}{suffix}" for name in ("psnr", "ssim", "nrmse", "hfen") for suffix in ("", "_whole")}
    names |= {"hf_db"}
    assert set(found) == names | {f"bicubic_{name}" for name in names} | {"gain_psnr", "quality"}
    assert (found["quality"], found["gain_psnr"]) == (0, 0)
    assert found["psnr"] < found["psnr_whole"]
    assert image_metrics(hr, hr, other, lr_size=(15, 13))["quality"] == pytest.approx(1, abs=1e-4)
    assert image_metrics(1 - hr, hr, other, lr_size=(15, 13))["quality"] == -1
    again = image_metrics(hr, hr, torch.zeros_like(hr), lr_size=(15, 13), previous=found)
    assert again == image_metrics(hr, hr, other, lr_size=(15, 13))


def test_images_without_foreground_are_excluded_from_its_means(images: tuple[Tensor, Tensor, Tensor]):
    hr, other, _ = images
    found = image_metrics(other, hr, other, lr_size=(15, 13))
    empty = torch.zeros_like(hr[:1])
    more = image_metrics(*(torch.cat([part, empty]) for part in (other, hr, other)), lr_size=(15, 13))
    for name in ("psnr", "ssim", "nrmse", "hfen"):
        assert more[name] == pytest.approx(found[name], rel=1e-5)
    assert more["psnr_whole"] > found["psnr_whole"]
    with pytest.raises(ValueError, match="none of the 1 images has a foreground"):
        image_metrics(empty, empty, empty, lr_size=(15, 13))


def test_outputs_are_clipped_and_every_metric_is_finite(images: tuple[Tensor, Tensor, Tensor]):
    hr, other, _ = images
    wild = torch.where(hr > 0.5, 9.0, -9.0)
    clipped = (hr > 0.5).float()
    assert image_metrics(wild, hr, other, lr_size=(15, 13)) == image_metrics(
        clipped, hr, other, lr_size=(15, 13)
    )
    for value in (math.nan, math.inf, -math.inf):
        broken = image_metrics(torch.full_like(hr, value), hr, other, lr_size=(15, 13))
        assert all(math.isfinite(figure) for figure in broken.values())


def test_quality_uses_lpips_if_given(images: tuple[Tensor, Tensor, Tensor]):
    hr, other, mask = images
    asked = []

    def distance(a: Tensor, b: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        assert a.shape == b.shape == (6, 1, 60, 52)
        asked.append(chosen)
        whole = (a - b).abs().mean((1, 2, 3))
        return 2 * whole, whole

    half = (hr + other) / 2
    found = image_metrics(half, hr, other, lr_size=(15, 13), lpips=distance)
    assert found["quality"] == pytest.approx(0.5, abs=1e-4)
    assert found["bicubic_lpips_whole"] == pytest.approx(2 * found["lpips_whole"], rel=1e-4)
    assert found["lpips"] == pytest.approx(2 * found["lpips_whole"])
    assert len(asked) == 2
    assert all(torch.equal(chosen, mask[:, None]) for chosen in asked)
