"""Hostile files raise one clear sentence, take little memory and leave the other cases alone."""

import functools
import gzip
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from glioray.cases.layouts import discover_cases
from glioray.cases.load import load_case_from_bytes
from glioray.cases.manifest import build_manifest, check_case
from glioray.cases.nifti import Limits, encode_volume, read_header, read_volume
from glioray.errors import CaseError
from glioray.storage import FileStorage

AFFINE = np.diag([-1.0, -1, 1, 1])


@dataclass(frozen=True)
class Hostile:
    """A kind of bad file: how to make it, and a part of its error message."""

    make: Callable[[], bytes]
    message: str


def volume(shape: tuple[int, ...] = (24, 20, 16), dtype: str = "int16") -> np.ndarray:
    """Noise in a box of zeros."""
    array = np.zeros(shape, dtype)
    inside = tuple(slice(2, n - 2) for n in shape[:3])
    array[inside] = np.random.default_rng(0).integers(1, 900, array[inside].shape).astype(dtype)
    return array


def raw() -> bytes:
    return encode_volume(volume(), AFFINE, compress=False)


def patched(at: int, fmt: str, *values: float, compress: bool = True) -> bytes:
    """A good file with some of its header overwritten."""
    data = bytearray(raw())
    struct.pack_into(fmt, data, at, *values)
    return gzip.compress(bytes(data)) if compress else bytes(data)


def dims(*shape: int, compress: bool = True) -> bytes:
    return patched(40, f"<{len(shape) + 1}h", len(shape), *shape, compress=compress)


@functools.cache
def bomb(head: bytes, *, trailer: bytes | None = None) -> bytes:
    """1.2 MB that decompress to a header and 256 MB of zeros; `trailer` replaces the stated size."""
    packer = zlib.compressobj(1, wbits=31)
    zeros = bytes(2**24)
    data = b"".join([packer.compress(head), *(packer.compress(zeros) for _ in range(16)), packer.flush()])
    return data if trailer is None else data[:-4] + trailer


def not_finite(value: float) -> bytes:
    array = volume(dtype="float32")
    array[5, 5, 5] = value
    return encode_volume(array, AFFINE)


def damaged_crc() -> bytes:
    data = bytearray(gzip.compress(raw()))
    data[-8] ^= 0xFF
    return bytes(data)


def damaged_middle() -> bytes:
    data = bytearray(gzip.compress(raw()))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


def second_member_damaged() -> bytes:
    whole = raw()
    second = bytearray(gzip.compress(whole[4000:]))
    second[-6] ^= 0xFF
    return gzip.compress(whole[:4000]) + bytes(second)


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"

