"""Tif slices become a case, predictions return to their grid, and a bad file is one problem."""

from __future__ import annotations

import dataclasses
import functools
import io
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glioray.cases.casefiles import CaseFiles, Problem, patient_of
from glioray.cases.conventions import CONVENTIONS
from glioray.cases.labels import from_internal
from glioray.cases.layouts import discover_cases
from glioray.cases.load import Case, load_case
from glioray.cases.manifest import Manifest, build_manifest, check_case
from glioray.cases.nifti import Limits, encode_mask, read_volume
from glioray.cases.phantom import make_phantom
from glioray.cases.phantom_lgg import write_tif_phantoms
from glioray.errors import CaseError
from glioray.serialization import from_dict, to_dict
from glioray.storage import FileStorage

CASE = "TCGA_CS_4941_19960909"
DEPTH, HEIGHT, WIDTH = 12, 32, 28  # more than nine slices, so that sorting by text would be wrong


def tif(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF", **options)
    return buffer.getvalue()


def pictures() -> np.ndarray:
    """(Z, H, W, 3) of noise in a box of zeros."""
    array = np.zeros((DEPTH, HEIGHT, WIDTH, 3), np.uint8)
    inside = array[:, 3:-2, 4:-3]
    inside[:] = np.random.default_rng(2).integers(20, 250, inside.shape)
    return array


def masks() -> np.ndarray:
    """(Z, H, W), 0 and 255; not symmetric along any axis."""
    array = np.zeros((DEPTH, HEIGHT, WIDTH), np.uint8)
    array[3:7, 5:12, 18:23] = 255
    return array


def name(number: int, *, mask: bool = False, case: str = CASE) -> str:
    return f"{case}/{case}_{number}{'_mask' if mask else ''}.tif"


@functools.cache
def good_files() -> dict[str, bytes]:
    files = {}
    for number, (picture, mask) in enumerate(zip(pictures(), masks(), strict=True), 1):
        files |= {name(number): tif(picture), name(number, mask=True): tif(mask)}
    return files


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    """One case."""
    (tmp_path / CASE).mkdir()
    for key, data in good_files().items():
        (tmp_path / key).write_bytes(data)
    return FileStorage(str(tmp_path))


def only_case(storage: FileStorage) -> CaseFiles:
    (files,), problems = discover_cases(storage)
    assert not problems
    return files


def load_only(storage: FileStorage) -> Case:
    return load_case(storage, only_case(storage))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_the_orientation_tag_turns_a_slice(storage: FileStorage, orientation: int) -> None:
    """Stored turned and tagged so, a slice is the same; Pillow turns it back."""
    expected = load_only(storage).images
    turns = {3: 2, 6: 1, 8: -1}[orientation]  # of the stored pixels, counterclockwise
    for number, picture in enumerate(pictures(), 1):
        storage.write(name(number), tif(np.rot90(picture, turns), tiffinfo={274: orientation}))
    np.testing.assert_array_equal(load_only(storage).images, expected)


def test_slices_are_sorted_by_number(storage: FileStorage) -> None:
    files = only_case(storage)
    assert (files.case_id, files.patient_id, files.layout) == (CASE, "TCGA-CS-4941", "lgg-tif")
    assert files.modalities == ("t1", "t1c", "flair")
    assert files.slices == tuple(name(n) for n in range(1, DEPTH + 1))
    assert files.mask_slices == tuple(name(n, mask=True) for n in range(1, DEPTH + 1))
    assert files.keys() == files.slices + files.mask_slices


def test_axes_channels_and_labels(storage: FileStorage) -> None:
    case = load_only(storage)
    assert case.modalities == ("t1", "t1c", "flair")
    assert case.images.shape == (3, WIDTH, HEIGHT, DEPTH)
    assert case.images.dtype == np.int16
    assert case.spacing_mm == (1, 1, 1)
    assert case.convention == CONVENTIONS["wt-255"]
    assert case.mask is not None
    # Red, green and blue are T1, FLAIR and T1c. The picture's left is the patient's right, where RAS+ begins to
    # count last; its top is the front.
    for channel, modality in enumerate(("t1", "flair", "t1c")):
        for x, y, z in ((0, 0, 0), (7, 9, 3), (20, 4, 11)):
            stored = pictures()[z, HEIGHT - 1 - y, WIDTH - 1 - x, channel]
            assert case.images[case.modalities.index(modality), x, y, z] == stored
    np.testing.assert_array_equal(case.mask, 2 * (masks() > 0).transpose(2, 1, 0)[::-1, ::-1])


def test_a_prediction_is_written_on_the_grid_of_the_slices(storage: FileStorage) -> None:
    case = load_only(storage)
    predicted = np.zeros(case.images.shape[1:], np.uint8)
    predicted[2:9, 20:25, 4:6] = (2 + np.arange(7) % 2)[
        :, None, None
    ]  # ED and ET, which this collection lacks
    predicted[20, 20, 1] = 4
    written = read_volume(
        encode_mask(from_internal(predicted, CONVENTIONS["wt-255"]), case.reference), name="mask"
    )
    assert written.spacing_mm == (1, 1, 1)
    back = written.array.transpose(2, 1, 0)
    expected = np.zeros_like(masks())
    expected[4:6, HEIGHT - 25 : HEIGHT - 20, WIDTH - 9 : WIDTH - 2] = 255
    np.testing.assert_array_equal(back, expected)
    # The case's own mask is written as it was read.
    assert case.mask is not None
    own = encode_mask(from_internal(case.mask, CONVENTIONS["wt-255"]), case.reference)
    np.testing.assert_array_equal(read_volume(own, name="mask").array.transpose(2, 1, 0), masks())


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate"])
def test_compressed_slices_decode_to_the_same_pixels(storage: FileStorage, compression: str) -> None:
    plain = load_only(storage).images
    for number, picture in enumerate(pictures(), 1):
        storage.write(name(number), tif(picture, compression=compression))
    np.testing.assert_array_equal(load_only(storage).images, plain)


def test_a_phantom_written_as_slices_is_the_phantom(tmp_path: Path) -> None:
    storage = FileStorage(str(tmp_path))
    write_tif_phantoms(storage, num_cases=1, shape=(32, 32, 20))
    case, phantom = load_only(storage), make_phantom(0, shape=(32, 32, 20))
    assert case.mask is not None
    np.testing.assert_array_equal(case.mask > 0, phantom.mask > 0)
    for channel, index in enumerate((0, 1, 3)):
        shown, made = case.images[channel].ravel(), phantom.images[index].ravel()
        assert np.corrcoef(shown, made)[0, 1] > 0.99


def test_a_case_without_masks_is_valid(tmp_path: Path) -> None:
    storage = FileStorage(str(tmp_path))
    for number, picture in enumerate(pictures()):  # numbered from 0, all in one folder
        storage.write(f"slices/{CASE}_{number:02}.tiff", tif(picture))
    files = only_case(storage)
    assert (files.case_id, len(files.slices), files.mask_slices) == (CASE, DEPTH, ())
    case = load_case(storage, files)
    assert case.mask is None
    assert case.convention is None


def test_other_tif_files_are_ignored(tmp_path: Path) -> None:
    storage = FileStorage(str(tmp_path))
    for key in (
        "pictures/figure_1.tif",
        "kaggle_3m/data.csv",
        f"{CASE}/._{CASE}_1.tif",
        f"{CASE}/overview.tif",
    ):
        storage.write(key, tif(pictures()[0]))
    assert discover_cases(storage) == ([], [])


def test_other_data_in_the_same_layout(tmp_path: Path) -> None:
    storage = FileStorage(str(tmp_path))
    for number in (1, 2):
        storage.write(name(number, case="patient7"), tif(pictures()[number]))
    assert only_case(storage).patient_id == "patient7"


def test_patients_of_the_cancer_genome_atlas() -> None:
    written = ("TCGA_HT_A61B_19991127", "TCGA-HT-A61B", "TCGA-HT-A61B_1999.11.27")
    assert {patient_of(case_id) for case_id in written} == {"TCGA-HT-A61B"}
    assert patient_of("TCGA_HT_A61BC_19991127") == "TCGA_HT_A61BC_19991127"


def problems_of(storage: FileStorage) -> list[Problem]:
    cases, problems = discover_cases(storage)
    return problems + [problem for case in cases for problem in check_case(storage, case)[1]]


def test_missing_and_repeated_numbers_are_problems(storage: FileStorage) -> None:
    def problem_text() -> str:
        cases, (problem,) = discover_cases(storage)
        assert not cases
        assert problem.case_id == CASE
        return str(problem)

    root = Path(storage.uri.removeprefix("file://"))
    (root / name(3)).rename(root / "away")
    assert "has no slice 3; expected 1 to 12" in problem_text()
    (root / "away").rename(root / name(3))
    (root / name(3, mask=True)).unlink()
    assert "has no mask for slice 3" in problem_text()
    (root / name(3, mask=True)).write_bytes(tif(masks()[2]))
    (root / name(12)).unlink()
    assert "has a mask but no image for slice 12" in problem_text()
    (root / name(12)).write_bytes(tif(pictures()[11]))
    (root / name(7)).with_name(f"{CASE}_007.tif").write_bytes(tif(pictures()[6]))
    assert "repeats the number of another slice" in problem_text()
    (root / name(7)).with_name(f"{CASE}_007.tif").unlink()
    assert len(discover_cases(storage)[0]) == 1
    for number in range(1, DEPTH + 1):
        (root / name(number)).unlink()
    assert "has masks but no slices" in problem_text()


def claims(width: int, height: int) -> bytes:
    """A complete tif whose header claims another size."""
    data = bytearray(tif(pictures()[0]))
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    for index in range(count):
        entry = at + 2 + 12 * index
        (tag,) = struct.unpack_from("<H", data, entry)
        if tag in (256, 257):
            struct.pack_into("<HII", data, entry + 2, 4, 1, width if tag == 256 else height)
    return bytes(data)


def sixteen_bits_rgb() -> bytes:
    """A tif of which Pillow silently drops eight bits."""
    width, height, pixels = 4, 3, np.arange(36, dtype="<u2").tobytes()
    tags = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, 3, 8 + len(pixels)),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
    ]
    tags += [(273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(pixels)), (284, 3, 1, 1)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    bits = struct.pack("<3H", 16, 16, 16)
    return struct.pack("<2sHI", b"II", 42, 8 + len(pixels) + len(bits)) + pixels + bits + directory


def grey(dtype: str) -> bytes:
    return tif(pictures()[..., 0][0].astype(dtype))


BAD_SLICES: dict[str, tuple[Callable[[], bytes], str]] = {
    "no bytes": (lambda: b"", "is not a readable tif"),
    "text": (lambda: b"<html>404</html>" * 40, "is not a readable tif"),
    "a png": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), "is not a readable tif"),
    "cut in the directory": (lambda: tif(pictures()[0])[:20], "is "),
    "truncated": (lambda: truncated(tif(pictures()[0])), "is truncated or damaged"),
    "truncated lzw": (
        lambda: truncated(tif(pictures()[0], compression="tiff_lzw")),
        "is not a readable tif",
    ),
    "60000 x 60000": (lambda: claims(60000, 60000), "60000 x 60000"),
    "no width": (lambda: claims(0, HEIGHT), "is "),
    "grey": (lambda: grey("uint8"), "holds pixels of 8 bits (L); expected 8-bit RGB"),
    "16-bit grey": (lambda: grey("uint16"), "holds pixels of 16 bits"),
    "16-bit RGB": (sixteen_bits_rgb, "holds pixels of 16+16+16 bits (RGB); expected 8-bit RGB"),
    "another size": (lambda: tif(pictures()[0, 2:]), f"has {WIDTH} x {HEIGHT - 2} pixels"),
}


