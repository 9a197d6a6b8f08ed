"""Decoding agrees with nibabel; encoding restores the grid of the input exactly."""

import gzip
import io
import itertools
import pickle

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from glioray.cases.grid import describe_grid_difference
from glioray.cases.nifti import (
    HEADER_BYTES,
    Volume,
    encode_map,
    encode_mask,
    encode_volume,
    read_header,
    read_volume,
    restore_orientation,
    to_canonical,
)

DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")


def oblique_affine(spacing: tuple[float, float, float] = (0.9, 1.1, 6.0)) -> np.ndarray:
    """A rotation by about 20 degrees around each axis, closest to RAS+."""
    a, b, c = np.deg2rad([17, -21, 12])
    rx = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    ry = [[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]]
    rz = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
    affine = np.eye(4)
    affine[:3, :3] = np.array(rx) @ ry @ rz @ np.diag(spacing)
    affine[:3, 3] = (-71.5, 12.25, 33)
    return affine


def file_of(image: nib.Nifti1Image | nib.Nifti2Image, *, compress: bool = True) -> bytes:
    raw = image.to_bytes()
    return gzip.compress(raw) if compress else raw


def read_by_nibabel(data: bytes) -> nib.Nifti1Image:
    raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    kind = (
        nib.Nifti2Image
        if 540 in (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big"))
        else nib.Nifti1Image
    )
    return kind.from_stream(io.BytesIO(raw))


ORIENTATIONS = [
    np.array([[axis, flip] for axis, flip in zip(axes, flips, strict=True)])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_decodes_as_nibabel_does(dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, 120, (7, 5, 3)).astype(dtype)
    for kind, order, compress in itertools.product((nib.Nifti1Image, nib.Nifti2Image), "<>", (True, False)):
        case = f"{kind.__name__}, byte order {order}, compress={compress}"
        header = kind.header_class(endianness=order)
        header.set_data_dtype(dtype)
        image = kind(array, oblique_affine(), header=header, dtype=dtype)
        volume = read_volume(file_of(image, compress=compress), name=case)
        np.testing.assert_array_equal(volume.array, array, case)
        assert volume.array.dtype == np.dtype(dtype), case
        assert volume.array.dtype.isnative, case
        np.testing.assert_array_equal(volume.affine, read_by_nibabel(file_of(image)).affine, case)
        np.testing.assert_allclose(volume.spacing_mm, (0.9, 1.1, 6.0), rtol=1e-6, err_msg=case)


def test_scaling_gives_float32() -> None:
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    volume = read_volume(file_of(image), name="a")
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, read_by_nibabel(file_of(image)).get_fdata())


@pytest.mark.parametrize("slope", [0.0, np.nan, 1.0])
def test_no_scaling_keeps_the_stored_type(slope: float) -> None:
    raw = bytearray(encode_volume(np.ones((2, 3, 4), np.int16), np.eye(4), compress=False))
    raw[112:116] = np.float32(slope).tobytes()
    assert read_volume(bytes(raw), name="a").array.dtype == np.int16


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ((160, 216), (160, 216, 1)),
        ((160, 216, 1), (160, 216, 1)),
        ((4, 5, 6, 1), (4, 5, 6)),
        ((4, 5, 6, 3), (4, 5, 6, 3)),
        ((4, 5, 6, 1, 4), (4, 5, 6, 4)),
    ],
)
def test_shapes_have_three_axes_and_optional_channels(
    stored: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    array = np.arange(np.prod(stored), dtype=np.int32).reshape(stored)
    volume = read_volume(file_of(nib.Nifti1Image(array, np.eye(4))), name="a")
    np.testing.assert_array_equal(volume.array, array.reshape(expected))


@pytest.mark.parametrize("stored", [(16, 12), (16, 12, 1), (4, 5, 6, 1)])
def test_a_mask_has_the_shape_of_a_flat_input(stored: tuple[int, ...]) -> None:
    image = nib.Nifti1Image(np.ones(stored, np.int16), np.diag([-1, 1, 1, 1]))
    volume = read_volume(file_of(image), name="a")
    ras, _ = to_canonical(volume.array, volume.affine)
    mask = (np.arange(ras.size) % 3).astype(np.uint8).reshape(ras.shape)
    written = read_by_nibabel(encode_mask(mask, volume))
    assert written.shape == stored
    np.testing.assert_array_equal(np.asarray(written.dataobj).reshape(ras.shape)[::-1], mask)


def test_a_mask_of_a_four_channel_file_has_one_channel() -> None:
    image = nib.Nifti1Image(np.ones((4, 5, 6, 4), np.int16), np.diag([-1, -1, 1, 1]))
    written = read_by_nibabel(
        encode_mask(np.ones((4, 5, 6), np.uint8), read_volume(file_of(image), name="a"))
    )
    assert written.shape == (4, 5, 6)
    np.testing.assert_array_equal(written.affine, image.affine)


def test_masks_return_to_every_orientation() -> None:
    """Any stored order of an oblique image gives the same RAS array, and masks on the stored grid."""
    for orientation in ORIENTATIONS:
        try:
            check_orientation(orientation)
        except AssertionError as error:
            error.add_note("axis order " + "".join("xyz"[int(a)] + "+-"[int(f < 0)] for a, f in orientation))
            raise


def check_orientation(orientation: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    ras, affine_ras = rng.integers(0, 1000, (5, 6, 7)).astype(np.int16), oblique_affine()
    stored = apply_orientation(ras, orientation)
    affine = affine_ras @ inv_ornt_aff(orientation, ras.shape)
    copy = nib.Nifti1Image(stored, affine)
    copy.set_sform(affine, code=2)
    copy.set_qform(affine, code=1)
    volume = read_volume(file_of(copy), name="copy")

    canonical, canonical_affine = to_canonical(volume.array, volume.affine)
    np.testing.assert_array_equal(canonical, ras)
    np.testing.assert_allclose(canonical_affine, affine_ras, atol=1e-4)
    assert np.shares_memory(canonical, volume.array)
    np.testing.assert_array_equal(restore_orientation(canonical, volume.affine, volume.shape), stored)

    written = read_by_nibabel(encode_mask((ras % 5).astype(np.uint8), volume))
    np.testing.assert_array_equal(np.asarray(written.dataobj), stored % 5)
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, volume.affine)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (2, 1)
    np.testing.assert_array_equal(written.get_qform(), read_by_nibabel(file_of(copy)).get_qform())


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (0, 0), (3, 1)])
def test_a_mask_keeps_version_byte_order_and_form_codes(codes: tuple[int, int]) -> None:
    for kind, order in itertools.product((nib.Nifti1Image, nib.Nifti2Image), "<>"):
        case = f"{kind.__name__}, byte order {order}"
        header = kind.header_class(endianness=order)
        image = kind(np.ones((4, 5, 6), np.float32), None, header=header)
        image.header.set_zooms((2, 2, 3))
        affine = np.array([[0, -2, 0, 9], [2, 0, 0, 8], [0, 0, 3, 7], [0, 0, 0, 1.0]])
        image.set_sform(affine, code=codes[0])
        image.set_qform(affine, code=codes[1])
        image.header.set_slope_inter(2, 0)
        volume = read_volume(file_of(image), name=case)
        ras, _ = to_canonical(volume.array, volume.affine)
        written = read_by_nibabel(encode_mask(np.full(ras.shape, 3, np.uint8), volume))
        assert type(written) is kind, case
        assert written.header.endianness == order, case
        assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == codes, case
        np.testing.assert_array_equal(written.affine, read_by_nibabel(file_of(image)).affine, case)
        assert np.unique(np.asarray(written.dataobj)).tolist() == [3], case


