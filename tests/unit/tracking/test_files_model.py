"""A model's python_function: the endpoint's files out of bytes or paths, in plain MLflow, without pickle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

from glioray.cases.conventions import CONVENTIONS
from glioray.cases.labels import from_internal
from glioray.cases.layouts import discover_cases
from glioray.cases.load import load_case, load_case_from_bytes
from glioray.cases.nifti import encode_mask, encode_volume, read_volume
from glioray.config import with_settings
from glioray.engine.on_mlflow.export import save_export
from glioray.engine.on_mlflow.files_model import add_files_model
from glioray.engine.package import SPEC_FILE, WEIGHTS_FILE
from glioray.engine.portable import shipped_models
from glioray.storage import open_storage
from glioray.tasks import load_task
from glioray.tasks.segmentation.package import ModelSpec, write_package
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.segmentation.recipes import build_recipe
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.png import encode_png
from glioray.tasks.superres.uploads import encode_result, read_input

pytestmark = pytest.mark.contracts


@pytest.fixture(scope="module")
def paths(phantom_data: Path) -> dict[str, Path]:
    """The files of a case, by modality."""
    files = discover_cases(open_storage(phantom_data))[0][0]
    return {name: phantom_data / key for name, key in files.images.items()}


@pytest.fixture(scope="module")
def model(phantom_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The MLflow model folder of an untrained network, as a run logs it."""
    storage = open_storage(phantom_data)
    case = load_case(storage, discover_cases(storage)[0][0])
    torch.manual_seed(0)
    spec = ModelSpec(
        # A precision that is timed could differ between two processes.
        config=with_settings(build_recipe("unet_tiny"), {"train.precision": "fp32"}),
        out_channels=3,
        spacing_mm=case.spacing_mm,
        manifest_hash="m",
    )
    package, folder = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("model") / "model"
    write_package(package, spec, spec.build().state_dict())
    return _save_as_logged("segmentation", package, folder)


@pytest.fixture(scope="module")
def superres(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The MLflow model folder of the shipped super-resolution model, as a run logs it."""
    folder = tmp_path_factory.mktemp("superres") / "model"
    return _save_as_logged("superres", shipped_models()["starter-superres"], folder)


def _save_as_logged(task: str, package: Path, folder: Path) -> Path:
    export = load_task(task).export(package)
    save_export(export.net, export.example, folder, run_id="r")
    (folder / "glioray").mkdir()
    for name in (WEIGHTS_FILE, SPEC_FILE):
        (folder / "glioray" / name).write_bytes((package / name).read_bytes())
    assert export.files is not None
    add_files_model(folder, export.files, "glioray")
    return folder


def _expected(model: Path, paths: dict[str, Path], labels: str) -> bytes:
    """What /v1/segment answers."""
    case = load_case_from_bytes({name: path.read_bytes() for name, path in paths.items()})
    mask = Predictor.load(model / "glioray").predict(case)
    return encode_mask(from_internal(mask, CONVENTIONS[labels]), like=case.reference)


def test_bytes_and_paths_become_the_endpoints_mask(model: Path, paths: dict[str, Path]):
    loaded = mlflow.pyfunc.load_model(str(model))
    in_bytes = {name: path.read_bytes() for name, path in paths.items()}
    expected = _expected(model, paths, "brats-et4")
    texts = {name: str(path) for name, path in paths.items()}
    for given in (in_bytes, texts, pd.DataFrame([in_bytes]), [texts]):
        answer = loaded.predict(given)
        assert list(answer.columns) == ["mask"]
        assert answer["mask"].tolist() == [expected]
    assert loaded.predict(pd.DataFrame([texts, in_bytes]))["mask"].tolist() == [expected, expected]
    other = loaded.predict(texts, params={"labels": "brats-et3"})["mask"][0]
    assert other == _expected(model, paths, "brats-et3") != expected


def test_voxels_of_another_size_are_resampled_on_request(model: Path, paths: dict[str, Path]):
    loaded = mlflow.pyfunc.load_model(str(model))
    coarse = {}
    for name, path in paths.items():
        volume = read_volume(path.read_bytes(), name=name)
        coarse[name] = encode_volume(volume.array, volume.affine @ np.diag([2, 2, 2, 1]))
    with pytest.raises(Exception, match="resample=true"):
        loaded.predict(coarse)
    (mask,) = loaded.predict(coarse, params={"resample": True})["mask"]
    case = load_case_from_bytes(coarse)
    expected = Predictor.load(model / "glioray").predict(case, resample=True)
    assert mask == encode_mask(from_internal(expected, CONVENTIONS["brats-et4"]), like=case.reference)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"t1": "/nowhere.nii.gz"}, "t1 is '/nowhere.nii.gz', which cannot be read"),
        ({"t1": None}, "t1 is missing"),
        ({"t1": b"x"}, "t1"),
    ],
)
def test_what_is_no_case_is_refused_in_a_sentence(
    model: Path, paths: dict[str, Path], change: dict[str, Any], sentence: str
):
    loaded = mlflow.pyfunc.load_model(str(model))
    with pytest.raises(Exception, match=sentence):
        loaded.predict({name: str(path) for name, path in paths.items()} | change)


def test_files_become_the_image_that_the_endpoint_answers(superres: Path, paths: dict[str, Path]):
    loaded = mlflow.pyfunc.load_model(str(superres))
    resolver = SuperResolver.load(superres / "glioray")
    picture = np.zeros((40, 40), np.uint8)
    picture[8:32, 6:30] = np.arange(24, dtype=np.uint8) * 10
    for files in ({"t2": paths["t2"].read_bytes()}, {"image": encode_png(picture)}):
        answer = loaded.predict(files, params={"force": True})
        sent = read_input(files, resolver.spec)
        assert answer["image"].tolist() == [encode_result(resolver.super_resolve(sent.case), sent)[0]]
    with pytest.raises(Exception, match="no file was sent"):
        loaded.predict([{"t1": None}])


_PLAIN_PYTHON = """
import json, sys, mlflow.pyfunc
from pathlib import Path

model = mlflow.pyfunc.load_model(sys.argv[1])
import glioray
assert Path(glioray.__file__).is_relative_to(sys.argv[1]), glioray.__file__
answer = model.predict(json.loads(sys.argv[2]))
Path(sys.argv[3]).write_bytes(answer["mask"][0])
"""


def test_no_glioray_need_be_installed(model: Path, paths: dict[str, Path], tmp_path: Path):
    texts = json.dumps({name: str(path) for name, path in paths.items()})
    command = [sys.executable, "-c", _PLAIN_PYTHON, str(model), texts, str(tmp_path / "mask")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PATH": ""})
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "mask").read_bytes() == _expected(model, paths, "brats-et4")


def test_nothing_is_pickled_and_weights_are_there_once(model: Path):
    names = [path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith((".pkl", ".pth"))]
    assert [name for name in names if name.endswith(".safetensors")] == ["glioray/model.safetensors"]
