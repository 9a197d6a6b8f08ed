"""POST /v1/superresolve without Ray, and /v1/segment of what it makes: grids, units, blends, and what is refused."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from serve.watch import ModelWatch

from glioray.cases.conventions import CONVENTIONS
from glioray.cases.labels import to_internal
from glioray.cases.load import load_case_from_bytes
from glioray.cases.nifti import encode_volume, read_volume, to_canonical
from glioray.cases.phantom import make_phantom
from glioray.config import MODALITIES
from glioray.engine.serving import NOTICE
from glioray.slices.volumes import resample_labels
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.superres.config import DegradeConfig
from glioray.tasks.superres.degrade import degrade
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.png import read_png

Watch = ModelWatch[SuperResolver]
SCALE = 4
SIDE = 12
# Stored with X and Y exchanged, and turned around.
AFFINE = np.array([[0.0, -1, 0, 30], [-1, 0, 0, 40], [0, 0, 1, -7], [0, 0, 0, 1]])


@dataclass(frozen=True)
class Study:
    """A phantom at 1 mm, and what is left of it with pixels of 4 mm; files by modality."""

    hr: dict[str, np.ndarray]
    lr: dict[str, bytes]
    lr_affine: np.ndarray


@pytest.fixture(scope="module")
def study() -> Study:
    phantom = make_phantom(0, shape=(SIDE * SCALE, SIDE * SCALE, 16), spacing_mm=1.0)
    hr = {name: image[..., 4:12] for name, image in zip(MODALITIES, phantom.images, strict=True)}
    to_hr = np.diag([SCALE, SCALE, 1.0, 1.0])
    to_hr[:2, 3] = (SCALE - 1) / 2  # the centre of the first large voxel, in small ones
    affine = AFFINE @ to_hr
    config, lr = DegradeConfig(hr_size=32, lr_size=8), {}
    for name, image in hr.items():
        slices = torch.from_numpy(image.transpose(2, 0, 1)[:, None].astype(np.float32))
        low = degrade(slices, (SIDE, SIDE), config)[:, 0].numpy().transpose(1, 2, 0)
        inside = resample_labels(image > 0, low.shape)
        lr[name] = encode_volume(np.where(inside, low.round().clip(1), 0).astype(np.int16), affine)
    return Study(hr, lr, affine)


@pytest.fixture(scope="module")
def superres(make_superres_watch: Callable[..., Watch]) -> Watch:
    return make_superres_watch()


@pytest.fixture
def client(make_client: Callable[..., TestClient], superres: Watch) -> Iterator[TestClient]:
    with make_client(superres) as client:
        yield client


def _post(client: TestClient, files: dict[str, bytes], **fields: str) -> Any:
    return client.post("/v1/superresolve", files=files, data=fields)


def _ras(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    volume = read_volume(data, name="answer")
    return to_canonical(volume.array, volume.affine)


def _centroid_mm(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    weights = array.astype(float) / array.sum()
    centre = [float((weights * axis).sum()) for axis in np.indices(array.shape)]
    return (affine @ [*centre, 1.0])[:3]


def _unzip(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name.removesuffix(".nii.gz"): archive.read(name) for name in archive.namelist()}


def test_a_volume_comes_back_on_the_finer_grid_in_its_place(client: TestClient, study: Study) -> None:
    answer = _post(client, {"t1": study.lr["t1"]})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/gzip"
    assert answer.headers["content-disposition"].endswith('superres.nii.gz"')
    assert answer.headers["x-glioray-notice"] == NOTICE
    assert "x-glioray-warning" not in answer.headers
    array, affine = _ras(answer.content)
    truth, true_affine = to_canonical(study.hr["t1"], AFFINE)
    assert array.dtype == np.int16
    assert array.shape == truth.shape
    np.testing.assert_allclose(affine, true_affine, atol=1e-5)
    # By world coordinates half a voxel off, at the most, of what was sent and of what that was made of.
    low = read_volume(study.lr["t1"], name="low")
    for other in (_centroid_mm(truth, true_affine), _centroid_mm(low.array, low.affine)):
        assert np.abs(_centroid_mm(array, affine) - other).max() < 0.5

    def agreement(dx: int, dy: int) -> float:
        return float(np.corrcoef(np.roll(array, (dx, dy), (0, 1)).ravel(), truth.ravel())[0, 1])

    shifts = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    assert max(shifts, key=lambda shift: agreement(*shift)) == (0, 0)
    assert agreement(0, 0) > 0.8


def test_several_modalities_come_as_one_archive_and_each_as_if_alone(
    client: TestClient, study: Study
) -> None:
    answer = _post(client, {name: study.lr[name] for name in ("t2", "flair")})
    assert answer.headers["content-type"] == "application/zip"
    files = _unzip(answer.content)
    assert list(files) == ["t2", "flair"]
    one = _post(client, {"flair": study.lr["flair"]})
    inside = _ras(one.content)[0] > 0
    np.testing.assert_array_equal(_ras(files["flair"])[0][inside], _ras(one.content)[0][inside])


def test_one_image_of_whatever_kind(client: TestClient, study: Study) -> None:
    named = _post(client, {"t2": study.lr["t2"]})
    nameless = _post(client, {"image": study.lr["t2"]})
    assert nameless.content == named.content
    four = np.stack([read_volume(study.lr[m], name=m).array for m in ("flair", "t1", "t1c", "t2")], axis=-1)
    joined = _post(client, {"image": encode_volume(four, study.lr_affine)})
    assert _unzip(joined.content) == _unzip(_post(client, study.lr).content)


def test_a_slice_alone_is_made_sharper_like_its_volume(client: TestClient, study: Study) -> None:
    low = read_volume(study.lr["t1"], name="t1").array[:, :, 3]
    answer = _post(client, {"t1": encode_volume(low, study.lr_affine)})
    assert answer.status_code == 200, answer.text
    array, affine = _ras(answer.content)
    assert array.shape == (SIDE * SCALE, SIDE * SCALE, 1)
    np.testing.assert_allclose(affine, to_canonical(study.hr["t1"], AFFINE)[1], atol=1e-5)
    whole = _ras(_post(client, {"t1": study.lr["t1"]}).content)[0][:, :, 3]
    assert np.corrcoef(array[..., 0].ravel(), whole.ravel())[0, 1] > 0.99


def test_blend_goes_from_one_generator_to_the_other(
    client: TestClient,
    make_client: Callable[..., TestClient],
    make_superres_watch: Callable[..., Watch],
    study: Study,
    detail_of: Callable[[Any, int], str],
) -> None:
    files = {"t1": study.lr["t1"]}
    by_blend = {blend: _post(client, files, blend=blend).content for blend in ("0", "0.5", "1")}
    assert len(set(by_blend.values())) == 3
    assert _post(client, files).content == by_blend["1"]
    for stage, blend in (("psnr", "0"), ("gan", "1")):
        with make_client(make_superres_watch(stage)) as alone:
            assert _post(alone, files).content == by_blend[blend]
            assert "blend 0.5 needs it" in detail_of(_post(alone, files, blend="0.5"), 422)


def test_size_and_scale(client: TestClient, study: Study) -> None:
    files = {"t1": study.lr["t1"]}
    by_size = _post(client, files, size="36x24")
    array, affine = _ras(by_size.content)
    assert array.shape == (24, 36, 8)  # H runs along Y
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), (2, 4 / 3, 1), atol=1e-5)
    assert "the model was trained for 4" in by_size.headers["x-glioray-warning"]
    by_scale = _post(client, files, scale="2.5")
    assert _ras(by_scale.content)[0].shape == (30, 30, 8)
    assert _post(client, files, size="48x48").content == _post(client, files).content


def test_the_plane_is_the_askers_to_choose(client: TestClient, study: Study) -> None:
    files = {"t1": study.lr["t1"]}
    assert _post(client, files, plane="axial").content == _post(client, files).content
    coronal = _post(client, files, plane="coronal", force="true")
    assert _ras(coronal.content)[0].shape == (SIDE * SCALE, SIDE, 8 * SCALE)


def test_a_description_needs_no_making(
    client: TestClient, superres: Watch, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert superres.served is not None
    monkeypatch.setattr(superres.served.model, "images", None)
    json_wanted = {"Accept": "application/json"}
    answer = client.post("/v1/superresolve", files={"t1": study.lr["t1"]}, headers=json_wanted).json()
    assert answer == {
        "model": superres.served.version,
        "scale": [4, 4],
        "lr_size": [12, 12],
        "size": [48, 48],
        "plane": "axial",
        "blend": 1,
        "fits": True,
        "warning": None,
        "notice": NOTICE,
    }
    answer = client.post(
        "/v1/superresolve",
        files={"t1": study.lr["t1"]},
        data={"scale": "2", "blend": "0"},
        headers=json_wanted,
    ).json()
    assert (answer["fits"], answer["blend"], answer["size"]) == (False, 0, [24, 24])
    assert "trained for 4" in answer["warning"]


def test_what_does_not_fit_is_told(
    client: TestClient, study: Study, detail_of: Callable[[Any, int], str]
) -> None:
    array = read_volume(study.lr["t1"], name="t1").array
    mild = {"t1": encode_volume(array, np.diag([8.0, 8, 1, 1]))}
    answer = _post(client, mild)
    assert answer.status_code == 200
    assert "has axial pixels of 8.00 x 8.00 mm" in answer.headers["x-glioray-warning"]
    sharp_already = {"t1": encode_volume(array, np.eye(4))}
    assert "at high resolution already" in detail_of(_post(client, sharp_already), 422)
    forced = _post(client, sharp_already, force="true")
    assert forced.status_code == 200
    assert "at high resolution already" in forced.headers["x-glioray-warning"]


FIELDS = (
    ({"blend": "1.5"}, "blend is '1.5'; expected a number from 0 to 1"),
    ({"blend": "nan"}, "blend is 'nan'"),
    ({"blend": "much"}, "blend is 'much'"),
    ({"scale": "0.5"}, "scale is '0.5'; expected a number from 1 to 8"),
    ({"size": "48"}, "size is '48'; expected HxW"),
    ({"size": "9999x48"}, "each up to 2048"),
    ({"size": "8x8"}, "expected 1 to 8 times as much"),
    ({"size": "48x48", "scale": "4"}, "both scale and size"),
    ({"plane": "oblique"}, "expected one of axial, coronal, sagittal"),
    ({"force": "yes"}, "expected one of true, false"),
    ({"labels": "msd"}, "'labels' is not known"),
)


@pytest.mark.parametrize(("fields", "said"), FIELDS, ids=[str(number) for number in range(len(FIELDS))])
def test_fields_that_cannot_be(
    client: TestClient,
    study: Study,
    fields: dict[str, str],
    said: str,
    detail_of: Callable[[Any, int], str],
) -> None:
    assert said in detail_of(_post(client, {"t1": study.lr["t1"]}, **fields), 422)


def test_files_that_cannot_be(
    client: TestClient,
    make_client: Callable[..., TestClient],
    make_superres_watch: Callable[..., Watch],
    study: Study,
    detail_of: Callable[[Any, int], str],
) -> None:
    assert "both image and t1" in detail_of(
        _post(client, {"image": study.lr["t1"], "t1": study.lr["t1"]}), 422
    )
    assert "no file was sent" in detail_of(client.post("/v1/superresolve", files={"blend": (None, "1")}), 422)
    assert detail_of(_post(client, {"image": b"GIF89a" + bytes(100)}), 422).startswith("image is not NIfTI")
    assert detail_of(_post(client, {"flair": study.lr["flair"][:200]}), 422).startswith("flair ")
    large = encode_volume(np.pad(np.ones((300, 300, 1), np.int16), 10), np.diag([4.0, 4, 1, 1]))
    assert "at most 2097152 pixels" in detail_of(_post(client, {"t1": large}, scale="8"), 422)
    with make_client(make_superres_watch("gan", channels="joint")) as joint:
        refused = detail_of(_post(joint, {"t1": study.lr["t1"]}), 422)
        assert refused.startswith("t1c, t2, flair are missing")
        assert "takes t1, t1c, t2, flair together" in detail_of(_post(joint, {"image": _png(_disc())}), 422)
        assert list(_unzip(_post(joint, study.lr).content)) == list(MODALITIES)


def _disc(dtype: type = np.uint8) -> np.ndarray:
    """(20, 28) a disc off the middle, brighter to the right; 0 around it."""
    y, x = np.mgrid[:20, :28]
    inside = (y - 8) ** 2 + (x - 17) ** 2 < 36
    return np.where(inside, (100 + 5 * x) * (257 if dtype == np.uint16 else 1), 0).astype(dtype)


def _png(pixels: np.ndarray, **options: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def _pixels(data: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_png_comes_back_in_its_depth_and_place(client: TestClient, dtype: type) -> None:
    picture = _disc(dtype)
    answer = _post(client, {"image": _png(picture)})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    pixels = _pixels(answer.content)
    assert pixels.shape == (80, 112)
    assert pixels.dtype == dtype
    for axis in (0, 1):
        low, high = (
            float((np.indices(p.shape)[axis] * p.astype(float)).sum() / p.sum()) for p in (picture, pixels)
        )
        assert (low + 0.5) * SCALE - 0.5 == pytest.approx(high, abs=0.5)
    assert pixels.max() == pytest.approx(picture.max(), rel=0.05)
    assert pixels[:4].max() == 0
    if dtype == np.uint16:
        eight = _pixels(_post(client, {"image": _png(_disc())}).content)
        np.testing.assert_allclose(pixels / 257, eight, atol=0.51)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_png_is_turned_as_its_exif_orientation_says(dtype: type) -> None:
    from PIL import Image, ImageOps

    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = _png(_disc(dtype), exif=exif)
        with Image.open(io.BytesIO(data)) as picture:
            shown = np.asarray(ImageOps.exif_transpose(picture))
        read = read_png(data, name="image", max_pixels=2**20)
        assert np.array_equal(read, shown)
        assert read.dtype == dtype
        assert (read.shape == (28, 20)) == (orientation > 4)


def test_a_picture_of_another_kind_is_named(client: TestClient, detail_of: Callable[[Any, int], str]) -> None:
    from PIL import Image

    for kind in ("JPEG", "GIF", "BMP", "TIFF", "WebP"):
        buffer = io.BytesIO()
        Image.fromarray(_disc()).save(buffer, kind)
        detail = detail_of(_post(client, {"image": buffer.getvalue()}), 422)
        assert detail == (
            f"image is not NIfTI or PNG: it is a {kind} picture; export the original again as NIfTI, or as a grey PNG "
            "of 8 or 16 bits"
        )
    detail = detail_of(_post(client, {"t1": _png(_disc())}), 422)
    assert detail.startswith("t1 is not NIfTI: it is a PNG picture; ")


def _bomb() -> bytes:
    """One pixel more than is read, in a header; the data are those of a small picture."""
    data = bytearray(_png(_disc()))
    data[16:24] = (2**16).to_bytes(4, "big") * 2
    return bytes(data)


def _hostile() -> dict[str, bytes]:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("note", "x" * 2**24, zip=True)
    grey, rgb = _disc(), np.stack([_disc()] * 3, -1)
    palette, animated = io.BytesIO(), io.BytesIO()
    Image.fromarray(grey).convert("P").save(palette, "PNG")
    frames = [Image.fromarray(np.roll(grey, shift)) for shift in range(3)]
    frames[0].save(animated, "PNG", save_all=True, append_images=frames[1:])
    good = _png(np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8))
    return {
        "holds RGB": _png(rgb),
        "holds a palette": palette.getvalue(),
        "holds grey with transparency": _png(np.stack([grey, grey], -1)),
        "is animated": animated.getvalue(),
        "65536 x 65536 pixels": _bomb(),
        "holds 1 bits a pixel": _png(grey > 0),
        "ends inside its header": good[:20],
        "is a damaged PNG": good[: len(good) // 2],
        "Decompressed data too large": _png(grey, pnginfo=text),
        "every pixel is 0": _png(np.zeros((20, 28), np.uint8)),
    }


@pytest.mark.parametrize("said", _hostile())
def test_a_hostile_png_gets_its_sentence(
    client: TestClient, said: str, detail_of: Callable[[Any, int], str]
) -> None:
    detail = detail_of(_post(client, {"image": _hostile()[said]}), 422)
    assert detail.startswith("image ")
    assert said in detail
    assert _post(client, {"image": _png(_disc())}).status_code == 200


def test_super_resolved_and_segmented_in_one_call_is_both_in_turn(
    client: TestClient, study: Study, watch: ModelWatch[Predictor], superres: Watch
) -> None:
    assert client.post("/v1/segment", files=study.lr).status_code == 422  # 4 mm are not what it knows
    one = client.post("/v1/segment", files=study.lr, data={"superresolve": "true", "blend": "0.5"})
    assert one.status_code == 200, one.text
    assert watch.served is not None
    assert superres.served is not None
    assert one.headers["x-glioray-model"] == watch.served.version
    assert one.headers["x-glioray-superres-model"] == superres.served.version
    fine = _unzip(_post(client, study.lr, blend="0.5").content)
    two = client.post("/v1/segment", files=fine)
    mask, affine = _ras(one.content)
    np.testing.assert_array_equal(mask, _ras(two.content)[0])
    np.testing.assert_allclose(affine, _ras(fine["t1"])[1])
    assert len(np.unique(mask)) > 1

    fields = {"superresolve": "true", "blend": "0.5", "grid": "input"}
    brought_back = read_volume(client.post("/v1/segment", files=study.lr, data=fields).content, name="mask")
    assert brought_back.shape == (SIDE, SIDE, 8)
    np.testing.assert_allclose(brought_back.affine, study.lr_affine)
    coarse = to_canonical(brought_back.array, brought_back.affine)[0]
    np.testing.assert_array_equal(coarse, resample_labels(mask, coarse.shape))

    halfway = {"superresolve": "true", "scale": "2"}  # to 2 mm, which are still not what it knows
    assert client.post("/v1/segment", files=study.lr, data=halfway).status_code == 422
    third = client.post("/v1/segment", files=study.lr, data={**halfway, "resample": "true"})
    assert third.status_code == 200, third.text
    assert "was resampled from voxels of 2.00 x 2.00 x 1.00 mm" in third.headers["x-glioray-warning"]
    assert read_volume(third.content, name="mask").shape == (2 * SIDE, 2 * SIDE, 8)

    figures = {
        grid: client.post(
            "/v1/segment",
            files=study.lr,
            data={**fields, "grid": grid},
            headers={"Accept": "application/json"},
        ).json()
        for grid in ("fine", "input")
    }
    internal = to_internal(mask, CONVENTIONS["brats-et4"])
    assert figures["fine"]["voxels"]["wt"] == np.isin(internal, (1, 2, 3)).sum()
    assert figures["fine"]["spacing_mm"] == pytest.approx([1, 1, 1])
    assert figures["input"]["spacing_mm"] == pytest.approx([4, 4, 1])
    assert figures["input"]["superres"] == superres.served.version


def test_options_mean_nothing_without_it(
    client: TestClient, study: Study, detail_of: Callable[[Any, int], str]
) -> None:
    for field, value in (("blend", "0.5"), ("grid", "input")):
        answer = client.post("/v1/segment", files=study.lr, data={field: value})
        assert (
            detail_of(answer, 422)
            == f"{field} was sent without superresolve; send superresolve=true beside it"
        )


def test_without_a_super_resolution_model_the_rest_is_served(
    make_client: Callable[..., TestClient],
    files: dict[str, bytes],
    study: Study,
    detail_of: Callable[[Any, int], str],
) -> None:
    missing = ModelWatch("models:/sharp@champion", SuperResolver.load, poll_s=3600)
    client = make_client(missing)  # without its lifespan: it is not looked for
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["superres"] == "the model is being loaded; try again in some seconds"
    assert client.post("/v1/segment", files=files).status_code == 200
    missing.reason = (
        "no model is served, because there is no 'models:/sharp@champion'; promote a version of it"
    )
    refused = [
        _post(client, {"t1": study.lr["t1"]}),
        client.post("/v1/segment", files=files, data={"superresolve": "true"}),
    ]
    for answer in refused:
        assert detail_of(answer, 503) == missing.reason
        assert int(answer.headers["retry-after"]) > 0
    assert client.get("/readyz").json()["superres"] == missing.reason
    off = make_client(None)
    assert "superres" not in off.get("/readyz").json()
    assert "start it with --superres" in detail_of(_post(off, {"t1": study.lr["t1"]}), 503)


def test_both_models_are_told_of(client: TestClient, superres: Watch) -> None:
    assert superres.served is not None
    segmenter, model = client.get("/v1/models").json()["models"]
    assert (segmenter["task"], model["task"]) == ("segmentation", "super-resolution")
    assert model["version"] == superres.served.version
    assert (model["recipe"], model["channels"], model["scale"]) == ("mri_tiny", "each", 4)
    assert model["generators"] == ["psnr", "gan"]
    assert (model["collapse"], model["metrics"]) == ("healthy", {"quality": 0.25})
    assert model["degradation"]["name"] == "bicubic_aa"
    assert client.get("/readyz").json()["superres"] == f"serving {superres.served.version}"
    json.dumps(model, allow_nan=False)


def test_both_routes_share_the_places(
    make_client: Callable[..., TestClient],
    make_superres_watch: Callable[..., Watch],
    files: dict[str, bytes],
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
    detail_of: Callable[[Any, int], str],
) -> None:
    superres = make_superres_watch()
    assert superres.served is not None
    resolver = superres.served.model
    entered, go_on = threading.Event(), threading.Event()
    super_resolve = resolver.super_resolve

    def slow(*args: Any, **options: Any) -> Any:
        entered.set()
        assert go_on.wait(60)
        return super_resolve(*args, **options)

    monkeypatch.setattr(resolver, "super_resolve", slow)
    answers: list[Any] = []
    with make_client(superres, max_pending=1) as client:
        first = threading.Thread(target=lambda: answers.append(_post(client, {"t1": study.lr["t1"]})))
        first.start()
        assert entered.wait(60)
        refused = client.post("/v1/segment", files=files)
        go_on.set()
        first.join(60)
        assert client.post("/v1/segment", files=files).status_code == 200
    assert "the queue is full (cases: 1); retry in 5 s" in detail_of(refused, 429)
    assert answers[0].status_code == 200


def test_what_is_served_is_what_the_library_makes(client: TestClient, superres: Watch, study: Study) -> None:
    assert superres.served is not None
    case = load_case_from_bytes({"t1": study.lr["t1"]}, modalities=["t1"])
    expected = superres.served.model.super_resolve(case, blend=0.25)
    array, affine = _ras(_post(client, {"t1": study.lr["t1"]}, blend="0.25").content)
    np.testing.assert_array_equal(array, expected.images[0])
    np.testing.assert_allclose(affine, expected.affine)
