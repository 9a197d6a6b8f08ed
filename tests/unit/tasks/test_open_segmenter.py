"""Which model labels the images of another one in an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from glioray.engine.task import ModelPackage
from glioray.errors import ModelError, UsageError
from glioray.tasks import open_package, open_segmenter
from glioray.tasks.segmentation.package import write_package
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.package import write_superres


@pytest.fixture
def labels(make_predictor: Callable[..., Predictor], tmp_path: Path) -> ModelPackage:
    predictor = make_predictor()
    write_package(tmp_path / "labels", predictor.spec, predictor.net.state_dict())
    return open_package(str(tmp_path / "labels"), tmp_path / "opened_labels")


@pytest.fixture
def images(make_resolver: Callable[..., SuperResolver], tmp_path: Path) -> ModelPackage:
    resolver = make_resolver()
    weights = {stage: net.state_dict() for stage, net in resolver.nets.items()}
    write_superres(tmp_path / "images", resolver.spec, weights)
    return open_package(str(tmp_path / "images"), tmp_path / "opened_images")


def test_a_segmenter_labels_images_only(labels: ModelPackage, images: ModelPackage, tmp_path: Path):
    found = open_segmenter(images, labels.uri, tmp_path / "1")
    assert found is not None
    assert (found.task.name, found.uri, found.spec) == ("segmentation", labels.uri, labels.spec)
    assert open_segmenter(images, "none", tmp_path / "2") is None
    assert open_segmenter(labels, None, tmp_path / "3") is None
    with pytest.raises(UsageError, match=r"--segmenter evaluates models that make images, .* leave it out"):
        open_segmenter(labels, labels.uri, tmp_path / "4")
    with pytest.raises(ModelError, match="belongs to the task superres; expected one of segmentation"):
        open_segmenter(images, images.uri, tmp_path / "5")


def test_by_default_the_champion_labels(
    labels: ModelPackage, images: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    champions: dict[str, str] = {}
    monkeypatch.setattr(
        "glioray.engine.on_mlflow.registry.champion", lambda name, tracking_uri=None: champions.get(name)
    )
    monkeypatch.setattr(
        "glioray.engine.on_mlflow.registry.resolve_version", lambda uri, tracking_uri=None: uri
    )
    monkeypatch.setattr(
        "glioray.engine.on_mlflow.registry.fetch_package",
        lambda uri, folder, tracking_uri=None: labels.folder,
    )
    assert open_segmenter(images, None, tmp_path) is None
    champions["glioray-unet"] = "3"
    found = open_segmenter(images, None, tmp_path)
    assert found is not None
    assert found.uri == "models:/glioray-unet/3"
