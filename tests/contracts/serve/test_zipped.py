"""A zip of a case's folder: read as the folder is, and refused where it is none or tries something."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from fastapi.testclient import TestClient

from glioray.client import Client

NAMES = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair"}
CASE = "BraTS2021_00001"
ROUTES = ("/v1/segment", "/v1/superresolve")


@pytest.fixture
def client(
    make_client: Callable[..., TestClient], make_superres_watch: Callable[..., Any]
) -> Iterator[TestClient]:
    """A client of both routes."""
    with make_client(make_superres_watch()) as client:
        yield client


def _zip(entries: Mapping[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _folder(files: dict[str, bytes], prefix: str = f"{CASE}/{CASE}_") -> dict[Any, bytes]:
    return {f"{prefix}{NAMES[name]}.nii.gz": data for name, data in files.items()}


@pytest.mark.parametrize("prefix", [f"{CASE}/{CASE}_", f"{CASE}_", "", f"a/b/{CASE}/{CASE}_"])
def test_the_mask_is_that_of_the_files(client: TestClient, files: dict[str, bytes], prefix: str) -> None:
    expected = client.post("/v1/segment", files=files)
    others = {"README.txt": b"notes", "__MACOSX/._x": b"x", ".DS_Store": b"x"}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        zipped = _zip({**_folder(files, prefix), **others}, method)
        answer = client.post("/v1/segment", files={"case": ("any name", zipped)})
        assert answer.status_code == 200, answer.text
        assert answer.content == expected.content


def _unzip(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("sent", [("t1", "t1c", "t2", "flair"), ("t1", "flair")])
def test_it_is_super_resolved_as_its_files_that_the_model_takes(
    make_client: Callable[..., TestClient],
    make_superres_watch: Callable[..., Any],
    files: dict[str, bytes],
    sent: tuple[str, ...],
) -> None:
    settings: dict[str, Any] = {"channels": "each"}
    if len(sent) < len(files):
        settings = {"channels": "joint", "preprocess.modalities": sent}
    zipped, force = _zip(_folder(files)), {"force": "true"}
    with make_client(make_superres_watch(**settings)) as client:
        expected = client.post(ROUTES[1], files={name: files[name] for name in sent}, data=force)
        answer = client.post(ROUTES[1], files={"case": zipped}, data=force)
        described = [
            client.post(ROUTES[1], files=form, data=force, headers={"Accept": "application/json"}).json()
            for form in ({name: files[name] for name in sent}, {"case": zipped})
        ]
        with Client("http://endpoint", transport=client._transport) as caller:
            called = caller.superresolve({"case": zipped}, force=True)
    assert answer.status_code == 200, answer.text
    assert called.files == _unzip(expected.content)
    assert list(_unzip(answer.content)) == [f"{name}.nii.gz" for name in sent]
    assert _unzip(answer.content) == _unzip(expected.content)
    assert described[0] == described[1]


def _lying_size(data: bytes, name: str, size: int) -> bytes:
    """The zip with another size stated for a file, in both of its headers."""
    changed = bytearray(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        offset = archive.getinfo(name).header_offset
    changed[offset + 22 : offset + 26] = struct.pack("<I", size)
    central = data.index(b"PK\x01\x02")
    while data[central + 46 : central + 46 + len(name)] != name.encode():
        central = data.index(b"PK\x01\x02", central + 4)
    changed[central + 24 : central + 28] = struct.pack("<I", size)
    return bytes(changed)


def _encrypted(data: bytes) -> bytes:
    """The zip with the flag of encryption on its first file."""
    changed = bytearray(data)
    changed[6] |= 1
    changed[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(changed)


def _link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


def test_what_is_no_case_is_refused(
    client: TestClient, files: dict[str, bytes], detail_of: Callable[[Any, int], str]
) -> None:
    whole = _folder(files)
    first = next(iter(whole))
    zeros = bytes(600 << 20)
    cut = _zip(whole)
    flipped = bytearray(_zip(whole, zipfile.ZIP_STORED))
    flipped[200] ^= 0xFF
    hostile = {
        "is no zip or a damaged one": [
            b"",
            b"PK",
            files["t1"],
            cut[:-30],
            cut[: len(cut) // 2],
            b"PK\x05\x06" + bytes(17),
        ],
        "which is no plain path below its folder": [
            _zip({**whole, name: b"x"})
            for name in ("../x.nii.gz", "/etc/x.nii.gz", "a/../../x", "a//x", "./x", "C:/x.nii.gz")
        ],
        "is a link or a device": [_zip({**whole, _link(f"{CASE}/{CASE}_seg.nii.gz"): b"/etc/passwd"})],
        "is encrypted": [_encrypted(_zip(whole))],
        "holds another archive, 'more.zip'": [_zip({**whole, "more.zip": _zip(whole)})],
        "by an unusual method": [_zip(whole, zipfile.ZIP_LZMA), _zip(whole, zipfile.ZIP_BZIP2)],
        "bytes; expected at most 536870912": [_zip({**whole, "zeros.nii": zeros})],
        "has 1201 files; expected at most 1000": [_zip({f"{n}.txt": b"" for n in range(1201)})],
        "is damaged at": [bytes(flipped), _lying_size(_zip(whole), first, 100)],
        "holds no case; zip the folder of one case": [_zip({}), _zip({"README.txt": b"x"})],
        "holds no case: case BraTS2021_00001: BraTS2021_00001: has no t1": [
            _zip({name: data for name, data in whole.items() if name != first})
        ],
        "holds 2 cases": [_zip({**whole, **_folder(files, "BraTS2021_00002/BraTS2021_00002_")})],
        "t1 is not NIfTI": [_zip({**whole, first: b"x" * 500})],
    }
    for found, zips in hostile.items():
        for data in zips:
            for route in ROUTES:
                detail = detail_of(client.post(route, files={"case": data}), 422)
                assert found in detail, detail
    del zeros


@pytest.mark.parametrize("route", ROUTES)
def test_a_bomb_costs_no_memory(
    client: TestClient, files: dict[str, bytes], detail_of: Callable[[Any, int], str], route: str
) -> None:
    """A file that unpacks to more than it states is read as far as it states."""
    whole = _folder(files)
    first = next(iter(whole))
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = bytes(1 << 20)
    bomb = b"".join([*(deflate.compress(piece) for _ in range(2048)), deflate.flush()])
    zipped = _zip({**whole, first: bomb}, zipfile.ZIP_STORED)
    # Stored becomes deflated, in both headers.
    changed = bytearray(_lying_size(zipped, first, 1000))
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        offset = archive.getinfo(first).header_offset
    changed[offset + 8] = 8
    changed[zipped.index(b"PK\x01\x02") + 10] = 8
    tracemalloc.start()
    detail = detail_of(client.post(route, files={"case": bytes(changed)}), 422)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "is damaged at" in detail
    assert peak < 100 << 20


def test_a_zip_comes_alone(
    client: TestClient, files: dict[str, bytes], detail_of: Callable[[Any, int], str]
) -> None:
    both = {"case": _zip(_folder(files)), "t1": files["t1"]}
    for route in ROUTES:
        detail = detail_of(client.post(route, files=both), 422)
        assert detail == "both case and t1 were sent; send the zip of the case alone"
