"""Lower-grade gliomas with fewer modalities go the whole way, without Ray: names to slices to figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glioray.api.data import check_modalities
from glioray.cases.conventions import CONVENTIONS
from glioray.cases.layouts import discover_cases
from glioray.cases.load import load_case
from glioray.cases.manifest import Manifest, build_manifest, check_case
from glioray.cases.notes import collection_notes
from glioray.cases.phantom import write_phantoms
from glioray.cases.phantom_lgg import write_1p19q_phantoms, write_tif_phantoms
from glioray.config import PreprocessConfig, override
from glioray.engine.collectives import Ranks
from glioray.errors import CaseError, UsageError
from glioray.slices.preprocess import preprocess
from glioray.storage import FileStorage
from glioray.tasks.segmentation.case_metrics import case_metrics
from glioray.tasks.segmentation.learner import SegmentationLearner, counts_in_case
from glioray.tasks.segmentation.package import ModelSpec
from glioray.tasks.segmentation.recipes import unet_tiny

SHAPE = (48, 48, 24)
TIF, NIFTI = ("t1", "t1c", "flair"), ("t1c", "t2")


def index(folder: Path) -> Manifest:
    storage = FileStorage(str(folder))
    cases, problems = discover_cases(storage)
    assert not problems
    return build_manifest(storage.uri, [check_case(storage, case) for case in cases])


@pytest.fixture(scope="module")
def tif_data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("tif")
    write_tif_phantoms(FileStorage(str(folder)), num_cases=2, shape=SHAPE)
    return index(folder)


@pytest.fixture(scope="module")
def nifti_data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("nifti")
    write_1p19q_phantoms(FileStorage(str(folder)), num_cases=2, shape=SHAPE)
    return index(folder)


@pytest.mark.parametrize(("data", "modalities", "depth"), [("tif_data", TIF, 24), ("nifti_data", NIFTI, 3)])
def test_from_files_to_figures(
    request: pytest.FixtureRequest, data: str, modalities: tuple[str, ...], depth: int
) -> None:
    manifest: Manifest = request.getfixturevalue(data)
    config = override(unet_tiny(), **{"preprocess.modalities": modalities, "preprocess.size": (48, 48)})
    check_modalities(manifest, config)
    stacks, known, wanted = [], {}, {}
    for entry in manifest.cases:
        assert entry.convention is not None
        case = load_case(FileStorage(manifest.data), entry.files, convention=CONVENTIONS[entry.convention])
        assert case.images.shape[3] == depth
        stacks.append(preprocess(case, config.preprocess))
        known[entry.case_id] = entry.labelled_regions
        assert stacks[-1][0].images.shape[1] == len(modalities)
        # A hand-made prediction that cuts one row off and takes ET for oedema.
        assert case.mask is not None
        found = np.where(case.mask > 0, np.uint8(3), np.uint8(0))
        found[:, : int(np.flatnonzero(found.any(axis=(0, 2)))[0]) + 1] = 0
        figures = case_metrics(case, found)
        assert list(figures) == ["wt"]
        wanted[entry.case_id] = 2 * (found > 0).sum() / ((found > 0).sum() + (case.mask > 0).sum())
        assert figures["wt"]["dice"] == pytest.approx(wanted[entry.case_id])
        assert counts_in_case(stacks[-1][0], found)[2, 3] == (found > 0).sum()
    spec = ModelSpec(
        config=config, out_channels=3, spacing_mm=stacks[0][0].spacing_mm, manifest_hash=manifest.hash
    )
    task = SegmentationLearner(config, spec, stacks, Ranks(), torch.device("cpu"), known)
    objective = {"objective", "present_dice", "false_alarms"}
    assert set(task.validate()) == {"dice_wt", "dice_mean", *objective}
    assert {name: list(dice) for name, dice in task.spec.val_cases.items()} == {
        name: ["wt"] for name in known
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"modalities": ("t2",), "percentiles": (1.0, 99.0), "brain_channel": True},
        {"clahe": 0.02, "normalize": "none"},
    ],
)
def test_slices_are_trained_on_as_they_are_predicted(nifti_data: Manifest, settings: dict[str, Any]) -> None:
    """With its mask a case is a few slices: its intensities are those that the whole volume gives them."""
    config = PreprocessConfig(**{"modalities": NIFTI, "size": (48, 48), **settings})
    storage, files = FileStorage(nifti_data.data), nifti_data.cases[0].files
    case = load_case(storage, files)
    assert case.full_volume is not None
    (cut,) = preprocess(case, config)
    (whole,) = preprocess(load_case(storage, files, with_mask=False), config, whole=True)
    there = whole.restore(whole.images.swapaxes(0, 1))[..., case.full_volume.kept]
    np.testing.assert_array_equal(cut.restore(cut.images.swapaxes(0, 1)), there)
    assert cut.mask is not None
    np.testing.assert_array_equal(cut.restore(np.asarray(cut.mask)), case.mask)


def test_a_skull_is_found_in_the_whole_head(nifti_data: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The few slices alone hold no brain that could be."""
    seen: list[tuple[int, ...]] = []

    def find(head: np.ndarray, spacing_mm: tuple[float, ...], case_id: str) -> np.ndarray:
        seen.append(head.shape)
        return head > np.median(head[head != 0])

    monkeypatch.setattr("glioray.slices.volumes.extract_brain", find)
    case = load_case(FileStorage(nifti_data.data), nifti_data.cases[0].files)
    config = PreprocessConfig(modalities=NIFTI, size=(48, 48), skull_strip=True, spacing_mm=(5.0, 5.0, 5.0))
    (stack,) = preprocess(case, config)
    assert seen == [SHAPE]
    assert 0 < np.count_nonzero(stack.images[:, 0]) < np.count_nonzero(case.images[0])