@pytest.mark.parametrize("compress", [True, False])
def test_a_map_is_written_like_a_mask(compress: bool) -> None:
    """Written on the grid of a rotated, scaled, big-endian int16 file."""
    header = nib.Nifti2Header(endianness=">")
    image = nib.Nifti2Image(np.arange(120, dtype=">i2").reshape(4, 5, 6), None, header=header)
    affine = np.array([[0, -2, 0, 9], [2, 0, 0, 8], [0, 0, 3, 7], [0, 0, 0, 1.0]])
    image.set_sform(affine, code=2)
    image.header.set_slope_inter(2, 5)
    image.header["cal_max"] = 99
    volume = read_volume(file_of(image), name="a")
    shape = to_canonical(volume.array, volume.affine)[0].shape
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    written = read_by_nibabel(encode_map(values, volume, compress=compress))
    assert (written.get_data_dtype(), written.header.endianness) == (np.dtype(">f4"), ">")
    np.testing.assert_array_equal(written.affine, affine)
    assert (float(written.header["cal_max"]), int(written.header["sform_code"])) == (0, 2)
    back, _ = to_canonical(np.asarray(written.dataobj), written.affine)
    np.testing.assert_array_equal(back, values)


def test_a_mask_of_another_shape_is_rejected() -> None:
    volume = read_volume(encode_volume(np.ones((4, 5, 6), np.int16), np.eye(4)), name="a")
    with pytest.raises(ValueError, match=r"\(4, 5, 7\).*\(4, 5, 6\)"):
        encode_mask(np.zeros((4, 5, 7), np.uint8), volume)


