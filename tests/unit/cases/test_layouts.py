"""Layouts are recognised by file names; missing and repeated files are reported."""

import json
from pathlib import Path

import pytest

from glioray.cases.casefiles import CaseFiles, Problem, modality_of, patient_of
from glioray.cases.dataset_json import MSD_CHANNELS
from glioray.cases.layouts import RECOGNISED, discover_cases
from glioray.storage import FileStorage


def discover(
    root: Path, *keys: str, dataset: dict | None = None, at: str = ""
) -> tuple[list[CaseFiles], list[Problem]]:
    """Discover cases among empty files with those names."""
    for key in keys:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    if dataset is not None:
        (root / at).mkdir(parents=True, exist_ok=True)
        (root / at / "dataset.json").write_text(json.dumps(dataset))
    return discover_cases(FileStorage(str(root)))


def brats(
    folder: str, case: str, names: str = "t1 t1ce t2 flair seg", ext: str = ".nii.gz", sep: str = "_"
) -> list[str]:
    return [f"{folder}/{case}{sep}{name}{ext}".lstrip("/") for name in names.split()]


@pytest.mark.parametrize(
    ("folder", "case_id", "ext"),
    [
        ("Brats17_2013_10_1", "Brats17_2013_10_1", ".nii.gz"),
        ("HGG/Brats18_TCIA08_167_1", "Brats18_TCIA08_167_1", ".nii.gz"),
        ("data/LGG/BraTS19_TMC_21360_1", "BraTS19_TMC_21360_1", ".nii"),
        ("BraTS20_Training_001", "BraTS20_Training_001", ".nii"),
        ("BraTS2021_00000", "BraTS2021_00000", ".nii.gz"),
    ],
)
def test_brats_2017_to_2021(tmp_path: Path, folder: str, case_id: str, ext: str) -> None:
    (case,), problems = discover(tmp_path, *brats(folder, case_id, ext=ext))
    assert not problems
    assert (case.case_id, case.patient_id, case.layout) == (case_id, case_id, "brats2021")
    assert list(case.images) == ["t1", "t1c", "t2", "flair"]
    assert case.images["t1c"] == f"{folder}/{case_id}_t1ce{ext}"
    assert case.mask == f"{folder}/{case_id}_seg{ext}"
    assert case.keys() == (*case.images.values(), case.mask)


def test_brats_2023_studies_of_one_patient(tmp_path: Path) -> None:
    ids = ["BraTS-GLI-00012-000", "BraTS-GLI-00012-001"]
    keys = [key for i in ids for key in brats(i, i, "t1n t1c t2w t2f seg", sep="-")]
    cases, problems = discover(tmp_path, *keys)
    assert not problems
    assert [case.case_id for case in cases] == ids
    assert {case.patient_id for case in cases} == {"BraTS-GLI-00012"}
    assert {case.layout for case in cases} == {"brats2023"}
    assert cases[0].images["flair"] == f"{ids[0]}/{ids[0]}-t2f.nii.gz"


def test_upper_case_names_and_fla(tmp_path: Path) -> None:
    (case,), problems = discover(tmp_path, *brats("P_001", "P_001", "T1 t1CE t2W fla SEG", ext=".NII.gz"))
    assert not problems
    assert case.images["t2"] == "P_001/P_001_t2W.NII.gz"
    assert case.images["flair"] == "P_001/P_001_fla.NII.gz"
    assert case.mask == "P_001/P_001_SEG.NII.gz"


def test_files_whose_names_differ_from_their_folder(tmp_path: Path) -> None:
    slips = [
        *brats("BraTS2021_00007", "BraTS2021_00070", "t1 t1ce"),
        *brats("BraTS2021_00007", "x", "t2 flair"),
    ]
    cases, problems = discover(tmp_path, *slips, *brats("HGG", "case7"), *brats("BraTS2021_00009", "b9"))
    assert not problems
    assert [(case.case_id, len(case.images)) for case in cases] == [
        ("BraTS2021_00007", 4),
        ("BraTS2021_00009", 4),
        ("case7", 4),
    ]


def test_several_cases_in_one_folder_and_at_the_root(tmp_path: Path) -> None:
    cases, problems = discover(
        tmp_path, *brats("", "A_01"), *brats("", "B_02", "t1 t1ce t2 flair"), *brats("flat", "C")
    )
    assert not problems
    assert [(case.case_id, case.mask is not None) for case in cases] == [
        ("A_01", True),
        ("B_02", False),
        ("C", True),
    ]