def test_a_recipe_that_wants_more_is_told_before_it_starts(
    tif_data: Manifest, nifti_data: Manifest, tmp_path: Path
) -> None:
    four = unet_tiny()
    with pytest.raises(UsageError) as error:
        check_modalities(tif_data, four)
    assert str(error.value) == (
        "2 of 2 labelled cases, TCGA_XX_9000_20000101 the first, have only t1, t1c, flair; the recipe wants t1, t1c, "
        """t2, flair; give --set 'preprocess.modalities=["t1", "t1c", "flair"]'"""
    )
    write_phantoms(FileStorage(str(tmp_path)), num_cases=1, shape=SHAPE)
    write_1p19q_phantoms(FileStorage(str(tmp_path)), num_cases=1, shape=SHAPE)
    mixed = index(tmp_path)
    with pytest.raises(UsageError, match=r"""1 of 2 .*\["t1c", "t2"\]', or leave those cases out"""):
        check_modalities(mixed, four)
    check_modalities(mixed, override(four, **{"preprocess.modalities": NIFTI}))
    # What the check lets pass by, a case does not.
    (entry, *_) = nifti_data.cases
    with pytest.raises(CaseError, match="t1"):
        preprocess(load_case(FileStorage(nifti_data.data), entry.files), four.preprocess)


def test_what_the_files_do_not_tell_is_said(tif_data: Manifest, nifti_data: Manifest, tmp_path: Path) -> None:
    write_phantoms(FileStorage(str(tmp_path)), num_cases=1, shape=SHAPE)
    usual = index(tmp_path)
    assert collection_notes(usual.cases) == []
    said = collection_notes([*usual.cases, *tif_data.cases, *nifti_data.cases[:1]])
    assert [note.partition(":")[0] for note in said] == [
        "3 of 4 cases have fewer than four modalities",
        "2 of 4 cases have no voxel size",
        "1 of 4 cases has a mask of a few slices",
        "3 of 4 cases have a mask of the whole tumour only",
    ]
    assert said[0].endswith("t1, t1c, flair and t1c, t2")


def test_masks_that_nobody_corrected_are_counted(nifti_data: Manifest) -> None:
    names = ("GlistrBoost_ManuallyCorrected", "GlistrBoost", None)
    entries = [
        replace(
            nifti_data.cases[0],
            files=replace(
                nifti_data.cases[0].files, mask=name and f"TCGA-CS-4942/TCGA-CS-4942_1997.02.22_{name}.nii.gz"
            ),
        )
        for name in names
    ]
    (note,) = [note for note in collection_notes(entries) if "GlistrBoost" in note]
    assert note.startswith("1 of 3 cases has a mask made by the program GlistrBoost and corrected by nobody")
