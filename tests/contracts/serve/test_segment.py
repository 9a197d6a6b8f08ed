"""POST /v1/segment without Ray: what it answers, and every way to be refused."""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from scipy import special
from serve.api import make_api
from serve.schemas import Settings
from serve.watch import ModelWatch

from glioray.cases.conventions import CONVENTIONS
from glioray.cases.labels import REGION_LABELS, to_internal
from glioray.cases.load import load_case_from_bytes
from glioray.cases.nifti import encode_volume, read_volume, to_canonical
from glioray.engine.package import SPEC_FILE
from glioray.engine.serving import NOTICE
from glioray.tasks.segmentation.package import parse_spec
from glioray.tasks.segmentation.predictor import Predictor

SHAPE = (40, 44, 36)
AFFINE = np.array([[0.0, 1, 0, -20], [-1, 0, 0, 30], [0, 0, 1, -10], [0, 0, 0, 1]])
MODALITIES = ("t1", "t1c", "t2", "flair")


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
    found = to_internal(_canonical(answer.content), CONVENTIONS[labels])
    if len(CONVENTIONS[labels].regions) == 1:
        (region,) = CONVENTIONS[labels].regions
        found, default = found > 0, np.isin(default, REGION_LABELS[region])
    np.testing.assert_array_equal(found, default)


def test_a_cavity_has_a_number_in_every_mask_of_a_model_that_labels_it(
    make_package: Callable[..., Path], files: dict[str, bytes], detail_of: Callable[[Any, int], str]
) -> None:
    package = make_package(0, out_channels=5, **{"loss.name": "dice_ce", "loss.target": "classes"})
    watch = ModelWatch(str(package), Predictor.load, poll_s=3600, device="cpu")
    watch.refresh()
    with TestClient(make_api(Settings(), {"segmentation": watch}), raise_server_exceptions=False) as client:
        default = client.post("/v1/segment", files=files)
        same = client.post("/v1/segment", files=files, data={"labels": "1=ncr,2=ed,3=et,4=rc"})
        np.testing.assert_array_equal(_canonical(default.content), _canonical(same.content))
        assert (_canonical(default.content) == 4).any()
        whole = client.post("/v1/segment", files=files, data={"labels": "wt"})
        np.testing.assert_array_equal(
            _canonical(whole.content) == 1, np.isin(_canonical(default.content), REGION_LABELS["wt"])
        )
        refused = client.post("/v1/segment", files=files, data={"labels": "brats-et4"})
        assert detail_of(refused, 422) == (
            "labels is 'brats-et4', which has no number for the resection cavity that the model labels; send "
            "labels=brats2024"
        )


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


def test_every_output_belongs_to_the_same_mask(client: TestClient, files: dict[str, bytes]) -> None:
    def send(output: str, **form: str) -> httpx.Response:
        answer = client.post("/v1/segment", files=files, data={"output": output, **form})
        assert answer.status_code == 200, answer.text
        return answer

    mask, report = send("mask"), send("report").json()
    assert mask.content == client.post("/v1/segment", files=files).content
    labels = to_internal(_canonical(mask.content), CONVENTIONS["brats-et4"])
    assert report == client.post("/v1/segment", files=files, headers={"Accept": "application/json"}).json()
    assert set(report["certainty"]) == {"wt", "tc", "et"}
    assert set(report["input_digests"]) == set(files)
    assert report["num_lesions"]["wt"] >= 1
    assert report["lesions"][0]["volume_ml"] <= report["volumes_ml"]["wt"]
    assert "ml are not background" in report["flags"][0]
    with zipfile.ZipFile(io.BytesIO(send("probabilities").content)) as archive:
        probs = {name: _canonical(archive.read(name)) for name in archive.namelist()}
    assert set(probs) == {
        "uncertainty.nii.gz", *(f"probability_{region}.nii.gz" for region in ("wt", "tc", "et"))
    }  # fmt: skip
    whole = probs["probability_wt.nii.gz"]
    entropy = sum(
        special.entr(probs[name]) + special.entr(1 - probs[name]) for name in probs if "prob" in name
    )
    # Files have steps of 1/255.
    np.testing.assert_allclose(probs["uncertainty.nii.gz"], entropy / (3 * math.log(2)), atol=0.03)
    assert probs["uncertainty.nii.gz"].max() > 0.5
    assert (whole.min(), whole.dtype) == (0, np.float32)
    assert 0.5 < whole.max() <= 1
    # WT is painted first, TC and ET over it; so it is at least where its own threshold says.
    assert np.all(labels[whole > 0.5] > 0)
    picture = Image.open(io.BytesIO(send("overlay").content))
    assert picture.width > 900
    with zipfile.ZipFile(io.BytesIO(send("all", labels="brats-et3").content)) as archive:
        assert set(archive.namelist()) == {
            "segmentation.nii.gz", "report.json", "report.html", "overlay.png", *probs,
        }  # fmt: skip
        found = to_internal(_canonical(archive.read("segmentation.nii.gz")), CONVENTIONS["brats-et3"])
        np.testing.assert_array_equal(found, labels)
        assert json.loads(archive.read("report.json")) == report
        page = archive.read("report.html").decode()
        assert NOTICE.capitalize() in page
        assert "http" not in page.partition("<body>")[2]


