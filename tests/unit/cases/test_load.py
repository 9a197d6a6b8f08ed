"""A loaded case is in RAS+ order, on one grid and in internal labels, whatever its files are like."""

import itertools
import pickle
from collections.abc import Mapping

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from glioray.cases.casefiles import CaseFiles
from glioray.cases.conventions import CONVENTIONS
from glioray.cases.dataset_json import MSD_CHANNELS
from glioray.cases.load import assemble_case, brain_mask, load_case_from_bytes
from glioray.cases.nifti import encode_mask, encode_volume, read_volume, to_canonical
from glioray.config import MODALITIES
from glioray.errors import CaseError

AFFINE = np.array([[-0.9, 0.2, 0.3, 40], [0.2, -1.1, 0.9, 50], [0.1, 0.25, 5.8, -60], [0, 0, 0, 1.0]])
SHAPE = (9, 8, 7)


def images(dtype: str = "int16") -> np.ndarray:
    """(4, X, Y, Z) in the stored order of `AFFINE`."""
    return np.random.default_rng(3).integers(1, 5000, (4, *SHAPE)).astype(dtype)


def mask() -> np.ndarray:
    return np.random.default_rng(4).choice(np.array([0, 1, 2, 4], np.uint8), SHAPE)


def ras(array: np.ndarray) -> np.ndarray:
    return to_canonical(array, AFFINE)[0]


FILES = CaseFiles(
    case_id="A", patient_id="A", layout="brats2021", images={m: m for m in MODALITIES}, mask="seg"
)


def parts(**changed: bytes) -> Mapping[str, bytes]:
    good = {m: encode_volume(image, AFFINE) for m, image in zip(MODALITIES, images(), strict=True)}
    return {**good, "seg": encode_volume(mask(), AFFINE), **changed}


def test_a_case_is_in_ras_order_and_in_internal_labels() -> None:
    case = assemble_case(FILES, parts().__getitem__)
    np.testing.assert_array_equal(case.images, [ras(image) for image in images()])
    assert case.images.dtype == np.int16
    assert case.mask is not None
    assert case.mask.dtype == np.uint8
    np.testing.assert_array_equal(case.mask, np.where(ras(mask()) == 4, 3, ras(mask())))
    assert case.convention == CONVENTIONS["brats-et4"]
    np.testing.assert_allclose(case.affine, to_canonical(images()[0], AFFINE)[1], rtol=1e-6)
    assert all(stride > 0 for stride in (*case.images.strides, *case.mask.strides))
    np.testing.assert_allclose(case.spacing_mm, np.linalg.norm(case.affine[:3, :3], axis=0))
    # The grid is sheared, so that the product of the edges is too much.
    assert case.voxel_ml == pytest.approx(abs(np.linalg.det(AFFINE[:3, :3])) / 1000)
    assert case.voxel_ml < 0.99 * np.prod(case.spacing_mm) / 1000


def test_files_stored_in_different_orders_are_one_case() -> None:
    """The files have five different axis orders out of 48, all on the same physical grid."""
    orders = [
        np.array([[axis, flip] for axis, flip in zip(axes, flips, strict=True)])
        for axes in itertools.permutations(range(3))
        for flips in itertools.product((1, -1), repeat=3)
    ]
    stored = dict(zip((*MODALITIES, "seg"), (*images(), mask()), strict=True))
    changed = {}
    for index, (name, array) in enumerate(stored.items()):
        order = orders[7 * index + 3]
        moved = apply_orientation(array, order)
        changed[name] = encode_volume(moved, AFFINE @ inv_ornt_aff(order, array.shape))
    one, other = assemble_case(FILES, parts().__getitem__), assemble_case(FILES, changed.__getitem__)
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.mask, other.mask)
    # A prediction is written in the stored order of T1.
    assert other.mask is not None
    written = read_volume(encode_mask(other.mask, other.reference), name="m")
    t1 = read_volume(changed["t1"], name="t1")
    np.testing.assert_array_equal(written.affine, t1.affine)
    assert written.shape == t1.shape
    np.testing.assert_array_equal(to_canonical(written.array, written.affine)[0], other.mask)


