"""From a case to its slices: normalisation, the window, and restoring masks."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from glioray.cases.load import Case, brain_mask
from glioray.config import PLANES, PreprocessConfig
from glioray.errors import CaseError
from glioray.slices.preprocess import SliceStack, preprocess

MakeCase = Callable[..., Case]

# (X, Y, Z) -> (S, H, W) as documented in SliceStack.
TURNS = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 1, 2)}
ALL_PLANES = PreprocessConfig(planes=PLANES, size=(32, 32))


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def in_case(stack: SliceStack) -> np.ndarray:
    """(4, X, Y, Z) restored from the slices."""
    return stack.restore(stack.images.swapaxes(0, 1)).astype(np.float32)


def by_hand(case: Case, clip: tuple[float, float] = (-20, 20)) -> np.ndarray:
    """(4, X, Y, Z) float64 z-scores."""
    brain = brain_mask(case.images)
    result = np.zeros(case.images.shape)
    for image, scores in zip(case.images.astype(np.float64), result, strict=True):
        scores[brain] = np.clip((image[brain] - image[brain].mean()) / image[brain].std(), *clip)
    return result


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("background", [(0, 0, 0, 0), (-1000, 0, 7, 0)])
def test_each_modality_is_z_scored_inside_the_brain_and_0_around_it(
    make_case: MakeCase, dtype: str, background: tuple[float, ...]
) -> None:
    case = make_case(dtype=dtype, background=background)
    brain = brain_mask(case.images)
    assert 0.05 < brain.mean() < 0.5
    (stack,) = preprocess(case, PreprocessConfig(size=(32, 32)), whole=True)
    values = in_case(stack)
    assert stack.images.dtype == np.float16
    np.testing.assert_allclose(values[:, brain].mean(axis=1), 0, atol=1e-3)
    np.testing.assert_allclose(values[:, brain].std(axis=1), 1, atol=1e-3)
    assert not values[:, ~brain].any()
    np.testing.assert_allclose(values, by_hand(case), rtol=2**-10, atol=1e-5)


def test_zeros_inside_the_brain_are_normalised_too(make_case: MakeCase) -> None:
    case = make_case()
    case.images[0, 18:22, 24, 15] = 0
    (stack,) = preprocess(case, PreprocessConfig(size=(32, 32)), whole=True)
    np.testing.assert_allclose(in_case(stack), by_hand(case), rtol=2**-10, atol=1e-5)
    assert (in_case(stack)[0, 18:22, 24, 15] < -3).all()


def test_scores_are_clipped(make_case: MakeCase) -> None:
    case = make_case(dtype="float32")
    case.images[2, 20, 24, 15] = 1e9
    (stack,) = preprocess(case, PreprocessConfig(size=(32, 32), clip=(-0.5, 2)), whole=True)
    assert (stack.images.min(), stack.images.max()) == (-0.5, 2)
    np.testing.assert_allclose(in_case(stack), by_hand(case, (-0.5, 2)), rtol=2**-10, atol=1e-5)


def test_intensities_are_clipped_at_percentiles_of_the_brain(make_case: MakeCase) -> None:
    case = make_case(dtype="float32", background=(-1000, 0, 7, 0))
    config = PreprocessConfig(size=(32, 32), percentiles=(5.0, 90.0))
    brain = brain_mask(case.images)
    (stack,) = preprocess(case, config, whole=True)
    for image, found in zip(case.images, in_case(stack), strict=True):
        ordered = np.sort(image[brain].astype(np.float64))
        places = [share * (len(ordered) - 1) for share in (0.05, 0.9)]
        low, high = (np.interp(place, np.arange(len(ordered)), ordered) for place in places)
        values = np.clip(image[brain].astype(np.float64), low, high)
        expected = (values - values.mean()) / values.std()
        np.testing.assert_allclose(found[brain], expected, rtol=2**-10, atol=1e-3)
        assert not found[~brain].any()
    (plain,) = preprocess(case, PreprocessConfig(size=(32, 32), normalize="none"), whole=True)
    (cut,) = preprocess(case, config.replace(normalize="none", percentiles=(0.0, 100.0)), whole=True)
    np.testing.assert_array_equal(plain.images, cut.images)


def test_the_brain_mask_is_the_last_channel(make_case: MakeCase) -> None:
    """In every plane, with cut and padded windows; the other channels are unchanged."""
    case = make_case(radii=(20, 24, 14), background=(-1000, 0, 7, 0))
    brain = brain_mask(case.images)
    for whole in (False, True):
        plain = preprocess(case, ALL_PLANES, whole=whole)
        for one, other in zip(
            plain, preprocess(case, ALL_PLANES.replace(brain_channel=True), whole=whole), strict=True
        ):
            assert (other.images.shape[1], other.images.dtype) == (5, np.float16)
            np.testing.assert_array_equal(other.images[:, :4], one.images)
            np.testing.assert_array_equal(other.images[:, 4], one.cut(brain))


def test_a_modality_without_contrast_in_the_brain_becomes_0(make_case: MakeCase) -> None:
    case = make_case()
    case.images[1][brain_mask(case.images)] = 500
    (stack,) = preprocess(case, PreprocessConfig(size=(32, 32)), whole=True)
    assert not stack.images[:, 1].any()
    assert np.isfinite(stack.images).all()


def test_without_normalisation_the_stored_values_are_kept(make_case: MakeCase) -> None:
    case = make_case(background=(-1000, 0, 0, 0))
    config = PreprocessConfig(size=(32, 32), normalize="none")
    (stack,) = preprocess(case, config, whole=True)
    brain = brain_mask(case.images)
    np.testing.assert_array_equal(in_case(stack), (case.images * brain).astype(np.float16))
    large = make_case(dtype="float32")
    large.images[3, 20, 24, 15] = -70000
    with pytest.raises(CaseError, match=r"holds values up to 70000; expected at most 65504 .* zscore"):
        preprocess(large, config)


def test_a_case_of_only_background_is_rejected(make_case: MakeCase) -> None:
    case = make_case()
    case.images[:] = 3
    with pytest.raises(CaseError, match="every voxel is background"):
        preprocess(case, PreprocessConfig())


@pytest.mark.parametrize("radii", [(5, 6, 4), (20, 24, 14)])
def test_origin_gives_the_position_of_the_window(
    make_case: MakeCase, radii: tuple[float, float, float]
) -> None:
    """Padded if the brain is smaller than 32 x 32, cut if it is larger; checked by indexing."""
    case = make_case(radii=radii)
    assert case.mask is not None
    scores, margin = by_hand(case), 40
    stacks = preprocess(case, ALL_PLANES)
    assert [stack.plane for stack in stacks] == list(PLANES)
    for stack in stacks:
        turn = TURNS[stack.plane]
        assert stack.images.shape == (stack.images.shape[0], 4, 32, 32)
        window = tuple(
            slice(start + margin, start + margin + length)
            for start, length in zip(stack.origin, (len(stack.images), 32, 32), strict=True)
        )
        for channel in range(4):
            turned = np.pad(scores[channel].transpose(turn), margin)[window]
            np.testing.assert_allclose(stack.images[:, channel], turned, rtol=2**-10, atol=1e-5)
        np.testing.assert_array_equal(stack.mask, np.pad(case.mask.transpose(turn), margin)[window])
        # Only slices through the brain, with the brain centred.
        brain = np.pad(brain_mask(case.images).transpose(turn), margin)
        assert brain[window[0]].any(axis=(1, 2)).all()
        assert np.count_nonzero(brain.any(axis=(1, 2))) == len(stack.images)
        for axis in (1, 2):
            others = tuple(a for a in range(3) if a != axis)
            found = np.flatnonzero(brain.any(axis=others))
            assert abs((found[0] + found[-1]) - (window[axis].start + window[axis].stop - 1)) <= 1


@pytest.mark.parametrize("whole", [False, True])
def test_restore_and_cut_are_inverse_in_every_plane(make_case: MakeCase, whole: bool) -> None:
    case = make_case(radii=(20, 24, 14))
    volume = np.random.default_rng(0).integers(1, 100, case.images.shape[1:])
    for stack in preprocess(case, ALL_PLANES, whole=whole):
        inside = stack.restore(stack.cut(np.ones_like(volume)))
        np.testing.assert_array_equal(stack.restore(stack.cut(volume)), volume * inside)
        np.testing.assert_array_equal(stack.cut(volume * inside), stack.cut(volume))
        assert stack.restore(stack.images.swapaxes(0, 1)).shape == case.images.shape
        if whole:
            assert inside[brain_mask(case.images)].all()


def test_a_whole_window_contains_the_brain_and_is_a_multiple_of_16(make_case: MakeCase) -> None:
    case = make_case(radii=(20, 24, 14))
    brain = brain_mask(case.images)
    expected = by_hand(case)
    for stack in preprocess(case, ALL_PLANES, whole=True):
        assert all(length >= 32 and length % 16 == 0 for length in stack.images.shape[2:])
        np.testing.assert_allclose(in_case(stack), expected, rtol=2**-10, atol=1e-5)
        assert (in_case(stack) != 0).any(axis=0).sum() <= brain.sum()
    cut = preprocess(case, ALL_PLANES)[0]
    assert (in_case(cut) != 0).any(axis=0).sum() < 0.9 * brain.sum()


def test_labels_outside_the_window_are_counted(make_case: MakeCase) -> None:
    case = make_case()
    assert case.mask is not None
    case.mask[0, 0, :5] = 4
    case.mask[-1, -1, -1] = 1
    for stack in preprocess(case, ALL_PLANES):
        assert stack.mask is not None
        assert stack.label_voxels == tuple(int((case.mask == label).sum()) for label in range(5))
        assert not (stack.mask == 4).any()


def test_a_case_without_a_mask_has_none(make_case: MakeCase) -> None:
    (stack,) = preprocess(make_case(with_mask=False), PreprocessConfig(size=(32, 32)))
    assert stack.mask is None
    assert stack.label_voxels == (0, 0, 0, 0, 0)


def test_a_millilitre_is_a_thousand_cubic_millimetres(make_case: MakeCase) -> None:
    (stack,) = preprocess(make_case(), PreprocessConfig(size=(32, 32)))
    assert stack.voxel_ml == pytest.approx(0.003)


@pytest.mark.parametrize(
    "config",
    [
        ALL_PLANES,
        ALL_PLANES.replace(modalities=("flair", "t1"), spacing_mm=(1.2, 1.2, 1.2), brain_channel=True),
        ALL_PLANES.replace(percentiles=(1.0, 99.0), clahe=0.02),
    ],
)
def test_preprocessing_does_not_depend_on_threads_or_memory_order(
    make_case: MakeCase, one_thread: None, config: PreprocessConfig
) -> None:
    case = make_case(dtype="float32")
    alone = preprocess(case, config)
    torch.set_num_threads(3)
    turned = np.asfortranarray(case.images)
    assert turned.strides != case.images.strides
    others = preprocess(Case(**{**vars(case), "images": turned}), config)
    for one, other in zip(alone, others, strict=True):
        assert one.images.tobytes() == other.images.tobytes()