def test_a_mask_whose_name_differs_from_its_case(tmp_path: Path) -> None:
    keys = [
        *brats("BraTS20_Training_355", "BraTS20_Training_355", "t1 t1ce t2 flair"),
        "BraTS20_Training_355/W39_1998.09.19_Segm.nii",
    ]
    (case,), problems = discover(tmp_path, *keys)
    assert not problems
    assert case.mask == "BraTS20_Training_355/W39_1998.09.19_Segm.nii"


def test_two_candidates_for_the_mask_are_a_problem(tmp_path: Path) -> None:
    cases, problems = discover(
        tmp_path, *brats("A_001", "A_001", "t1 t1ce t2 flair"), "A_001/old_seg_1.nii", "A_001/seg_new.nii"
    )
    assert not cases
    assert "one of 2 possible masks" in str(problems[0])


def test_nii_gz_is_preferred_to_nii(tmp_path: Path) -> None:
    (case,), (problem,) = discover(tmp_path, *brats("A_001", "A_001"), "A_001/A_001_t2.nii")
    assert case.images["t2"] == "A_001/A_001_t2.nii.gz"
    assert str(problem) == (
        "file: A_001/A_001_t2.nii: is ignored in favour of A_001/A_001_t2.nii.gz; delete one of them if they differ"
    )


def test_two_files_for_one_modality_are_a_problem(tmp_path: Path) -> None:
    cases, (problem,) = discover(tmp_path, *brats("A_001", "A_001"), "A_001/A_001_t1gd.nii.gz")
    assert not cases
    assert "is one of 2 files for t1c" in str(problem)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("t1 t1ce t2 seg", "has no flair (only t1, t1c, t2)"),
        ("flair", "has no t1 and no t1c and no t2 (only flair)"),
        ("seg", "has no t1 and no t1c and no t2 and no flair (only a mask)"),
    ],
)
def test_a_missing_modality_is_reported_and_other_cases_are_unaffected(
    tmp_path: Path, names: str, message: str
) -> None:
    cases, (problem,) = discover(tmp_path, *brats("A_001", "A_001", names), *brats("B_002", "B_002"))
    assert [case.case_id for case in cases] == ["B_002"]
    assert str(problem) == f"case A_001: A_001: {message}; add the missing files or remove the case"


def test_two_cases_with_the_same_name_are_a_problem(tmp_path: Path) -> None:
    (case,), (problem,) = discover(tmp_path, *brats("HGG/A_001", "A_001"), *brats("LGG/A_001", "A_001"))
    assert case.images["t1"] == "HGG/A_001/A_001_t1.nii.gz"
    assert problem.file == "LGG/A_001/A_001_t1.nii.gz"


def test_junk_and_other_files_are_ignored(tmp_path: Path) -> None:
    junk = [
        "A_001/._A_001_t1.nii.gz",
        "__MACOSX/A_001/A_001_t1.nii.gz",
        ".DS_Store",
        "survival_info.csv",
        "A_001/notes.txt",
    ]
    other = ["patient07/FLAIR_N4_brain_regtoMNI.nii.gz", "patient07/T1_N4_brain_regtoMNI.nii.gz"]
    cases, problems = discover(tmp_path, *brats("A_001", "A_001"), *junk, *other)
    assert [case.case_id for case in cases] == ["A_001"]
    assert not problems


def test_an_unknown_layout_has_no_cases(tmp_path: Path) -> None:
    assert discover(tmp_path, "images/001.png") == ([], [])
    assert "BraTS 2023 and 2024" in RECOGNISED


MSD = {
    "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
    "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
}


@pytest.mark.parametrize("at", ["", "Task01_BrainTumour"])
def test_decathlon(tmp_path: Path, at: str) -> None:
    names = [
        "imagesTr/BRATS_001.nii.gz",
        "imagesTr/._BRATS_001.nii.gz",
        "labelsTr/BRATS_001.nii.gz",
        "imagesTs/BRATS_485.nii.gz",
    ]
    cases, problems = discover(tmp_path, *(f"{at}/{n}".lstrip("/") for n in names), dataset=MSD, at=at)
    assert not problems
    assert [case.case_id for case in cases] == ["BRATS_001", "BRATS_485"]
    first = cases[0]
    assert first.image == f"{at}/imagesTr/BRATS_001.nii.gz".lstrip("/")
    assert first.mask == f"{at}/labelsTr/BRATS_001.nii.gz".lstrip("/")
    assert (first.layout, first.channels, first.declared, first.images) == ("msd", MSD_CHANNELS, "msd", {})
    assert first.keys() == (first.image, first.mask)
    assert cases[1].mask is None