def test_a_model_of_whole_tumours_says_nothing_of_what_is_in_them(
    make_package: Callable[..., Path], files: dict[str, bytes]
) -> None:
    package = make_package(0)
    spec = replace(parse_spec((package / SPEC_FILE).read_bytes()), regions=("wt",))
    (package / SPEC_FILE).write_text(spec.to_json())
    watch = ModelWatch(str(package), Predictor.load, poll_s=3600, device="cpu")
    watch.refresh()
    with TestClient(make_api(Settings(), {"segmentation": watch}), raise_server_exceptions=False) as client:
        figures = client.post("/v1/segment", files=files, headers={"Accept": "application/json"}).json()
    assert set(figures["volumes_ml"]) == set(figures["voxels"]) == {"wt"}


@pytest.mark.parametrize("missing", MODALITIES)
def test_a_missing_modality_is_named(
    client: TestClient, files: dict[str, bytes], missing: str, detail_of: Callable[[Any, int], str]
) -> None:
    rest = {name: data for name, data in files.items() if name != missing}
    assert detail_of(client.post("/v1/segment", files=rest), 422).startswith(f"{missing} is missing")


def test_a_model_of_fewer_modalities_takes_those(
    make_package: Callable[..., Path], files: dict[str, bytes], detail_of: Callable[[Any, int], str]
) -> None:
    package = make_package(0, **{"preprocess.modalities": ("flair", "t1c")})
    watch = ModelWatch(str(package), Predictor.load, poll_s=3600, device="cpu")
    watch.refresh()
    sent = {name: files[name] for name in ("t1c", "flair")}
    with TestClient(make_api(Settings(), {"segmentation": watch}), raise_server_exceptions=False) as client:

        def refusal(files: dict[str, bytes]) -> str:
            return detail_of(client.post("/v1/segment", files=files), 422)

        answer = client.post("/v1/segment", files=sent)
        assert answer.status_code == 200, answer.text
        assert watch.served is not None
        expected = watch.served.model.predict(load_case_from_bytes(sent, modalities=sent))
        found = to_internal(_canonical(answer.content), CONVENTIONS["brats-et4"])
        np.testing.assert_array_equal(found, expected)
        assert client.get("/v1/models").json()["models"][0]["modalities"] == ["flair", "t1c"]
        assert refusal({"t1c": files["t1c"]}) == "flair is missing; send the files t1c, flair"
        assert refusal({**sent, "t2": files["t2"]}) == "the model does not take t2; send the files t1c, flair"
        assert refusal({"image": files["t1"]}) == "the model does not take image; send the files t1c, flair"


def test_an_empty_form_names_all(
    client: TestClient, files: dict[str, bytes], detail_of: Callable[[Any, int], str]
) -> None:
    answer = client.post("/v1/segment", data={"labels": "msd"}, files={"labels2": b""})
    assert "'labels2' is not known" in detail_of(answer, 422)


HOSTILE = (
    "is empty",
    "not NIfTI",
    "is truncated",
    "32767",
    "longer than",
    "NaN",
    "every voxel",
    "but t1 has",
    "5 mm away",
    "one volume",
)


