"""The laboratory as a user runs it, on lower-grade gliomas in tif slices: compared, joined, judged, used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from glioray.cases.phantom_lgg import write_tif_phantoms
from glioray.errors import UsageError
from glioray.storage import open_storage

SHAPE = (64, 64, 24)
RunHere = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients to learn from in `known`, and one of other seed in `new`."""
    folder = tmp_path_factory.mktemp("lgg")
    write_tif_phantoms(open_storage(folder / "known"), num_cases=4, shape=SHAPE)
    *_, stranger = write_tif_phantoms(open_storage(folder / "others"), num_cases=5, seed=1, shape=SHAPE)
    (folder / "new").mkdir()
    shutil.move(folder / "others" / stranger, folder / "new" / stranger)
    return folder


def test_networks_are_compared_joined_judged_and_used(
    run_here: RunHere, collection: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    storage = tmp_path / "runs"
    caplog.set_level("INFO", logger="glioray")

    def run(job: str, *flags: str) -> tuple[dict[str, Any], str]:
        caplog.clear()
        answer = run_here(job, "--storage", str(storage), *flags)
        assert answer.pop("exit_code", 0) == 0
        return answer, caplog.text

    contest = [
        "compare", "--data", str(collection / "known"), "--run-name", "cup", "--recipe", "unet_tiny",
        "--set", 'preprocess.modalities=["t1", "t1c", "flair"]', "--nets", "recipe,fcn:width=4,fc=false",
        "--slices-each", "32", "--folds", "2", "--concurrent", "1",
    ]  # fmt: skip
    ranked, log = run(*contest)
    assert "4 of 4 cases have a mask of the whole tumour only" in log
    assert ranked["failed"] == []
    assert sorted(row["label"] for row in ranked["standings"]) == ["fcn:width=4,fc=false", "recipe"]
    for row in ranked["standings"]:
        assert set(row["dice"]) == {"mean", "wt"}
        assert set(row["case_dice"]) == {f"TCGA_XX_{number}_20000101" for number in range(9000, 9004)}
        assert (row["num_runs"], row["num_slices"]) == (2, 32)
    page, table = ((storage / "cup" / f"standings.{kind}").read_text() for kind in ("md", "csv"))
    assert ranked["reading"] in page
    assert "dice_wt,dice_wt_low,dice_wt_high" in table
    assert "dice_tc" not in table
    again, log = run(*contest)
    assert "4 of 4 runs are there already" in log
    assert again == ranked

    folds = sorted(path.parent for path in (storage / "cup" / "runs").glob("recipe-*/play.json"))
    assert len(folds) == 2
    (spec,) = (json.loads(path.read_text()) for path in folds[0].glob("checkpoints/*/model.json"))
    assert spec["regions"] == ["wt"]
    joined, _ = run("ensemble", "--model", str(folds[0]), "--model", str(folds[1]), "--run-name", "both")
    assert (joined["model"], joined["num_members"]) == ("models:/glioray-unet/1", 2)
    use = ["--model", joined["model"], "--data", str(collection / "new"), "--out"]

    judged, _ = run("evaluate", *use, str(tmp_path / "judged"))
    ((case_id, figures),) = judged["cases"].items()
    assert case_id == "TCGA_XX_9004_20000101"
    assert set(figures) == set(judged["mean"]) == {"wt"}
    assert set(judged["slicewise"]) == {"background", "wt", "mean"}
    assert "| WT | 1 |" in (tmp_path / "judged" / "evaluation.md").read_text()

    predicted, _ = run("predict", *use, str(tmp_path / "masks"), "--uncertainty")
    assert predicted["failed"] == {}
    mask, doubt = (
        nib.load(tmp_path / "masks" / f"{case_id}_{kind}.nii.gz") for kind in ("seg", "uncertainty")
    )
    assert mask.shape == doubt.shape == SHAPE
    assert np.array_equal(mask.affine, np.diag([-1, -1, 1, 1]))
    assert np.array_equal(doubt.affine, mask.affine)
    voxels, doubts = np.asarray(mask.dataobj), np.asarray(doubt.dataobj)
    assert set(np.unique(voxels)) == {0, 255}
    assert doubts.dtype == np.float32
    assert 0 <= doubts.min() < doubts.max() <= 1
    # The mask that is written is the one that was judged, picture for picture.
    pictures = [
        collection / "new" / case_id / f"{case_id}_{number}_mask.tif" for number in range(1, SHAPE[2] + 1)
    ]
    truth = np.stack([np.asarray(Image.open(picture)) for picture in pictures]).transpose(2, 1, 0) == 255
    found = voxels == 255
    assert figures["wt"]["dice"] == pytest.approx(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def test_modalities_that_are_not_there_are_named(run_here: RunHere, collection: Path, tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        run_here(
            "train_unet", "--data", str(collection / "known"), "--storage", str(tmp_path / "runs"),
            "--recipe", "unet_tiny", "--run-name", "none",
        )  # fmt: skip
    assert str(caught.value) == (
        "4 of 4 labelled cases, TCGA_XX_9000_20000101 the first, have only t1, t1c, flair; the recipe wants "
        """t1, t1c, t2, flair; give --set 'preprocess.modalities=["t1", "t1c", "flair"]'"""
    )
    assert not (tmp_path / "runs" / "none").exists()
