"""Masks that several conventions fit: every verb asks before it works, and takes the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import glioray
from glioray.api.data import open_data
from glioray.cases.manifest import load_manifest
from glioray.cases.nifti import read_volume
from glioray.config import override
from glioray.errors import UsageError
from glioray.storage import FileStorage
from glioray.tasks.segmentation.package import ModelSpec, write_package
from glioray.tasks.segmentation.recipes import unet_tiny
from small_collections import VOXELS_EACH, write_case

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture
def model(tmp_path: Path) -> str:
    config = override(unet_tiny(), **{"preprocess.size": (32, 32)})
    spec = ModelSpec(config=config, out_channels=3, spacing_mm=(1.0, 1.0, 1.0), manifest_hash="0" * 12)
    torch.manual_seed(0)
    write_package(tmp_path / "model", spec, spec.build().state_dict())
    return str(tmp_path / "model")


def test_every_verb_asks_and_takes_the_answer(tmp_path: Path, model: str):
    data = FileStorage(str(tmp_path / "data"))
    for number in range(5):
        write_case(data, f"P_{number:03}", {2, 4} if number else {2}, seed=number)
    storage = str(tmp_path / "runs")
    common = {"data": data.uri, "storage": storage}
    verbs = {
        "prepare": lambda **given: glioray.prepare(out=str(tmp_path / "manifest"), **given),
        "train": lambda **given: glioray.train(recipe="unet_tiny", **given),
        "tune": lambda **given: glioray.tune(recipe="unet_tiny", **given),
        "compare": lambda **given: glioray.compare(
            recipe="unet_tiny", nets=("recipe",), minutes_each=1.0, **given
        ),
        "evaluate": lambda **given: glioray.evaluate(model=model, **given),
        "predict": lambda **given: glioray.predict(model=model, out=str(tmp_path / "masks"), **given),
    }
    for name, verb in verbs.items():
        with pytest.raises(UsageError) as error:
            verb(**common)
        assert str(error.value) == (
            "5 of 5 masks, that of P_000 the first, hold the labels 2, 4, which fit brats-et4 (1 NCR, 2 ED, 4 ET), "
            "brats2024 (1 NCR, 2 ED, 3 ET, 4 RC) and brats-ped (1 ET, 2 NCR, 3 NCR, 4 ED); state the convention with "
            "--labels NAME (labels= in the library)"
        ), name
    assert not (tmp_path / "masks").exists()

    # What is stated is used, kept beside what else was stated of the same data, and in the manifest.
    for labels, label in (("brats2024", "rc"), ("brats-ped", "ed"), ("2=ed,4=et", "et")):
        found = open_data(data.uri, storage, labels=labels)
        assert found.entry("P_001").label_voxels[label] == VOXELS_EACH
        assert {entry.convention for entry in found.cases} == {labels}
    prepared = glioray.prepare(out=str(tmp_path / "manifest"), labels="brats-ped", **common)
    assert load_manifest(prepared.uri).entry("P_001").label_voxels["ed"] == VOXELS_EACH
    answer = glioray.evaluate(model=model, data=prepared.uri, storage=storage)
    assert answer.cases["P_001"]["wt"]["true_volume_ml"] == pytest.approx(2 * VOXELS_EACH / 1000)
    with pytest.raises(UsageError, match="as brats-ped, but labels is brats-et4"):
        glioray.evaluate(model=model, data=prepared.uri, storage=storage, labels="brats-et4")
    masks = glioray.predict(model=model, out=str(tmp_path / "masks"), labels="wt-255", **common)
    assert not masks.failed
    numbers = [np.unique(read_volume(Path(uri).read_bytes(), name=uri).array) for uri in masks.masks.values()]
    assert set(np.concatenate(numbers)) == {0, 255}