def truncated(data: bytes) -> bytes:
    """The file without the end of its pixels, which follow the directory."""
    return data[: len(data) - len(data) // 3]


@pytest.mark.parametrize("number", [1, 5])
@pytest.mark.parametrize("kind", BAD_SLICES)
def test_a_hostile_slice_raises_one_sentence_and_takes_little_memory(
    storage: FileStorage, kind: str, number: int
) -> None:
    make, message = BAD_SLICES[kind]
    storage.write(name(number), make())
    tracemalloc.start()
    try:
        (problem,) = problems_of(storage)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    sentence = str(problem)
    assert sentence.startswith(f"case {CASE}: {CASE}/")
    assert "\n" not in sentence
    assert peak < 4 * 2**20
    # The first slice defines the size: if it is wrong, the second is reported instead.
    if not (number == 1 and kind == "another size"):
        assert problem.file == name(number)
        assert message in sentence


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tif(masks()[4, 1:]), f"has {WIDTH} x {HEIGHT - 1} pixels"),
        (lambda: tif(masks()[4] // 255 * 128), "holds the label 128; the convention wt-255 has 0, 255"),
        (lambda: tif(np.repeat(masks()[4][..., None], 3, -1)), "expected 8-bit grey"),
        (lambda: truncated(tif(masks()[4])), "is truncated or damaged"),
    ],
)
def test_an_invalid_mask_is_a_problem(storage: FileStorage, make: Callable[[], bytes], message: str) -> None:
    storage.write(name(5, mask=True), make())
    (problem,) = problems_of(storage)
    assert message in str(problem)