def test_decathlon_channels_are_read_from_dataset_json(tmp_path: Path) -> None:
    stated = {"modality": {"0": "T2", "1": "T1Gd", "2": "FLAIR", "3": "T1"}}
    (case,), _ = discover(tmp_path, "imagesTr/X.nii.gz", dataset=stated)
    assert case.channels == ("t2", "t1c", "flair", "t1")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (None, "does not name the modality"),
        ({"modality": {"0": "MRI"}}, "names the channels MRI"),
        ({"modality": {"0": "FLAIR", "1": "T1", "2": "T1", "3": "T2"}}, "expected T1, T1c, T2 and FLAIR"),
    ],
)
def test_decathlon_without_usable_channels(tmp_path: Path, dataset: dict | None, message: str) -> None:
    cases, (problem,) = discover(tmp_path, "imagesTr/X.nii.gz", dataset=dataset)
    assert not cases
    assert message in str(problem)


def test_a_broken_dataset_json_is_reported(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr/X.nii.gz").write_bytes(b"")
    (tmp_path / "dataset.json").write_text("{")
    cases, problems = discover_cases(FileStorage(str(tmp_path)))
    assert not cases
    assert any("is not a valid dataset.json" in str(problem) for problem in problems)


def test_nnunet_raw(tmp_path: Path) -> None:
    keys = [f"imagesTr/BRATS_7_{channel:04}.nii.gz" for channel in range(4)]
    keys += [f"imagesTs/BRATS_8_{channel:04}.nii.gz" for channel in range(4)]
    cases, problems = discover(tmp_path, *keys, "labelsTr/BRATS_7.nii.gz")
    assert not problems
    assert [(case.case_id, case.layout, case.mask) for case in cases] == [
        ("BRATS_7", "nnunet", "labelsTr/BRATS_7.nii.gz"),
        ("BRATS_8", "nnunet", None),
    ]
    assert list(cases[0].images.items()) == [(m, keys[i]) for i, m in enumerate(("t1", "t1c", "t2", "flair"))]


def test_nnunet_channels_and_labels_are_read_from_dataset_json(tmp_path: Path) -> None:
    dataset = {
        "channel_names": {"0": "FLAIR", "1": "T2", "2": "T1ce", "3": "T1"},
        "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3},
    }
    keys = [f"Dataset137/imagesTr/C_{channel:04}.nii.gz" for channel in range(4)]
    (case,), problems = discover(
        tmp_path, *keys, "Dataset137/labelsTr/C.nii.gz", dataset=dataset, at="Dataset137"
    )
    assert not problems
    assert case.images == {"t1": keys[3], "t1c": keys[2], "t2": keys[1], "flair": keys[0]}
    # nnU-Net's converter of BraTS writes oedema as 1, like the Decathlon.
    assert case.declared == "msd"


def test_nnunet_problems(tmp_path: Path) -> None:
    keys = [f"imagesTr/A_{channel:04}.nii.gz" for channel in (0, 1, 3)]
    cases, problems = discover(tmp_path, *keys, "labelsTr/A.nii.gz", "labelsTr/B.nii.gz")
    assert not cases
    assert [problem.case_id for problem in problems] == ["A", "B"]
    assert "has no t2 (only t1, t1c, flair)" in str(problems[0])
    assert "only a mask" in str(problems[1])


def test_a_file_without_a_channel_number_is_reported(tmp_path: Path) -> None:
    keys = [f"imagesTr/A_{channel:04}.nii.gz" for channel in range(4)]
    (case,), (problem,) = discover(tmp_path, *keys, "imagesTr/B.nii.gz")
    assert case.case_id == "A"
    assert str(problem).startswith("file: imagesTr/B.nii.gz: has no channel number in its name")


@pytest.mark.parametrize(
    ("labels", "declared"),
    [
        ({"0": "background", "1": "NCR", "2": "ED", "3": "ET"}, "brats-et3"),
        ({"background": 0, "NCR": 1, "ED": 2, "ET": 4}, "brats-et4"),
        ({"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}, "brats2024"),
        ({"background": 0, "tumour": 1}, None),
    ],
)
def test_conventions_declared_by_dataset_json(tmp_path: Path, labels: dict, declared: str | None) -> None:
    keys = [f"imagesTr/A_{channel:04}.nii.gz" for channel in range(4)]
    (case,), _ = discover(tmp_path, *keys, dataset={"labels": labels})
    assert case.declared == declared


def test_names_of_modalities_and_patients() -> None:
    assert [modality_of(n) for n in ("T1Gd", "t1n", "T2-FLAIR", "T2w", "seg", "MRI")] == [
        "t1c",
        "t1",
        "flair",
        "t2",
        None,
        None,
    ]
    assert patient_of("BraTS-GLI-00012-001") == "BraTS-GLI-00012"
    assert patient_of("BraTS2021_00000") == "BraTS2021_00000"
