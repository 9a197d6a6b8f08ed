"""Preprocessing of whole volumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from glioray.cases.load import Case, brain_mask
from glioray.config import MODALITIES, PLANES, PreprocessConfig
from glioray.errors import CaseError
from glioray.slices.preprocess import preprocess
from glioray.slices.volumes import prepare_volume, probs_on_grid, resample, resample_labels

MakeCase = Callable[..., Case]


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 8).astype(np.float32)
    return noise / noise.std()


def ball(shape: tuple[int, int, int]) -> np.ndarray:
    grid = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n - 0.5 for n in shape), indexing="ij"))
    return (grid**2).sum(axis=0) < 0.35**2


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("shape", [(60, 41, 97), (60, 33, 20), (21, 80, 40)])
def test_both_grids_fill_the_same_box(shape: tuple[int, int, int]) -> None:
    """A ramp resampled to another grid is the same ramp at its voxel centres, except near the edges.

    Up to a fraction of a voxel, if tents are not sampled at their centres.
    """
    old, total = (40, 41, 39), np.zeros((40, 41, 39), np.float32)
    for axis, length in enumerate(old):
        ramp = (np.arange(length) + 0.5) / length
        total += ramp.reshape([-1 if a == axis else 1 for a in range(3)]).astype(np.float32)
    found = resample(total, shape)
    assert (found.shape, found.dtype) == (shape, np.float32)
    centres = [(np.arange(n) + 0.5) / n for n in shape]
    expected = np.add.outer(np.add.outer(*centres[:2]), centres[2])
    inner = tuple(slice(3, -3) for _ in shape)
    np.testing.assert_allclose(
        found[inner], expected[inner], atol=1e-5 if shape[1:] == (41, 97) else 0.15 / 39
    )
    np.testing.assert_array_equal(found, resample(np.asfortranarray(total), shape))


def test_larger_voxels_are_means_and_constants_stay() -> None:
    volume = np.zeros((64, 8, 8), np.float32)
    volume[::2] = 1
    halves = resample(volume, (16, 8, 8))
    np.testing.assert_allclose(halves[1:-1], 0.5, atol=1e-6)
    assert np.ptp(resample(np.full((9, 7, 5), 3.7), (4, 11, 6))) < 1e-5


def test_probabilities_return_to_the_grid_of_the_case() -> None:
    own, prepared = (48, 60, 31), (40, 75, 62)
    sizes = {"own": ball(own).sum() / np.prod(own), "prepared": ball(prepared).sum() / np.prod(prepared)}
    assert sizes["own"] == pytest.approx(sizes["prepared"], rel=0.02)
    probs = np.stack([ball(prepared), ~ball(prepared)]).astype(np.float32)
    back = probs_on_grid(probs, own)
    assert (back.shape, back.dtype) == ((2, *own), np.float32)
    np.testing.assert_allclose(back.sum(axis=0), 1, atol=1e-5)
    assert dice(back[0] > 0.5, ball(own)) > 0.97
    assert probs_on_grid(probs, prepared) is probs


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.3, 1.7])
def test_resampling_there_and_back_preserves_the_volume(factor: float) -> None:
    volume, labels = smooth((48, 44, 40)), (smooth((48, 44, 40)) > 0.3).astype(np.uint8)
    shape = tuple(round(n * factor) for n in volume.shape)
    there = resample(volume, shape)
    assert np.corrcoef(resample(there, volume.shape).ravel(), volume.ravel())[0, 1] > 0.97
    back = resample_labels(resample_labels(labels, shape), volume.shape)
    assert (back.dtype, set(np.unique(back))) == (np.uint8, {0, 1})
    assert dice(back > 0, labels > 0) > 0.97
    # Images and masks stay aligned: inside the mask the image keeps its sign.
    assert dice(there > 0.3, resample_labels(labels, shape) > 0) > 0.95


def test_a_case_that_needs_nothing_is_returned_unchanged(make_case: MakeCase) -> None:
    case = make_case()
    assert prepare_volume(case, PreprocessConfig()) is case
    assert prepare_volume(case, PreprocessConfig(spacing_mm=(1.0, 1.5, 2.0))) is case
    plain, right = (
        preprocess(case, PreprocessConfig(planes=PLANES, size=(32, 32), spacing_mm=spacing))
        for spacing in (None, (1.01, 1.5, 2.0))
    )
    for one, other in zip(plain, right, strict=True):
        assert one.images.tobytes() == other.images.tobytes()


def test_modalities_have_the_requested_order(make_case: MakeCase) -> None:
    case = make_case()
    found = prepare_volume(case, PreprocessConfig(modalities=("flair", "t1")))
    assert found.modalities == ("flair", "t1")
    np.testing.assert_array_equal(found.images, case.images[[3, 0]])
    assert found.mask is case.mask
    # Indexed by the case's own order, not by that of MODALITIES.
    turned = replace(case, modalities=MODALITIES[::-1])
    np.testing.assert_array_equal(
        prepare_volume(turned, PreprocessConfig(modalities=("t1", "t2"))).images, case.images[[3, 1]]
    )
    (stack,) = preprocess(turned, PreprocessConfig(modalities=("t2",), size=(32, 32)))
    (same,) = preprocess(case, PreprocessConfig(modalities=("t1c",), size=(32, 32)))
    assert stack.images.shape[1] == 1
    assert stack.images.tobytes() == same.images.tobytes()


def test_a_missing_modality_is_named(make_case: MakeCase) -> None:
    two = replace(make_case(), images=make_case().images[:2], modalities=("t1", "flair"))
    with pytest.raises(
        CaseError, match=r"A: has t1, flair but no t2; expected flair, t2; set preprocess\.mod"
    ):
        prepare_volume(two, PreprocessConfig(modalities=("flair", "t2")))


def test_a_resampled_case_keeps_its_position(make_case: MakeCase) -> None:
    case = make_case(radii=(13, 17, 11))
    case = replace(case, affine=case.affine + np.outer([1, 1, 1, 0], [0, 0, 0, 1]) * [0, 0, 0, 7.0])
    found = prepare_volume(case, PreprocessConfig(spacing_mm=(1.5, 1.4, 1.2)))
    old, new = case.images.shape[1:], found.images.shape[1:]
    assert new == (29, 54, 50)
    assert found.images.dtype == np.float32
    assert found.reference is case.reference
    for spacing, wanted in zip(found.spacing_mm, (1.5, 1.4, 1.2), strict=True):
        assert spacing == pytest.approx(wanted, rel=0.02)
    np.testing.assert_allclose(np.linalg.norm(found.affine[:3, :3], axis=0), found.spacing_mm)
    for low, high in (([-0.5] * 3, [-0.5] * 3), (np.array(old) - 0.5, np.array(new) - 0.5)):
        np.testing.assert_allclose(case.affine @ [*low, 1], found.affine @ [*high, 1])
    assert case.mask is not None
    assert found.mask is not None
    one, other = case.mask > 0, found.mask > 0
    volumes = [m.sum() * np.prod(c.spacing_mm) for m, c in ((one, case), (other, found))]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.05)
    assert dice(resample_labels(other, old), one) > 0.9
    (stack,) = preprocess(case, PreprocessConfig(spacing_mm=(1.5, 1.4, 1.2), size=(64, 64)))
    assert (stack.shape, stack.spacing_mm) == (new, found.spacing_mm)
    assert stack.label_voxels == tuple(int((found.mask == label).sum()) for label in range(5))
    assert stack.restore(stack.images.swapaxes(0, 1)).shape[1:] == new


@pytest.mark.parametrize("background", [(0, 0, 0, 0), (-1000, 0, 7, 0)])
def test_no_background_is_mixed_into_the_brain(make_case: MakeCase, background: tuple[float, ...]) -> None:
    case = make_case(background=background)
    brain = brain_mask(case.images)
    for channel, value in enumerate((100, 300, 5, 20000)):
        case.images[channel][brain] = value
    found = prepare_volume(case, PreprocessConfig(spacing_mm=(1.3, 1.1, 3.1)))
    inside = resample_labels(brain, found.images.shape[1:])
    np.testing.assert_array_equal(brain_mask(found.images), inside)
    assert not found.images[:, ~inside].any()
    for image, value in zip(found.images, (100, 300, 5, 20000), strict=True):
        np.testing.assert_allclose(image[inside], value, rtol=1e-5)


def test_too_many_voxels_after_resampling_are_rejected(make_case: MakeCase) -> None:
    """A CaseError, since the header of a file sent to a server may claim any size."""
    config = PreprocessConfig(spacing_mm=(0.1, 0.1, 0.1))
    says = r"A: resampling from 1 x 1\.5 x 2 mm to 0\.1 x 0\.1 x 0\.1 mm gives \(440, 750, 600\) voxels; expected"
    with pytest.raises(CaseError, match=says):
        prepare_volume(make_case(), config)
