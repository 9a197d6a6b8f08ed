"""POST /v1/segment without Ray: what it answers, and every way to be refused."""

from __future__ import annotations

import gzip
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from serve.api import make_api
from serve.schemas import NOTICE, Settings
from serve.watch import ModelWatch

from glioray.cases.labels import CONVENTIONS, to_internal
from glioray.cases.nifti import encode_volume, read_volume, to_canonical

SHAPE = (40, 44, 36)
AFFINE = np.array([[0.0, 1, 0, -20], [-1, 0, 0, 30], [0, 0, 1, -10], [0, 0, 0, 1]])
MODALITIES = ("t1", "t1c", "t2", "flair")


def _head(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A ball of noise in air, int16."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum(g**2 for g in grid) < 0.8
    noise = np.random.default_rng(seed).integers(100, 900, shape)
    return np.where(inside, noise, 0).astype(np.int16)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {name: encode_volume(_head(i), AFFINE) for i, name in enumerate(MODALITIES)}


@pytest.fixture
def watch(make_package: Callable[[int], Path]) -> ModelWatch:
    watch = ModelWatch(str(make_package(0)), poll_s=3600, device="cpu")
    watch.refresh()
    assert watch.served is not None
    return watch


@pytest.fixture
def make_client(watch: ModelWatch) -> Callable[..., TestClient]:
    def make(**settings: Any) -> TestClient:
        return TestClient(make_api(Settings(**settings), watch), raise_server_exceptions=False)

    return make


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> Iterator[TestClient]:
    with make_client() as client:
        yield client


def _detail(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["detail"]
    detail = answer.json()["detail"]
    assert isinstance(detail, str)
    assert "\n" not in detail
    assert answer.headers["x-glioray-notice"] == NOTICE
    return detail


def _canonical(data: bytes) -> np.ndarray:
    volume = read_volume(data, name="mask")
    return to_canonical(volume.array, volume.affine)[0]


def test_the_mask_lies_on_the_inputs_grid(client: TestClient, files: dict[str, bytes]) -> None:
    answer = client.post("/v1/segment", files=files)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/gzip"
    assert answer.headers["content-disposition"].endswith('.nii.gz"')
    assert answer.headers["x-glioray-notice"] == NOTICE
    mask = read_volume(answer.content, name="mask")
    assert mask.shape == SHAPE
    np.testing.assert_array_equal(mask.affine, AFFINE)
    assert mask.array.dtype == np.uint8
    assert set(np.unique(mask.array)) <= {0, 1, 2, 4}
    assert mask.array.any()


def test_one_image_says_what_four_files_say(client: TestClient, files: dict[str, bytes]) -> None:
    arrays = {name: read_volume(data, name=name).array for name, data in files.items()}
    image = np.stack([arrays[name] for name in ("flair", "t1", "t1c", "t2")], axis=-1)
    one = client.post("/v1/segment", files={"image": encode_volume(image, AFFINE)})
    four = client.post("/v1/segment", files=files)
    assert one.status_code == 200, one.text
    np.testing.assert_array_equal(_canonical(one.content), _canonical(four.content))
    assert read_volume(one.content, name="mask").array.ndim == 3


@pytest.mark.parametrize("labels", sorted(CONVENTIONS))
def test_labels_come_in_the_convention_asked_for(
    client: TestClient, files: dict[str, bytes], labels: str
) -> None:
    default = to_internal(
        _canonical(client.post("/v1/segment", files=files).content), CONVENTIONS["brats-et4"]
    )
    answer = client.post("/v1/segment", files=files, data={"labels": labels})
    np.testing.assert_array_equal(to_internal(_canonical(answer.content), CONVENTIONS[labels]), default)


def test_the_mask_follows_a_reoriented_copy(client: TestClient, files: dict[str, bytes]) -> None:
    turned = {}
    affine = AFFINE[:, [2, 0, 1, 3]].copy()
    affine[:, 3] += affine[:, 0] * (SHAPE[2] - 1)
    affine[:, 0] *= -1
    for name, data in files.items():
        turned[name] = encode_volume(read_volume(data, name=name).array.transpose(2, 0, 1)[::-1], affine)
    mask = read_volume(client.post("/v1/segment", files=turned).content, name="mask")
    straight = read_volume(client.post("/v1/segment", files=files).content, name="mask").array
    np.testing.assert_array_equal(mask.affine, affine)
    np.testing.assert_array_equal(mask.array, straight.transpose(2, 0, 1)[::-1])


def test_json_gives_volumes_of_the_same_mask(client: TestClient, files: dict[str, bytes]) -> None:
    answer = client.post("/v1/segment", files=files, headers={"Accept": "application/json"})
    assert answer.status_code == 200
    figures = answer.json()
    assert figures["notice"] == NOTICE
    assert set(figures["volumes_ml"]) == {"wt", "tc", "et", "ncr", "ed"}
    mask = to_internal(_canonical(client.post("/v1/segment", files=files).content), CONVENTIONS["brats-et4"])
    assert figures["voxels"]["wt"] == np.isin(mask, (1, 2, 3)).sum()
    assert figures["voxels"]["ed"] == (mask == 2).sum()
    assert figures["volumes_ml"]["wt"] == pytest.approx(figures["voxels"]["wt"] / 1000, abs=1e-4)
    assert figures["spacing_mm"] == pytest.approx([1, 1, 1])
    assert figures["model"] == answer.headers["x-glioray-model"]


@pytest.mark.parametrize("missing", MODALITIES)
def test_a_missing_modality_is_named(client: TestClient, files: dict[str, bytes], missing: str) -> None:
    rest = {name: data for name, data in files.items() if name != missing}
    assert _detail(client.post("/v1/segment", files=rest), 422).startswith(f"{missing} is missing")


def test_an_empty_form_names_all(client: TestClient, files: dict[str, bytes]) -> None:
    answer = client.post("/v1/segment", data={"labels": "msd"}, files={"labels2": b""})
    assert "'labels2' is not known" in _detail(answer, 422)


def _hostile() -> dict[str, bytes]:
    good = encode_volume(_head(9), AFFINE)
    raw = gzip.decompress(good)
    nan = _head(9).astype(np.float32)
    nan[20, 20, 20] = np.nan
    huge = bytearray(raw[:352])
    struct.pack_into("<8h", huge, 40, 3, 32767, 32767, 32767, 1, 1, 1, 1)
    bomb = bytearray(raw[:352])
    struct.pack_into("<8h", bomb, 40, 3, 40, 44, 36, 1, 1, 1, 1)
    shifted = AFFINE.copy()
    shifted[0, 3] += 5
    return {
        "": b"",
        "not NIfTI": b"MZ" + bytes(2000),
        "truncated": good[: len(good) // 2],
        "32767": gzip.compress(bytes(huge)),
        "longer than": gzip.compress(bytes(bomb) + bytes(300 * 2**20), 1),
        "NaN": encode_volume(nan, AFFINE),
        "every voxel": encode_volume(np.zeros(SHAPE, np.int16), AFFINE),
        "(40, 44, 30)": encode_volume(_head(9)[:, :, :30], AFFINE),
        "5 mm away": encode_volume(_head(9), shifted),
        "one volume": encode_volume(np.stack([_head(9)] * 2, -1), AFFINE),
    }


@pytest.mark.parametrize("kind", list(_hostile()))
def test_a_hostile_file_gets_its_sentence(client: TestClient, files: dict[str, bytes], kind: str) -> None:
    answer = client.post("/v1/segment", files={**files, "t1c": _hostile()[kind]})
    detail = _detail(answer, 422)
    assert detail.startswith("t1c ")
    if kind != "(40, 44, 30)":
        assert kind in detail
    assert client.post("/v1/segment", files=files).status_code == 200


def test_voxels_that_the_model_does_not_know(client: TestClient) -> None:
    thick = AFFINE @ np.diag([1, 1, 3, 1])
    answer = client.post("/v1/segment", files={m: encode_volume(_head(1), thick) for m in MODALITIES})
    assert "3.00 mm along Z but the model was trained on 1.00 mm" in _detail(answer, 422)


def test_image_and_modalities_together(client: TestClient, files: dict[str, bytes]) -> None:
    answer = client.post("/v1/segment", files={"image": files["t1"], "t2": files["t2"]})
    assert "both image and t2" in _detail(answer, 422)


def test_an_image_of_three_dimensions(client: TestClient, files: dict[str, bytes]) -> None:
    assert "(X, Y, Z, 4)" in _detail(client.post("/v1/segment", files={"image": files["t1"]}), 422)


def test_fields_that_cannot_be(client: TestClient, files: dict[str, bytes]) -> None:
    twice = [*files.items(), ("t1", files["t1"])]
    assert "sent 2 times" in _detail(client.post("/v1/segment", files=twice), 422)
    unknown = client.post("/v1/segment", files={**files, "dwi": b""})
    assert "'dwi' is not known" in _detail(unknown, 422)
    labels = client.post("/v1/segment", files=files, data={"labels": "braats"})
    assert "'braats'; expected one of brats-et4" in _detail(labels, 422)
    as_file = client.post("/v1/segment", files={**files, "labels": b"msd"})
    assert "labels is a file" in _detail(as_file, 422)
    rest = {name: data for name, data in files.items() if name != "t1"}
    text = client.post("/v1/segment", files=rest, data={"t1": "here.nii"})
    assert "'t1' is text" in _detail(text, 422)
    assert "not a whole" in _detail(client.post("/v1/segment", files=files, data={"labels": "x" * 5000}), 400)


@pytest.mark.parametrize(
    ("media_type", "status"),
    [
        ("application/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/octet-stream", 415),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=x", 400),
    ],
)
def test_a_body_that_is_no_form(client: TestClient, media_type: str, status: int) -> None:
    answer = client.post("/v1/segment", content=b"--y\r\n\r\n{}", headers={"Content-Type": media_type})
    _detail(answer, status)


def test_a_large_body_is_refused_before_it_is_read(
    make_client: Callable[..., TestClient], files: dict[str, bytes]
) -> None:
    with make_client(max_body_mb=0.01) as client:
        assert "larger than 0.01 MB" in _detail(client.post("/v1/segment", files=files), 413)


def test_a_large_body_of_unknown_length_is_read_to_the_limit_only(
    make_client: Callable[..., TestClient],
) -> None:
    sent = []

    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="t1"; filename="t1"\r\n\r\n'
        for number in range(100):
            sent.append(number)
            yield bytes(1000)

    with make_client(max_body_mb=0.02) as client:
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = client.post("/v1/segment", content=endless(), headers=headers)
    assert "larger than 0.02 MB" in _detail(answer, 413)


def test_no_more_cases_at_once_than_there_are_places(
    make_client: Callable[..., TestClient],
    watch: ModelWatch,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert watch.served is not None
    predictor = watch.served.predictor
    entered, go_on = threading.Event(), threading.Event()
    predict = predictor.predict

    def slow(case: Any) -> Any:
        entered.set()
        assert go_on.wait(60)
        return predict(case)

    monkeypatch.setattr(predictor, "predict", slow)
    answers: list[Any] = []
    with make_client(max_pending=1) as client:
        first = threading.Thread(target=lambda: answers.append(client.post("/v1/segment", files=files)))
        first.start()
        assert entered.wait(60)
        refused = client.post("/v1/segment", files=files)
        assert client.get("/healthz").json() == {"status": "ok"}
        go_on.set()
        first.join(60)
        again = client.post("/v1/segment", files=files)
    assert "1 cases are being segmented" in _detail(refused, 429)
    assert int(refused.headers["retry-after"]) > 0
    assert [answers[0].status_code, again.status_code] == [200, 200]


def test_a_case_that_takes_too_long(
    make_client: Callable[..., TestClient],
    watch: ModelWatch,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert watch.served is not None
    go_on = threading.Event()
    monkeypatch.setattr(watch.served.predictor, "predict", lambda _: go_on.wait(60))
    with make_client(timeout_s=0.5) as client:
        answer = client.post("/v1/segment", files=files)
        go_on.set()
    assert "not segmented within 0.5 s" in _detail(answer, 503)


def test_a_failure_of_the_servers_own_shows_nothing_of_it(
    client: TestClient, watch: ModelWatch, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("a secret of the server")

    assert watch.served is not None
    monkeypatch.setattr(watch.served.predictor, "predict", broken)
    detail = _detail(client.post("/v1/segment", files=files), 500)
    assert "secret" not in detail
    monkeypatch.undo()
    assert client.post("/v1/segment", files=files).status_code == 200