@pytest.fixture(scope="module")
def hostile(make_head: Callable[[int], np.ndarray]) -> dict[str, bytes]:
    """Files that must be refused, by what is said of them."""
    good = encode_volume(make_head(9), AFFINE)
    raw = gzip.decompress(good)
    nan = make_head(9).astype(np.float32)
    nan[20, 20, 20] = np.nan
    huge = bytearray(raw[:352])
    struct.pack_into("<8h", huge, 40, 3, 32767, 32767, 32767, 1, 1, 1, 1)
    bomb = bytearray(raw[:352])
    struct.pack_into("<8h", bomb, 40, 3, 40, 44, 36, 1, 1, 1, 1)
    shifted = AFFINE.copy()
    shifted[0, 3] += 5
    return {
        "is empty": b"",
        "not NIfTI": b"MZ" + bytes(2000),
        "is truncated": good[: len(good) // 2],
        "32767": gzip.compress(bytes(huge)),
        "longer than": gzip.compress(bytes(bomb) + bytes(300 * 2**20), 1),
        "NaN": encode_volume(nan, AFFINE),
        "every voxel": encode_volume(np.zeros(SHAPE, np.int16), AFFINE),
        "but t1 has": encode_volume(make_head(9)[:, :, :30], AFFINE),
        "5 mm away": encode_volume(make_head(9), shifted),
        "one volume": encode_volume(np.stack([make_head(9)] * 2, -1), AFFINE),
    }


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_gets_its_sentence(
    client: TestClient,
    files: dict[str, bytes],
    hostile: dict[str, bytes],
    kind: str,
    detail_of: Callable[[Any, int], str],
) -> None:
    answer = client.post("/v1/segment", files={**files, "t1c": hostile[kind]})
    detail = detail_of(answer, 422)
    assert detail.startswith("t1c ")
    assert kind in detail
    assert client.post("/v1/segment", files=files).status_code == 200


def test_voxels_that_the_model_does_not_know(
    client: TestClient, detail_of: Callable[[Any, int], str], make_head: Callable[[int], np.ndarray]
) -> None:
    thick = AFFINE @ np.diag([1, 1, 3, 1])
    answer = client.post("/v1/segment", files={m: encode_volume(make_head(1), thick) for m in MODALITIES})
    assert "3.00 mm along Z but the model was trained on 1.00 mm" in detail_of(answer, 422)


def test_image_and_modalities_together(
    client: TestClient, files: dict[str, bytes], detail_of: Callable[[Any, int], str]
) -> None:
    answer = client.post("/v1/segment", files={"image": files["t1"], "t2": files["t2"]})
    assert "both image and t2" in detail_of(answer, 422)


def test_an_image_of_three_dimensions(
    client: TestClient, files: dict[str, bytes], detail_of: Callable[[Any, int], str]
) -> None:
    assert "(X, Y, Z, 4)" in detail_of(client.post("/v1/segment", files={"image": files["t1"]}), 422)


def test_fields_that_cannot_be(
    client: TestClient, files: dict[str, bytes], detail_of: Callable[[Any, int], str]
) -> None:
    twice = [*files.items(), ("t1", files["t1"])]
    assert "sent 2 times" in detail_of(client.post("/v1/segment", files=twice), 422)
    unknown = client.post("/v1/segment", files={**files, "dwi": b""})
    assert "'dwi' is not known" in detail_of(unknown, 422)
    labels = client.post("/v1/segment", files=files, data={"labels": "braats"})
    assert "'braats'; expected one of brats-et4" in detail_of(labels, 422)
    as_file = client.post("/v1/segment", files={**files, "labels": b"msd"})
    assert "labels is a file" in detail_of(as_file, 422)
    rest = {name: data for name, data in files.items() if name != "t1"}
    text = client.post("/v1/segment", files=rest, data={"t1": "here.nii"})
    assert "'t1' is text" in detail_of(text, 422)
    assert "not a whole" in detail_of(
        client.post("/v1/segment", files=files, data={"labels": "x" * 5000}), 400
    )


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
def test_a_body_that_is_no_form(
    client: TestClient, media_type: str, status: int, detail_of: Callable[[Any, int], str]
) -> None:
    answer = client.post("/v1/segment", content=b"--y\r\n\r\n{}", headers={"Content-Type": media_type})
    detail_of(answer, status)
