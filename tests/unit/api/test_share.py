"""Models that travel without a registry: as a folder, a zip file or behind a web address, with a card and a hash."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import glioray
from glioray.api import share as share_module
from glioray.api.requests import ShareRequest
from glioray.config import NetConfig
from glioray.engine import portable
from glioray.errors import GliorayError, ModelError, StorageError, UsageError
from glioray.tasks.segmentation.package import ModelSpec, write_package
from glioray.tasks.segmentation.recipes import unet_tiny

_ABOUT = "## Data\n\nTen phantoms, by nobody.\n"
_PAGE = "# models:/x/1 on unseen cases\n\n| region | Dice |\n|---|--:|\n| WT | 0.75 |\n"


@pytest.fixture(autouse=True)
def _storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLIORAY_STORAGE", str(tmp_path / "runs"))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    config = unet_tiny().replace(net=NetConfig(options={"width": 2, "depth": 2}))
    spec = ModelSpec(
        config=config,
        out_channels=3,
        spacing_mm=(1.0, 1.0, 2.0),
        manifest_hash="m",
        train_patients=("p1", "p2"),
        metrics={"dice_wt": 0.5},
    )
    write_package(tmp_path / "unet", spec, spec.build().state_dict())
    return tmp_path / "unet"


@pytest.fixture
def shared(package: Path, tmp_path: Path) -> share_module.ShareResult:
    (tmp_path / "about.md").write_text(_ABOUT)
    (tmp_path / "evaluation.md").write_text(_PAGE)
    return glioray.share(
        model=package,
        out=tmp_path / "out" / "unet.zip",
        title="A small model",
        licence="cc-by-4.0",
        about=tmp_path / "about.md",
        evaluation=(tmp_path / "evaluation.md",),
    )


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server of `tmp_path`."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _weights(uri: object) -> list[np.ndarray]:
    model = glioray.load_model(str(uri), device="cpu")
    return [tensor.numpy() for tensor in model._model.net.state_dict().values()]


def test_a_shared_model_is_the_model_from_every_place(package: Path, tmp_path: Path, web: str, shared):
    folder = glioray.share(model=package, out=tmp_path / "folder")
    assert folder.sha256 == shared.sha256
    expected = _weights(package)
    places = [shared.uri, shared.files[0], folder.uri, tmp_path / "folder", f"file://{shared.uri}"]
    for uri in [*places, f"{web}/out/unet.zip#sha256={shared.sha256}"]:
        found = _weights(uri)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)), uri
    again = glioray.share(model=shared.uri, out=tmp_path / "again.zip", title="A small model")
    assert again.sha256 == shared.sha256


def test_the_hash_can_be_computed_without_glioray_and_the_zip_is_reproducible(
    package: Path, tmp_path, shared
):
    content = (package / "model.json").read_bytes() + (package / "model.safetensors").read_bytes()
    assert shared.sha256 == hashlib.sha256(content).hexdigest()
    same = [glioray.share(model=package, out=tmp_path / name) for name in ("1.zip", "2.zip")]
    assert Path(same[0].files[0]).read_bytes() == Path(same[1].files[0]).read_bytes()


def test_the_card(package: Path, shared):
    with zipfile.ZipFile(shared.files[0]) as archive:
        assert sorted(archive.namelist()) == ["README.md", "model.json", "model.safetensors"]
        card = archive.read("README.md").decode()
    assert card == shared.card
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    for text in (
        "\n# A small model\n",
        "Research use only",
        "\n## Data\n\nTen phantoms, by nobody.\n",
        "\n## models:/x/1 on unseen cases\n\n| region | Dice |\n",
        "| recipe | unet_tiny |",
        "1 x 1 x 2 mm",
        "2 patients",
        "| dice_wt | 0.5 |",
        f"`{shared.sha256}`",
    ):
        assert text in card, text
    plain = share_module.preview(ShareRequest(model=str(package), out="out"))["card"]
    assert "not stated; ask the owner" in plain
    assert "# unet_tiny" in plain


def test_half_the_size(package: Path, tmp_path: Path):
    half = glioray.share(model=package, out=tmp_path / "half", half=True)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "half", package)]
    assert sizes[0] < 0.8 * sizes[1]  # the rest is the header of a network this small
    for found, expected in zip(_weights(half.uri), _weights(package), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)


def test_what_is_refused(package: Path, tmp_path: Path, web: str, shared):
    wrong = "0" * 64
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04 and no more")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        for name in ("a/model.json", "b/model.json"):
            archive.writestr(name, "{}")
    damaged = bytearray(Path(shared.files[0]).read_bytes())
    start = damaged.index(b"model.json") + len("model.json")
    damaged[start : start + 64] = bytes([255]) * 64
    (tmp_path / "damaged.zip").write_bytes(damaged)
    address = f"{web}/out/unet.zip"
    cases: list[tuple[str, type[GliorayError], str]] = [
        (f"{shared.files[0]}#sha256={wrong}", ModelError, f"has the SHA-256 {shared.sha256}, but {wrong}"),
        (f"{package}#sha256={wrong}", ModelError, "ask its owner, or fetch it again"),
        (f"{package}#sha256=12", UsageError, "is '12'; expected the 64 hexadecimal digits"),
        (address, UsageError, f"has no hash; give '{address}#sha256=HEX'"),
        (f"{web}/none.zip#sha256={wrong}", StorageError, "cannot download"),
        (f"{web}/no.zip#sha256={wrong}", ModelError, "is not a zip file of a model"),
        (str(tmp_path / "no.zip"), ModelError, "is not a zip file of a model"),
        (str(tmp_path / "damaged.zip"), ModelError, "is not a zip file of a model"),
        (str(tmp_path / "other.zip"), ModelError, "holds 0 files model.json; expected one"),
        (str(tmp_path / "twice.zip"), ModelError, "holds 2 files model.json; expected one"),
        (str(tmp_path / "absent.zip"), ModelError, "there is no file"),
    ]
    for uri, kind, sentence in cases:
        with pytest.raises(kind) as caught:
            glioray.load_model(uri)
        assert sentence in str(caught.value), uri
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no place for the results"):
        glioray.share(model=package)
    (tmp_path / "picture.md").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UsageError, match=r"--about is '.*', which is not text"):
        glioray.share(model=package, out=tmp_path / "x", about=tmp_path / "picture.md")


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(portable, "_MAX_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.json", bytes(2 << 20))
        archive.writestr("model.safetensors", b"")
    with pytest.raises(ModelError, match=r"model\.json in '.*' is larger than"):
        glioray.load_model(tmp_path / "bomb.zip")
