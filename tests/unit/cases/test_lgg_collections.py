"""TCIA's collections of lower-grade gliomas: names, preferred masks and unlabelled slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glioray.cases.casefiles import CaseFiles, Problem
from glioray.cases.conventions import CONVENTIONS
from glioray.cases.labels import from_internal
from glioray.cases.layouts import discover_cases
from glioray.cases.load import load_case, load_case_from_bytes
from glioray.cases.manifest import check_case
from glioray.cases.nifti import encode_mask, encode_volume, read_volume, to_canonical
from glioray.cases.phantom_lgg import write_1p19q_phantoms
from glioray.errors import CaseError
from glioray.storage import FileStorage

# Slices 5 mm apart, tilted; x towards the left.
AXIAL = np.array([[-0.9, 0.0, 0.1, 40], [0.0, 0.9, 0.2, -50], [0.0, 0.02, 5.0, -60], [0, 0, 0, 1.0]])
SHAPE = (20, 18, 9)


def discover(root: Path, *keys: str) -> tuple[list[CaseFiles], list[Problem]]:
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(b"")
    return discover_cases(FileStorage(str(root)))


def tcga(patient: str, date: str, *names: str, folder: str | None = None) -> list[str]:
    return [f"{patient if folder is None else folder}/{patient}_{date}_{name}.nii.gz" for name in names]


IMAGES = ("flair", "t1", "t1Gd", "t2")


@pytest.mark.parametrize("patient", ["TCGA-CS-4941", "TCGA-02-0006", "TCGA-HT-A61B"])
def test_brats_tcga_prefers_the_corrected_mask(tmp_path: Path, patient: str) -> None:
    keys = tcga(patient, "1996.09.09", *IMAGES, "GlistrBoost", "GlistrBoost_ManuallyCorrected")
    (case,), problems = discover(tmp_path, *(f"Pre-operative_NIfTI_and_Segmentations/{key}" for key in keys))
    assert not problems
    assert (case.case_id, case.patient_id, case.layout) == (patient, patient, "brats2021")
    assert case.modalities == ("t1", "t1c", "t2", "flair")
    assert case.mask is not None
    assert case.mask.endswith("_GlistrBoost_ManuallyCorrected.nii.gz")


def test_brats_tcga_uses_the_automatic_mask_if_it_is_the_only_one(tmp_path: Path) -> None:
    (case,), problems = discover(tmp_path, *tcga("TCGA-CS-4942", "1997.02.22", *IMAGES, "GlistrBoost"))
    assert not problems
    assert case.mask == "TCGA-CS-4942/TCGA-CS-4942_1997.02.22_GlistrBoost.nii.gz"


def test_brats_tcga_in_one_folder(tmp_path: Path) -> None:
    dates = {"TCGA-CS-4941": "1996.09.09", "TCGA-HT-A61B": "1999.11.27"}
    names = (*IMAGES, "GlistrBoost", "GlistrBoost_ManuallyCorrected")
    cases, problems = discover(
        tmp_path, *(k for p, d in dates.items() for k in tcga(p, d, *names, folder="all"))
    )
    assert not problems
    assert [case.patient_id for case in cases] == list(dates)
    assert all(case.mask and case.mask.endswith("Corrected.nii.gz") for case in cases)


@pytest.mark.parametrize("mask", ["LGG-104-Segmentation.nii.gz", "LGG-104_Segmentation.nii.gz"])
@pytest.mark.parametrize("folder", ["LGG-104/", ""])
def test_1p19q_names(tmp_path: Path, mask: str, folder: str) -> None:
    names = [f"{folder}{name}" for name in ("LGG-104_T1.nii.gz", "LGG-104_T2.nii.gz", mask)]
    (case,), problems = discover(tmp_path, *names)
    assert not problems
    assert (case.case_id, case.patient_id, case.layout) == ("LGG-104", "LGG-104", "lgg-1p19q")
    # T1 in this collection is T1 after contrast.
    assert case.images == {"t1c": names[0], "t2": names[1]}
    assert (case.mask, case.declared, case.modalities) == (names[2], "wt", ("t1c", "t2"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("LGG-104_T1", "LGG-104-Segmentation"), "has no t2 (only t1c)"),
        (("LGG-104-Segmentation",), "has no t1c and no t2 (only a mask)"),
        (("LGG-104_T1", "LGG-104_T2", "LGG-104_FLAIR"), "has no t1c (only t1, t2, flair)"),
    ],
)
def test_missing_modalities_are_named(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    cases, (problem,) = discover(tmp_path, *(f"LGG-104/{name}.nii.gz" for name in names))
    assert not cases
    assert message in str(problem)


def test_other_collections_still_need_all_four(tmp_path: Path) -> None:
    cases, (problem,) = discover(tmp_path, "A_001/A_001_t1.nii.gz", "A_001/A_001_t2.nii.gz")
    assert not cases
    assert "has no t1c and no flair (only t1, t2)" in str(problem)


def volume(seed: int) -> np.ndarray:
    array = np.zeros(SHAPE, np.int16)
    array[2:-2, 2:-2, 1:-1] = np.random.default_rng(seed).integers(1, 900, (16, 14, 7))
    return array


def segmented(*slices: int) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    for number in slices:
        mask[6:12, 5 : 7 + number, number] = 1
    return mask


def write_case(root: Path, mask: np.ndarray, order: tuple[int, int, int] = (0, 1, 2)) -> FileStorage:
    """Write a case with its axes stored in `order`; its slices follow the third stored axis."""
    (root / "LGG-104").mkdir()
    affine = AXIAL[:, [*order, 3]]
    parts = {"_T1": volume(1), "_T2": volume(2), "-Segmentation": mask}
    for name, array in parts.items():
        (root / f"LGG-104/LGG-104{name}.nii.gz").write_bytes(encode_volume(array.transpose(order), affine))
    return FileStorage(str(root))


def ras(array: np.ndarray) -> np.ndarray:
    return to_canonical(array, AXIAL)[0]


@pytest.mark.parametrize("slices", [(3, 4, 5), (1, 4, 6), (0,), (8,)])
def test_with_its_mask_a_case_has_only_its_segmented_slices(tmp_path: Path, slices: tuple[int, ...]) -> None:
    storage = write_case(tmp_path, segmented(*slices))
    (files,), _ = discover_cases(storage)
    case = load_case(storage, files)
    assert case.images.shape == (2, 20, 18, len(slices))
    for channel, seed in enumerate((1, 2)):
        np.testing.assert_array_equal(case.images[channel], ras(volume(seed))[:, :, slices])
    np.testing.assert_array_equal(case.mask, 2 * ras(segmented(*slices))[:, :, slices])
    assert case.convention == CONVENTIONS["wt"]
    # Each axial slice is contiguous in memory, as in other cases.
    assert case.images.strides[1] < case.images.strides[2] < case.images.strides[3]
    whole = load_case(storage, files, with_mask=False)
    assert whole.images.shape == (2, 20, 18, 9)
    assert case.spacing_mm == pytest.approx(whole.spacing_mm)
    # The first slice keeps its position.
    np.testing.assert_allclose(case.affine @ [4, 3, 0, 1], whole.affine @ [4, 3, slices[0], 1], atol=1e-4)


def test_its_header_describes_the_cut_volume(tmp_path: Path) -> None:
    storage = write_case(tmp_path, segmented(3, 4, 5))
    (files,), _ = discover_cases(storage)
    case = load_case(storage, files)
    assert case.mask is not None
    written = read_volume(
        encode_mask(from_internal(case.mask, CONVENTIONS["wt"]), case.reference), name="mask"
    )
    turned, affine = to_canonical(written.array, written.affine)
    np.testing.assert_array_equal(turned, ras(segmented(3, 4, 5))[:, :, 3:6])
    np.testing.assert_allclose(affine, case.affine, atol=1e-5)


def test_slices_are_cut_along_the_files_own_axis(tmp_path: Path) -> None:
    # Sagittal slices: x is the last stored axis.
    sagittal = np.zeros(SHAPE, np.uint8)
    sagittal[7:10, 4:9, 2:7] = 1
    storage = write_case(tmp_path, sagittal, order=(1, 2, 0))
    (files,), _ = discover_cases(storage)
    case = load_case(storage, files)
    assert case.images.shape == (2, 3, 18, 9)
    np.testing.assert_array_equal(case.images[0], ras(volume(1))[10:13])
    np.testing.assert_array_equal(case.mask, 2 * ras(sagittal)[10:13])


def test_an_empty_mask_and_a_mask_with_other_labels_are_problems(tmp_path: Path) -> None:
    storage = write_case(tmp_path, segmented())
    (files,), _ = discover_cases(storage)
    _, (problem,) = check_case(storage, files)
    assert "LGG-104-Segmentation.nii.gz: is empty, so no slice is labelled" in str(problem)
    # As in LGG-223, where the names of T2 and the mask are swapped.
    (tmp_path / "LGG-104/LGG-104-Segmentation.nii.gz").write_bytes(encode_volume(volume(2), AXIAL))
    _, (problem,) = check_case(storage, files)
    assert "the convention wt has 0, 1" in str(problem)


def test_phantoms_are_valid_cases(tmp_path: Path) -> None:
    storage = FileStorage(str(tmp_path))
    case_ids = write_1p19q_phantoms(storage, num_cases=2, shape=(48, 48, 24))
    cases, problems = discover_cases(storage)
    assert not problems
    assert [files.case_id for files in cases] == case_ids
    for files in cases:
        entry, found = check_case(storage, files)
        assert entry is not None
        assert not found
        assert (entry.shape, entry.modalities, entry.labelled_regions) == (
            (48, 48, 3),
            ("t1c", "t2"),
            ("wt",),
        )


def test_a_request_to_a_model_of_fewer_modalities() -> None:
    image = encode_volume(volume(1), AXIAL)
    wanted = ("flair", "t1c")
    case = load_case_from_bytes({"flair": image, "t1c": image}, modalities=wanted)
    assert case.modalities == ("t1c", "flair")
    assert case.images.shape == (2, *SHAPE)
    with pytest.raises(CaseError, match="flair is missing; expected t1c and flair;"):
        load_case_from_bytes({"t1c": image}, modalities=wanted)
    with pytest.raises(CaseError, match="t2 is not expected; expected t1c and flair;"):
        load_case_from_bytes({"flair": image, "t1c": image, "t2": image}, modalities=wanted)
    with pytest.raises(CaseError, match="t1c is missing; expected t1c and flair;"):
        load_case_from_bytes({"image": image}, modalities=wanted)
    with pytest.raises(CaseError, match="t1 is missing; expected t1;"):
        load_case_from_bytes({}, modalities=("t1",))
