"""resample=true of /v1/segment: voxels of another size are refused without it, and the refusal names it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from serve.page import WEB

import glioray
from glioray.cases.nifti import encode_volume, read_volume
from glioray.errors import EndpointError

AFFINE = np.array([[0.0, 2, 0, -20], [-2, 0, 0, 30], [0, 0, 2.5, -10], [0, 0, 0, 1]])
MODALITIES = ("t1", "t1c", "t2", "flair")


def _resized(files: dict[str, bytes], affine: np.ndarray) -> dict[str, bytes]:
    return {name: encode_volume(read_volume(data, name=name).array, affine) for name, data in files.items()}


@pytest.fixture
def coarse(files: dict[str, bytes]) -> dict[str, bytes]:
    """The four files of a case of 2 x 2 x 2.5 mm, for a model of 1 mm."""
    return _resized(files, AFFINE)


def test_it_is_refused_with_the_way_on(
    client: TestClient, coarse: dict[str, bytes], detail_of: Callable[[Any, int], str]
) -> None:
    detail = detail_of(client.post("/v1/segment", files=coarse), 422)
    assert "has voxels of 2.00 mm along X but the model was trained on 1.00 mm" in detail
    # The page offers the way on where the sentence has these words.
    assert "resample=true" in detail
    assert 'includes("resample=true")' in (WEB / "segment.js").read_text()
    other = client.post("/v1/segment", files=coarse, data={"resample": "yes"})
    assert "resample" in detail_of(other, 422)


def test_it_is_segmented_on_its_own_grid(client: TestClient, coarse: dict[str, bytes]) -> None:
    answer = client.post("/v1/segment", files=coarse, data={"resample": "true"})
    assert answer.status_code == 200, answer.text
    mask = read_volume(answer.content, name="mask")
    assert mask.shape == read_volume(coarse["t1"], name="t1").shape
    np.testing.assert_array_equal(mask.affine, AFFINE)
    assert mask.array.any()
    sentence = "the case was resampled from voxels of 2.00 x 2.00 x 2.50 mm to the 1.00 x 1.00 x 1.00 mm"
    assert answer.headers["x-glioray-warning"].startswith(sentence)
    report = client.post("/v1/segment", files=coarse, data={"resample": "true", "output": "report"}).json()
    (flag,) = [flag for flag in report["flags"] if "voxels of" in flag]
    assert flag == answer.headers["x-glioray-warning"]
    assert report["spacing_mm"] == [2.0, 2.0, 2.5]
    assert report["voxels"]["wt"] == int((mask.array > 0).sum())


def test_what_fits_is_answered_as_without_it(client: TestClient, files: dict[str, bytes]) -> None:
    plain, asked = (client.post("/v1/segment", files=files, data=data) for data in ({}, {"resample": "true"}))
    assert asked.content == plain.content
    assert "x-glioray-warning" not in asked.headers


def test_a_small_file_does_not_become_a_huge_volume(
    client: TestClient, files: dict[str, bytes], detail_of: Callable[[Any, int], str]
) -> None:
    huge = _resized(files, np.diag([12.0, 12.0, 12.0, 1.0]))
    detail = detail_of(client.post("/v1/segment", files=huge, data={"resample": "true"}), 422)
    assert f"expected at most {2**26} in all" in detail


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_the_client_asks_for_it(coarse: dict[str, bytes], client: TestClient, is_async: bool) -> None:
    forms: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        forms.append(request.read())
        headers = {"Content-Type": request.headers["Content-Type"]}
        found = client.post("/v1/segment", content=forms[-1], headers=headers)
        return httpx.Response(found.status_code, headers=found.headers, content=found.content)

    transport = httpx.MockTransport(answer)

    def segment(**options: Any) -> Any:
        if not is_async:
            return glioray.Client(transport=transport).segment(coarse, **options)
        return asyncio.run(glioray.AsyncClient(transport=transport).segment(coarse, **options))

    with pytest.raises(EndpointError, match="send resample=true"):
        segment()
    assert b'name="resample"' not in forms[-1]
    assert segment(resample=True).mask.shape == read_volume(coarse["t1"], name="t1").shape