UNREADABLE = {
    "zero bytes": Hostile(lambda: b"", "is empty (0 bytes)"),
    "text": Hostile(lambda: b"<html>404 not found</html>" * 40, "is not NIfTI"),
    "noise": Hostile(lambda: os.urandom(4096), "is not NIfTI"),
    "gzip of text": Hostile(lambda: gzip.compress(b"no image at all" * 99), "is not NIfTI"),
    "gzip magic and noise": Hostile(lambda: b"\x1f\x8b" + b"\x99" * 4000, "is a damaged gzip stream"),
    "header cut short": Hostile(lambda: raw()[:200], "ends within its header, after 200 bytes"),
    "gzip cut in the header": Hostile(lambda: gzip.compress(raw())[:40], "ends within its header"),
    "Analyze": Hostile(lambda: patched(344, "4s", b"\0\0\0\0"), "no NIfTI signature"),
    "half of a pair": Hostile(lambda: patched(344, "4s", b"ni1\0"), ".hdr/.img pair"),
    "truncated": Hostile(lambda: raw()[:-100], "is truncated"),
    "truncated gzip": Hostile(lambda: gzip.compress(raw())[:-2000], "is truncated"),
    "truncated trailer": Hostile(lambda: gzip.compress(raw())[:-4], "is truncated"),
    "bad CRC": Hostile(damaged_crc, "is a damaged gzip stream"),
    "bad second member": Hostile(second_member_damaged, "gzip"),
    "damaged middle": Hostile(damaged_middle, "is "),
    "more than claimed": Hostile(
        lambda: raw() + b"tail",
        "it has 4 bytes after the 15712 that a header of (24, 20, 16) voxels of int16",
    ),
    "more than claimed, gzip": Hostile(
        lambda: gzip.compress(raw() + b"tail"),
        "is longer than its header claims: it has bytes after the 15712",
    ),
    "garbage after gzip": Hostile(
        lambda: gzip.compress(raw()) + b"garbage",
        "has 7 bytes after its gzip stream that are not gzip; decompress it with gunzip",
    ),
    "bomb": Hostile(lambda: bomb(raw()), "is longer than its header claims"),
    "bomb with a false size": Hostile(
        lambda: bomb(raw(), trailer=len(raw()).to_bytes(4, "little")), "is longer than its header claims"
    ),
    "bomb with its true size": Hostile(
        lambda: bomb(dims(1024, 1024, 1024, compress=False)), "claims (1024, 1024, 1024) voxels"
    ),
    "claims 32767^3": Hostile(lambda: dims(32767, 32767, 32767), "claims (32767, 32767, 32767) voxels"),
    "claims more than it could": Hostile(lambda: dims(400, 400, 400), "cannot hold"),
    "a dimension of 0": Hostile(lambda: dims(24, 0, 16), "has a dimension of size 0"),
    "a negative dimension": Hostile(lambda: dims(24, -20, 16), "has a dimension of size 0"),
    "9 dimensions": Hostile(lambda: patched(40, "<h", 9), "claims 9 dimensions"),
    "one dimension": Hostile(lambda: dims(7680), "expected (X, Y, Z)"),
    "five dimensions": Hostile(lambda: dims(24, 20, 4, 2, 2), "expected (X, Y, Z)"),
    "too many channels": Hostile(
        lambda: dims(24, 20, 2, 8), "and 4 channels; store one volume in a file, and a mask as one volume"
    ),
    "gzip in gzip": Hostile(
        lambda: gzip.compress(gzip.compress(raw())), "compressed twice, gzip within gzip; decompress it once"
    ),
    "git-lfs pointer": Hostile(
        lambda: LFS_POINTER, "is a git-lfs pointer, not the file itself; fetch the file"
    ),
    "git-annex pointer": Hostile(
        lambda: b"/annex/objects/SHA256E-s9--01.nii.gz\n",
        "is a git-annex pointer, not the file itself; fetch",
    ),
    "web page": Hostile(
        lambda: b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page or a server's error"
    ),
    "JPEG": Hostile(lambda: b"\xff\xd8\xff\xe0" + bytes(900), "is a JPEG picture; use the NIfTI file"),
    "PNG": Hostile(lambda: b"\x89PNG\r\n\x1a\n" + bytes(900), "is a PNG picture; use the NIfTI file"),
    "DICOM": Hostile(lambda: bytes(128) + b"DICM" + bytes(900), "is a DICOM file; convert it to NIfTI"),
    "zip": Hostile(lambda: b"PK\x03\x04" + bytes(900), "is a ZIP archive; unpack it"),
    "tar.gz": Hostile(
        lambda: gzip.compress(b"case/t1.nii".ljust(257, b"\0") + b"ustar\0" + bytes(900)), "tar archive"
    ),
    "RGB": Hostile(lambda: patched(70, "<h", 128), "holds voxels of RGB"),
    "complex": Hostile(lambda: patched(70, "<h", 32), "holds voxels of complex numbers"),
    "unknown type": Hostile(lambda: patched(70, "<h", 77), "datatype 77"),
    "offset in the header": Hostile(lambda: patched(108, "<f", 100), "start at byte 100"),
    "offset far away": Hostile(lambda: patched(108, "<f", 1e9), "start at byte 1e+09"),
    "offset NaN": Hostile(lambda: patched(108, "<f", np.nan), "start at byte nan"),
    "slope infinite": Hostile(lambda: patched(112, "<f", np.inf), "scaling"),
    "intercept NaN": Hostile(lambda: patched(112, "<2f", 2, np.nan), "scaling"),
    "affine NaN": Hostile(lambda: patched(280, "<f", np.nan), "NaN or infinity in its affine"),
    "affine infinite": Hostile(lambda: patched(292, "<f", np.inf), "NaN or infinity in its affine"),
    "affine singular": Hostile(
        lambda: patched(280, "<12f", 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0), "singular affine"
    ),
    "affine of zeros": Hostile(lambda: patched(280, "<12f", *[0] * 12), "voxel edges of 0 x 0 x 0 mm"),
    "quaternion out of range": Hostile(
        lambda: patched(252, "<2h6f", 1, 0, 9.0, 9.0, 9.0, 0, 0, 0), "an unusable orientation"
    ),
}
"""Files that `read_volume` rejects."""

UNUSABLE = {
    "NaN": Hostile(lambda: not_finite(np.nan), "holds 1 voxels that are NaN or infinite"),
    "infinity": Hostile(lambda: not_finite(-np.inf), "holds 1 voxels that are NaN or infinite"),
    "nothing but zeros": Hostile(lambda: encode_volume(np.zeros((24, 20, 16), np.int16), AFFINE), "is empty"),
    "one slice less": Hostile(lambda: encode_volume(volume((24, 20, 15)), AFFINE), "has (24, 20, 15) voxels"),
    "another place": Hostile(lambda: encode_volume(volume(), AFFINE + np.eye(4, k=3) * 4), "mm away"),
    "lost header": Hostile(lambda: encode_volume(volume(), np.eye(4)), "lost its orientation"),
    "four channels": Hostile(lambda: encode_volume(volume((24, 20, 16, 4)), AFFINE), "expected one volume"),
}
"""Files that can be decoded but do not belong to the case."""