@pytest.mark.parametrize("nudge", [-1e-6, 0, 1e-6])
def test_at_45_degrees_rounding_does_not_change_an_orientation(nudge: float) -> None:
    affines = [np.eye(4), np.eye(4)]
    for affine, angle in zip(affines, (np.pi / 4, np.pi / 4 + nudge), strict=True):
        affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    changed = {m: encode_volume(image, affines[0]) for m, image in zip(MODALITIES, images(), strict=True)}
    changed |= {"t2": encode_volume(images()[2], affines[1]), "seg": encode_volume(mask(), affines[1])}
    case = assemble_case(FILES, changed.__getitem__)
    assert case.mask is not None
    turned = [to_canonical(array, case.reference.affine)[0] for array in (*images(), mask())]
    np.testing.assert_array_equal(case.images, turned[:4])
    np.testing.assert_array_equal(case.mask > 0, turned[4] > 0)
    written = read_volume(encode_mask(case.mask, case.reference), name="m")
    np.testing.assert_array_equal(written.array > 0, mask() > 0)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("uint8", "int16"), ("int16", "int16"), ("uint16", "float32"), ("float64", "float32")],
)
def test_the_common_type_holds_every_value(dtype: str, expected: str) -> None:
    flair = images()[3].clip(0, 250).astype(dtype)
    case = assemble_case(FILES, parts(flair=encode_volume(flair, AFFINE)).__getitem__)
    assert case.images.dtype == np.dtype(expected)
    np.testing.assert_array_equal(case.images[3], ras(flair))
    np.testing.assert_array_equal(case.images[0], ras(images()[0]))


def test_one_file_with_four_channels() -> None:
    stored = np.stack([images()[MODALITIES.index(m)] for m in MSD_CHANNELS], axis=-1)
    case = load_case_from_bytes({"image": encode_volume(stored, AFFINE)})
    np.testing.assert_array_equal(case.images, [ras(image) for image in images()])
    assert case.mask is None
    assert case.convention is None
    written = read_volume(encode_mask(np.zeros(case.images.shape[1:], np.uint8), case.reference), name="m")
    assert written.array.shape == SHAPE


def test_four_files_equal_the_case_on_disk() -> None:
    files = parts()
    case = load_case_from_bytes({m: files[m] for m in MODALITIES})
    np.testing.assert_array_equal(case.images, assemble_case(FILES, files.__getitem__).images)


def test_without_a_mask() -> None:
    case = assemble_case(FILES, {m: parts()[m] for m in MODALITIES}.__getitem__, with_mask=False)
    assert (case.mask, case.convention) == (None, None)


def test_a_given_convention_is_used_and_enforced() -> None:
    case = assemble_case(FILES, parts().__getitem__, convention=CONVENTIONS["brats2024"])
    np.testing.assert_array_equal(case.mask, ras(mask()))
    with pytest.raises(CaseError, match="case A: seg: holds the label 4; the convention brats-et3"):
        assemble_case(FILES, parts().__getitem__, convention=CONVENTIONS["brats-et3"])


def test_float_masks_are_rounded() -> None:
    seg = encode_volume(mask().astype(np.float32) * np.float32(0.99999994), AFFINE)
    case = assemble_case(FILES, parts(seg=seg).__getitem__)
    np.testing.assert_array_equal(case.mask, assemble_case(FILES, parts().__getitem__).mask)


def test_an_image_as_the_mask_is_rejected() -> None:
    with pytest.raises(CaseError, match=r"case A: seg: holds .* different values"):
        assemble_case(FILES, parts(seg=encode_volume(images()[0], AFFINE)).__getitem__)


def test_values_beyond_float32_are_rejected() -> None:
    with pytest.raises(CaseError, match="beyond the range of float32"):
        assemble_case(FILES, parts(t2=encode_volume(images("float64")[2] * 1e300, AFFINE)).__getitem__)


def test_many_large_finite_values_are_fine() -> None:
    big = np.full(SHAPE, 3e38, np.float32)
    big[0] = 0
    case = assemble_case(FILES, parts(t2=encode_volume(big, AFFINE)).__getitem__)
    np.testing.assert_array_equal(case.images[2], ras(big))


def test_a_case_can_be_pickled() -> None:
    case = assemble_case(FILES, parts().__getitem__)
    copy = pickle.loads(pickle.dumps(case))
    np.testing.assert_array_equal(copy.images, case.images)
    assert encode_mask(copy.mask, copy.reference) == encode_mask(case.mask, case.reference)


class TestBrainMask:
    def test_zero_background(self) -> None:
        array = np.zeros((4, 6, 6, 6), np.int16)
        array[1, 2:4, 2:5, 3] = 7
        array[2, 1, 1, 1] = -2
        assert brain_mask(array).sum() == 7

    def test_background_of_another_value(self) -> None:
        array = np.full((4, 6, 6, 6), -0.73, np.float32)
        array[0, 2:4, 2:4, 2:4] = 1.5
        array[0, 2, 2, 2] = 0
        assert brain_mask(array).sum() == 8

    def test_a_head_without_background_is_all_brain(self) -> None:
        array = np.random.default_rng(0).normal(size=(4, 6, 6, 6))
        assert brain_mask(array).all()