def test_masks_that_differ_in_size_from_their_slices(storage: FileStorage) -> None:
    for number in range(1, DEPTH + 1):
        storage.write(name(number, mask=True), tif(np.zeros((HEIGHT, WIDTH + 2), np.uint8)))
    (problem,) = problems_of(storage)
    assert f"has {(WIDTH + 2, HEIGHT, DEPTH)} voxels (in RAS order), but {name(1)} to" in str(problem)


def test_a_case_of_more_voxels_than_the_limit_is_rejected(storage: FileStorage) -> None:
    with pytest.raises(CaseError, match=rf"claims 28 x 32 pixels in each of {DEPTH} slices"):
        load_case(storage, only_case(storage), limits=Limits(max_voxels=WIDTH * HEIGHT * DEPTH - 1))


def test_the_manifest_entry_describes_the_case(storage: FileStorage) -> None:
    files = only_case(storage)
    manifest = build_manifest(storage.uri, [check_case(storage, files)])
    (entry,) = manifest.cases
    assert entry.modalities == ("t1", "t1c", "flair")
    assert entry.labelled_regions == ("wt",)
    assert entry.label_voxels == {"ncr": 0, "ed": int((masks() > 0).sum()), "et": 0, "rc": 0}
    assert entry.shape == (WIDTH, HEIGHT, DEPTH)
    assert len(entry.checksums) == 2 * DEPTH
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert from_dict(CaseFiles, to_dict(files)) == files
    assert dataclasses.replace(entry, convention=None).labelled_regions == ()
