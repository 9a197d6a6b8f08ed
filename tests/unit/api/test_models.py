"""A model that the library loads: it predicts, is evaluated and is saved, whatever its task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import glioray
from glioray.cases.phantom import write_phantoms
from glioray.config import NetConfig, with_settings
from glioray.errors import CaseError, ModelError, UsageError
from glioray.storage import open_storage
from glioray.tasks.segmentation.package import ModelSpec, write_package
from glioray.tasks.segmentation.recipes import unet_tiny
from glioray.tasks.superres.package import SuperResSpec, write_superres
from glioray.tasks.superres.recipes import mri_tiny


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> glioray.Case:
    folder = tmp_path_factory.mktemp("data")
    write_phantoms(open_storage(folder), num_cases=1, shape=(48, 48, 24))
    return glioray.load_case(folder)


@pytest.fixture
def segmenter(tmp_path: Path, case: glioray.Case) -> Path:
    config = unet_tiny().replace(net=NetConfig(options={"width": 2, "depth": 2}))
    spec = ModelSpec(config=config, out_channels=3, spacing_mm=case.spacing_mm, manifest_hash="m")
    write_package(tmp_path / "unet", spec, spec.build().state_dict())
    return tmp_path / "unet"


def test_a_segmentation_model(segmenter: Path, case: glioray.Case, tmp_path: Path):
    model = glioray.load_model(segmenter, device="cpu")
    assert (model.task, model.uri) == ("segmentation", str(segmenter))
    assert "recipe unet_tiny" in repr(model)
    mask = model.predict(case)
    assert (mask.shape, mask.dtype) == (case.images.shape[1:], np.uint8)
    metrics = model.evaluate(case)
    assert set(metrics) >= {"wt", "tc", "et"}
    assert 0 <= metrics["wt"]["dice"] <= 1
    with pytest.raises(UsageError, match="metrics is 'brats2022'; expected one of brats2023, brats2026"):
        model.evaluate(case, metrics="brats2022")
    fine = glioray.load_case(
        dict(zip(case.modalities, case.images, strict=True)), spacing_mm=(1.0, 1.0, 1.0), mask=case.mask
    )
    for work in (model.predict, model.evaluate):
        with pytest.raises(ModelError, match="send resample=true"):
            work(fine)
    assert model.predict(fine, resample=True).shape == case.images.shape[1:]
    assert set(model.evaluate(fine, resample=True)) == set(metrics)
    again = glioray.load_model(model.save(tmp_path / "saved"), device="cpu")
    assert again.spec == model.spec
    assert np.array_equal(again.predict(case), mask)
    unlabelled = glioray.load_case(dict(zip(case.modalities, case.images, strict=True)), affine=case.affine)
    assert np.array_equal(model.predict(unlabelled), mask)
    with pytest.raises(CaseError, match="has no mask"):
        model.evaluate(unlabelled)


@pytest.mark.contracts
def test_a_super_resolution_model(case: glioray.Case, tmp_path: Path):
    config = with_settings(mri_tiny(), {"collapse.judge": "none"})
    spec = SuperResSpec(config=config, spacing_mm=(1.0, 1.0, 1.0), manifest_hash="m")
    write_superres(tmp_path / "sr", spec, {"psnr": spec.build().state_dict()})
    model = glioray.load_model(str(tmp_path / "sr"), device="cpu")
    assert model.task == "superres"
    finer = model.predict(case)
    assert isinstance(finer, glioray.Case)
    assert finer.images[0].size > case.images[0].size
    assert "psnr" in model.evaluate(case)["mean"]
    with pytest.raises(UsageError, match="'brats2026', which evaluates masks, but the model makes images"):
        model.evaluate(case, metrics="brats2026")
    for work in (model.predict, model.evaluate):
        with pytest.raises(
            UsageError, match="resample is for models that make masks, but the model makes images"
        ):
            work(case, resample=True)


def test_a_folder_that_holds_no_model(tmp_path: Path):
    with pytest.raises(ModelError, match=r"holds neither model.json nor latest.json"):
        glioray.load_model(tmp_path)