MODALITIES = ("t1", "t1ce", "t2", "flair")


@pytest.fixture
def three_cases(tmp_path: Path) -> FileStorage:
    storage = FileStorage(str(tmp_path))
    image, mask = encode_volume(volume(), AFFINE), encode_volume((volume() > 700) * np.uint8(2), AFFINE)
    for case_id in ("BraTS2021_00001", "BraTS2021_00002", "BraTS2021_00003"):
        for name in MODALITIES:
            storage.write(f"{case_id}/{case_id}_{name}.nii.gz", image)
        storage.write(f"{case_id}/{case_id}_seg.nii.gz", mask)
    return storage


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_hostile_file_raises_one_sentence_and_takes_little_memory(kind: str) -> None:
    data = UNREADABLE[kind].make()
    tracemalloc.start()
    try:
        with pytest.raises(CaseError) as error:
            read_volume(data, name="x_t1.nii.gz", case_id="BraTS-1")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    sentence = str(error.value)
    assert sentence.startswith("case BraTS-1: x_t1.nii.gz: ")
    assert UNREADABLE[kind].message in sentence
    assert "; " in sentence
    assert "\n" not in sentence
    assert peak < 4 * 2**20


PLACES = [("flair", kind) for kind in (*UNREADABLE, *UNUSABLE)]
PLACES += [(file, kind) for file in ("t1", "seg") for kind in ("truncated gzip", "bomb", *UNUSABLE)]
PLACES.remove(("seg", "nothing but zeros"))  # a mask may be empty


@pytest.mark.parametrize(("file", "kind"), PLACES)
def test_one_bad_file_is_one_problem_and_leaves_the_other_cases_alone(
    three_cases: FileStorage, kind: str, file: str
) -> None:
    bad = {**UNREADABLE, **UNUSABLE}[kind]
    key = f"BraTS2021_00002/BraTS2021_00002_{file}.nii.gz"
    three_cases.write(key, bad.make())
    cases, problems = discover_cases(three_cases)
    manifest = build_manifest(
        three_cases.uri, [(None, problems), *(check_case(three_cases, case) for case in cases)]
    )
    assert [entry.case_id for entry in manifest.cases] == ["BraTS2021_00001", "BraTS2021_00003"]
    (problem,) = manifest.problems
    assert problem.case_id == "BraTS2021_00002"
    # T1 defines the grid: if T1 is wrong, the next file is reported instead.
    if file != "t1" or kind in UNREADABLE:
        assert problem.file == key
    if not (file == "seg" and kind in ("NaN", "infinity")) and not (file == "t1" and kind in UNUSABLE):
        assert bad.message in str(problem)


def test_a_one_hot_mask_is_to_be_joined(three_cases: FileStorage) -> None:
    cases, _ = discover_cases(three_cases)
    for channels in (3, 8):
        one_hot = encode_volume(np.zeros((24, 20, 16, channels), np.uint8), AFFINE)
        three_cases.write(str(cases[0].mask), one_hot)
        found, (problem,) = check_case(three_cases, cases[0])
        assert found is None
        assert "one volume of label numbers" in problem.advice
        assert "modality" not in str(problem)


@pytest.mark.parametrize("compress", [True, False])
def test_the_caller_sets_the_limits(compress: bool) -> None:
    data = encode_volume(volume((24, 20, 16, 3)), AFFINE, compress=compress)
    assert read_volume(data, name="a").array.shape == (24, 20, 16, 3)
    for limits in (Limits(max_voxels=7679), Limits(max_channels=2), Limits(max_bytes=3 * 2 * 7680 - 1)):
        with pytest.raises(CaseError, match="expected at most"):
            read_header(data, name="a", limits=limits)


def test_a_request_with_missing_or_unexpected_files_is_rejected() -> None:
    image = encode_volume(volume(), AFFINE)
    parts = dict.fromkeys(("t1", "t1c", "t2", "flair"), image)
    assert load_case_from_bytes(parts).images.shape == (4, 24, 20, 16)
    with pytest.raises(CaseError, match=r"t2 is missing; expected t1, t1c, t2 and flair"):
        load_case_from_bytes({name: data for name, data in parts.items() if name != "t2"})
    with pytest.raises(CaseError, match="t1 is not expected"):
        load_case_from_bytes({"image": image, "t1": image})
    with pytest.raises(CaseError, match=r"expected \(X, Y, Z, 4\)"):
        load_case_from_bytes({"image": image})