def test_the_first_bytes_are_enough_for_the_header() -> None:
    data = encode_volume(
        np.random.default_rng(0).integers(0, 9999, (64, 64, 64)).astype(np.int16), oblique_affine()
    )
    header = read_header(data[:4096], name="a")
    assert header.shape == (64, 64, 64)
    assert header.size_bytes == 352 + 2 * 64**3
    raw = gzip.decompress(data)
    assert read_header(raw[:HEADER_BYTES], name="a").shape == (64, 64, 64)


def test_a_header_extension_is_skipped() -> None:
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    image.header.extensions.append(
        nib.nifti1.Nifti1Extension("comment", b"AFNI and others write pages here" * 90)
    )
    volume = read_volume(file_of(image), name="a")
    np.testing.assert_array_equal(volume.array, np.asarray(image.dataobj))
    assert volume.header.offset > 2880
    assert read_volume(encode_mask(np.zeros((3, 4, 5), np.uint8), volume), name="m").header.offset == 352


def test_several_gzip_members_are_one_file() -> None:
    raw = encode_volume(np.arange(6000, dtype=np.int16).reshape(10, 20, 30), np.eye(4), compress=False)
    members = b"".join(gzip.compress(raw[i : i + 3000]) for i in range(0, len(raw), 3000))
    np.testing.assert_array_equal(read_volume(members, name="a").array.ravel(), np.arange(6000))


def test_volumes_and_headers_can_be_pickled() -> None:
    volume = read_volume(encode_volume(np.ones((4, 5, 6), np.int16), oblique_affine()), name="a")
    copy: Volume = pickle.loads(pickle.dumps(volume))
    np.testing.assert_array_equal(copy.affine, volume.affine)
    assert encode_mask(np.ones((4, 5, 6), np.uint8), copy) == encode_mask(
        np.ones((4, 5, 6), np.uint8), volume
    )


class TestSameGrid:
    @staticmethod
    def volume(shape: tuple[int, int, int], affine: np.ndarray, name: str = "a") -> Volume:
        return read_volume(encode_volume(np.ones(shape, np.uint8), affine), name=name)

    def test_axes_in_another_order_are_the_same_grid(self) -> None:
        """An image stored 256 x 256 x 24 beside its mask stored 256 x 24 x 256."""
        image = self.volume((256, 256, 24), np.diag([1, 1, 6, 1.0]))
        swapped = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 6, 0, 0], [0, 0, 0, 1.0]])
        assert describe_grid_difference(image, self.volume((256, 24, 256), swapped)) is None

    def test_rounding_and_negative_zero_do_not_count(self) -> None:
        affine = oblique_affine()
        other = affine + 1e-5
        other[:3, 3] *= 1.0001
        assert describe_grid_difference(self.volume((8, 9, 5), affine), self.volume((8, 9, 5), other)) is None
        minus = np.diag([1.0, 1, 1, 1])
        minus[0, 3] = -0.0
        assert (
            describe_grid_difference(self.volume((8, 9, 5), np.eye(4)), self.volume((8, 9, 5), minus)) is None
        )

    def test_another_shape_is_reported(self) -> None:
        found = describe_grid_difference(
            self.volume((8, 9, 5), np.eye(4), "t1"), self.volume((8, 9, 4), np.eye(4))
        )
        assert found == "has (8, 9, 4) voxels (in RAS order), but t1 has (8, 9, 5)"

    @pytest.mark.parametrize("shift", [(0.5, 0, 0), (0, 0, 3.0)])
    def test_a_shift_is_reported(self, shift: tuple[float, float, float]) -> None:
        affine = oblique_affine()
        affine[:3, 3] += shift
        found = describe_grid_difference(
            self.volume((8, 9, 5), oblique_affine(), "t1"), self.volume((8, 9, 5), affine)
        )
        assert found is not None
        assert f"{max(shift):.3g} mm away from t1" in found

    def test_a_lost_header_is_reported(self) -> None:
        found = describe_grid_difference(
            self.volume((8, 9, 5), oblique_affine(), "t1"), self.volume((8, 9, 5), np.eye(4))
        )
        assert found is not None
        assert "lost its orientation" in found
        found = describe_grid_difference(
            self.volume((8, 9, 5), np.eye(4), "t1"), self.volume((8, 9, 5), oblique_affine())
        )
        assert found is not None
        assert "t1 has lost its own" in found
        image = nib.Nifti1Image(np.ones((8, 9, 5), np.uint8), None)
        assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 0
        found = describe_grid_difference(
            self.volume((8, 9, 5), oblique_affine(), "t1"), read_volume(file_of(image), name="seg")
        )
        assert found is not None
        assert "lost its orientation" in found
