"""The library as the documentation's first page uses it: a real case, a short training, a mask, a score."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import glioray
from glioray.errors import DataError

CASES = ("BraTS2021_00000", "BraTS2021_00002", "BraTS2021_00005", "BraTS2021_01476")


@pytest.fixture
def data(real_data: Path, tmp_path: Path) -> Path:
    """A folder of four real cases."""
    folder = tmp_path / "data"
    folder.mkdir()
    for case_id in CASES:
        (folder / case_id).symlink_to(real_data / "brats2021" / case_id)
    return folder


def test_the_first_page(
    data: Path,
    real_data: Path,
    tmp_path: Path,
    ray_local: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    # Slow because real cases are read and a network learns from them: the whole way, once.
    monkeypatch.setenv("GLIORAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("GLIORAY_STORAGE", str(tmp_path / "runs"))

    prepared = glioray.prepare(data=data, out=tmp_path / "manifest", ratios=(0.75, 0.25, 0.0))
    assert prepared.problems == ()
    assert {name: len(ids) for name, ids in prepared.manifest.splits.items()} == {
        "train": 3,
        "val": 1,
        "test": 0,
    }

    result = glioray.train(
        data=prepared.uri,
        recipe="unet_tiny",
        minutes=0.7,
        run_name="first",
        set={"train.max_epochs": 1000, "train.num_validations": 2, "preprocess.size": [192, 160]},
    )
    assert result.model_uri == result.storage == str(tmp_path / "runs" / "first")
    assert not result.is_failed
    assert result.metrics["dice_wt"] > 0.3
    assert result.answer["run_name"] == "first"

    case = glioray.load_case(real_data / "brats2021" / "BraTS2021_01485")
    mask = result.model.predict(case)
    assert (mask.shape, mask.dtype) == (case.images.shape[1:], np.uint8)
    metrics = result.model.evaluate(case)
    assert metrics["wt"]["dice"] > 0.2

    folder = result.model.save(tmp_path / "saved")
    again = glioray.load_model(folder)
    assert np.array_equal(again.predict(case), mask)
    # The same voxels as arrays in memory, without a file.
    arrays = dict(zip(case.modalities, case.images, strict=True))
    assert np.array_equal(again.predict(glioray.load_case(arrays, affine=case.affine)), mask)

    evaluated = glioray.evaluate(model=folder, data=prepared.uri, out=tmp_path / "results")
    (held_out,) = prepared.manifest.splits["val"]
    assert set(evaluated.cases) == {held_out}
    alone = again.evaluate(glioray.load_case(data, case_id=held_out))
    assert evaluated.cases[held_out]["wt"]["dice"] == pytest.approx(alone["wt"]["dice"])
    assert evaluated.failed == {}
    assert (tmp_path / "results" / "evaluation.md").is_file()
    with pytest.raises(DataError, match="is new to every model"):
        glioray.evaluate(model=folder, data=data / prepared.manifest.splits["train"][0])

    predicted = glioray.predict(
        model=folder, data=real_data / "brats2021" / "BraTS2021_01485", out=tmp_path / "masks"
    )
    written = np.asarray(nib.load(predicted.masks["BraTS2021_01485"]).dataobj)
    assert [np.count_nonzero(written == value) for value in (1, 2, 4)] == [
        np.count_nonzero(mask == label) for label in (1, 2, 3)
    ]
    assert capfd.readouterr().out == ""
