"""Real BraTS 2021 cases, in the folder GLIORAY_REAL_DATA, decode as nibabel decodes them."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from glioray.cases.collections import detect_convention
from glioray.cases.conventions import CONVENTIONS
from glioray.cases.labels import from_internal, labels_in, to_internal
from glioray.cases.layouts import discover_cases
from glioray.cases.load import load_case, load_case_from_bytes
from glioray.cases.manifest import build_manifest, check_case
from glioray.cases.nifti import encode_mask, encode_volume, read_volume, to_canonical
from glioray.config import MODALITIES
from glioray.storage import FileStorage

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def brats(real_data: Path) -> FileStorage:
    return FileStorage(str(real_data / "brats2021"))


def test_counts_equal_nibabels_and_splits_are_in_order(brats: FileStorage) -> None:
    cases, problems = discover_cases(brats)
    assert not problems
    manifest = build_manifest(brats.uri, (check_case(brats, case) for case in cases))
    assert not manifest.problems
    ids = [entry.case_id for entry in manifest.cases]
    assert len(ids) == 10
    assert manifest.splits == {"train": tuple(ids[:8]), "val": tuple(ids[8:]), "test": ()}
    for entry in manifest.cases:
        stored = np.asarray(nib.load(brats.root / str(entry.files.mask)).dataobj)
        counts = {name: int((stored == number).sum()) for name, number in (("ncr", 1), ("ed", 2), ("et", 4))}
        assert entry.label_voxels == {**counts, "rc": 0}
        assert entry.convention == "brats-et4"
        assert (entry.shape, entry.spacing_mm) == ((240, 240, 155), (1.0, 1.0, 1.0))
        images = [np.asarray(nib.load(brats.root / entry.files.images[m]).dataobj) for m in MODALITIES]
        assert entry.brain_voxels == np.count_nonzero(np.any(images, axis=0))
    assert manifest.entry("BraTS2021_01477").label_voxels["et"] == 0
    assert manifest.entry("BraTS2021_01476").label_voxels["et"] == 224
    assert manifest.entry("BraTS2021_00008").label_voxels["ncr"] == 16
    assert manifest.entry("BraTS2021_01485").label_voxels["ncr"] == 135


def test_arrays_equal_nibabels_canonical_ones(brats: FileStorage) -> None:
    files = discover_cases(brats)[0][3]
    case = load_case(brats, files)
    assert case.images.dtype == np.int16
    for modality, image in zip(MODALITIES, case.images, strict=True):
        canonical = nib.as_closest_canonical(nib.load(brats.root / files.images[modality]))
        np.testing.assert_array_equal(image, np.asarray(canonical.dataobj))
        np.testing.assert_array_equal(case.affine, canonical.affine)
    stored = nib.load(brats.root / str(files.mask))
    assert case.mask is not None
    np.testing.assert_array_equal(
        from_internal(case.mask, CONVENTIONS["brats-et4"]),
        np.asarray(nib.as_closest_canonical(stored).dataobj),
    )
    # Written again, the mask equals the original on the original grid.
    data = encode_mask(from_internal(case.mask, CONVENTIONS["brats-et4"]), case.reference)
    written = nib.Nifti1Image.from_bytes(gzip.decompress(data))
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(stored.dataobj))
    np.testing.assert_array_equal(written.affine, stored.affine)


def test_et_as_3_is_the_same_case(real_data: Path, brats: FileStorage) -> None:
    remapped = (real_data / "quirks/label3_remap/BraTS2021_00006_seg.nii.gz").read_bytes()
    original = brats.read("BraTS2021_00006/BraTS2021_00006_seg.nii.gz")
    masks = []
    for data, expected in ((original, "brats-et4"), (remapped, "brats-et3")):
        array = read_volume(data, name="seg").array
        convention = detect_convention(labels_in(array), discover_cases(brats)[0][1])
        assert convention.name == expected
        masks.append(to_internal(array, convention))
    np.testing.assert_array_equal(*masks)


def test_an_oblique_copy_in_another_order_is_the_same_case(brats: FileStorage) -> None:
    files = discover_cases(brats)[0][0]
    case = load_case(brats, files)
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    order = np.array([[2, -1], [0, 1], [1, -1]])
    parts, mask = {}, None
    for name, key in (*files.images.items(), ("seg", str(files.mask))):
        volume = read_volume(brats.read(key), name=key)
        stored = apply_orientation(volume.array, order)
        affine = turn @ volume.affine @ inv_ornt_aff(order, volume.shape)
        if name == "seg":
            mask = stored
        else:
            parts[name] = encode_volume(stored, affine)
    copy = load_case_from_bytes(parts)
    np.testing.assert_array_equal(copy.images, case.images)
    np.testing.assert_allclose(copy.affine, turn @ case.affine, atol=1e-3)
    assert case.mask is not None
    written = read_volume(encode_mask(case.mask, copy.reference), name="mask")
    np.testing.assert_array_equal(written.array, to_internal(mask, CONVENTIONS["brats-et4"]))
    np.testing.assert_array_equal(written.affine, read_volume(parts["t1"], name="t1").affine)


def test_an_image_and_a_mask_in_different_axis_orders(brats: FileStorage) -> None:
    """As in real pairs: an image of 240 x 240 x 155 voxels with a mask of 240 x 155 x 240."""
    files = discover_cases(brats)[0][0]
    volume = read_volume(brats.read(str(files.mask)), name="seg")
    order = np.array([[0, 1], [2, 1], [1, 1]])
    swapped = encode_volume(
        apply_orientation(volume.array, order), volume.affine @ inv_ornt_aff(order, volume.shape)
    )
    copy = read_volume(swapped, name="seg")
    assert copy.shape == (240, 155, 240)
    np.testing.assert_array_equal(
        to_canonical(copy.array, copy.affine)[0], to_canonical(volume.array, volume.affine)[0]
    )


def test_other_collections_are_not_mistaken_for_cases(real_data: Path) -> None:
    cases, problems = discover_cases(FileStorage(str(real_data)))
    assert len([case for case in cases if case.case_id.startswith("BraTS2021_")]) == 10
    # Some copies of the data include one head with its skull, which is a case too.
    assert {case.case_id for case in cases if not case.case_id.startswith("BraTS2021_")} <= {"TCGA-FG-6692"}
    assert "quirks/label3_remap" in [problem.file for problem in problems]
    assert discover_cases(FileStorage(str(real_data / "open_ms"))) == ([], [])
