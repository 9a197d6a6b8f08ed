"""Layouts are recognised by file names; missing and repeated files are reported."""

import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from glioray.cases.casefiles import CaseFiles, Problem, modality_of, patient_of
from glioray.cases.dataset_json import MSD_CHANNELS
from glioray.cases.layouts import RECOGNISED, discover_cases, is_derived_mask
from glioray.errors import UsageError
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


def test_what_cannot_be_listed_is_a_problem_beside_the_other_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"BraTS2021_0000{n}" for n in range(4)]
    keys = [key for name in names for key in brats(name, name)]
    discover(tmp_path, *keys)
    scandir = os.scandir

    def refuse(path: os.PathLike[str]) -> object:
        if Path(path).name == names[1]:
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    os.rename(tmp_path / keys[10], os.fsencode(tmp_path / keys[10]) + b"\xe9")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "annex").symlink_to("nowhere")
    (tmp_path / "BraTS2021_00009").symlink_to("unmounted")
    cases, problems = discover_cases(FileStorage(str(tmp_path)))
    assert [case.case_id for case in cases] == [names[0], names[3]]
    assert [(p.case_id, p.file) for p in problems] == [
        ("", "BraTS2021_00001"),
        ("", rf"{keys[10]}\xe9"),
        ("", "BraTS2021_00009"),
        (names[2], names[2]),
    ]
    assert str(problems[0]) == (
        "file: BraTS2021_00001: cannot be read (Permission denied); check the permissions, or move it elsewhere"
    )


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
        (None, "dataset.json: is missing or not valid, so that nothing names the modality of each channel"),
        ({}, "is missing or not valid, so that nothing names the modality"),
        ({"labels": {}}, "does not name the modality of each channel"),
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


NNUNET = {
    "channel_names": {"0": "T1", "1": "T1c", "2": "T2", "3": "FLAIR"},
    "labels": {"background": 0, "NCR": 1, "ED": 2, "ET": 3},
}


def test_nnunet_raw(tmp_path: Path) -> None:
    keys = [f"imagesTr/BRATS_7_{channel:04}.nii.gz" for channel in range(4)]
    keys += [f"imagesTs/BRATS_8_{channel:04}.nii.gz" for channel in range(4)]
    cases, problems = discover(tmp_path, *keys, "labelsTr/BRATS_7.nii.gz", dataset=NNUNET)
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
    cases, problems = discover(tmp_path, *keys, "labelsTr/A.nii.gz", "labelsTr/B.nii.gz", dataset=NNUNET)
    assert not cases
    assert [problem.case_id for problem in problems] == ["A", "B"]
    assert "has no t2 (only t1, t1c, flair)" in str(problems[0])
    assert "only a mask" in str(problems[1])


def test_a_file_without_a_channel_number_is_reported(tmp_path: Path) -> None:
    keys = [f"imagesTr/A_{channel:04}.nii.gz" for channel in range(4)]
    (case,), (problem,) = discover(tmp_path, *keys, "imagesTr/B.nii.gz", dataset=NNUNET)
    assert case.case_id == "A"
    assert str(problem).startswith("file: imagesTr/B.nii.gz: has no channel number in its name")


def test_conventions_declared_by_dataset_json(tmp_path: Path) -> None:
    """As collections and converters write them: nnU-Net 1 and 2, the Decathlon, regions, and users' own words."""
    declared: dict[str, list[dict]] = {
        "brats-et3": [
            {"0": "background", "1": "NCR", "2": "ED", "3": "ET"},
            {"background": 0, "necrotic tumor core": 1, "peritumoral edematous/invaded tissue": 2, "GD-enhancing tumor": 3},
            {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [1, 3], "enhancing tumor": [3]},
            {"background": 0, "Whole_Tumour": [1, 2, 3], "oedema": 2, "ET": 3},
        ],
        "brats-et4": [{"background": 0, "NCR/NET": 1, "ED": 2, "ET": 4}, {"wt": [1, 2, 4], "tc": [1, 4], "et": 4}],
        "brats2024": [
            {"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4},
            {"0": "unlabelled", "1": "non-enhancing tumour core", "2": "surrounding non-enhancing T2/FLAIR hyperintensity (SNFH)",
             "3": "enhancing tissue", "4": "resection cavity"},
        ],
        "brats-ped": [
            {"ET": 1, "NonEnh": 2, "Cystic": 3, "Edema": 4},
            {"background": 0, "ET": 1, "NET": 2, "CC": 3, "ED": 4},
            {"background": 0, "ET": 1, "non-enhancing (solid and cyst)": [2, 3], "ED": 4},
        ],
        "msd": [
            {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
            {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3},
            {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3], "ignore": 4},
        ],
        "1=ed,2=et,3=ncr": [{"edema": 1, "ET": 2, "necrosis": 3}],
        "1=ncr,2=et,3=ed": [{"1": "Necrosis", "2": "Active tumor", "3": "Perifocal oedema"}],
        "wt": [{"background": 0, "tumor": 1}, {"0": "background", "1": "whole tumour"}, {"background": 0, "glioma": 1}],
        "wt-255": [{"tumour": 255}],
        "brats-gtv": [{"background": 0, "GTV": 1}, {"background": 0, "tumor core": 1}],
        "1=tc,2=ed": [{"tumor core": 1, "edema": 2}, {"whole tumor": [1, 2], "tumor core": 1}, {"tumor": 1, "edema": 2}],
        "1=tc,2=ed,3=rc": [
            {"NCR + ET": 1, "ED": 2, "RC": 3},
            {"enhancing and non-enhancing tumor": 1, "edema": 2, "cavity": 3},
            {"Tumor Core (TC)": 1, "Peritumoral Edema (ED)": 2, "Resection Cavity (RC)": 3},
        ],
        "1=wt,2=rc": [{"tumor core and edema": 1, "RC": 2}, {"ET, NCR & ED": 1, "post-operative cavity": 2}],
        "1=wt,2=et": [{"tumor": 1, "enhancing": 2}],
        "1=background,2=wt": [{"background": 0, "healthy brain": 1, "tumor": 2}],
    }  # fmt: skip
    keys = [*(f"imagesTr/A_{channel:04}.nii.gz" for channel in range(4)), "labelsTr/A.nii.gz"]
    for name, listed in declared.items():
        for labels in listed:
            (case,), problems = discover(tmp_path, *keys, dataset={**NNUNET, "labels": labels})
            assert (case.declared, problems) == (name, []), labels


def test_labels_that_cannot_be_read_are_asked_for(tmp_path: Path) -> None:
    sentences: dict[str, dict] = {
        "names the label 'class 1', which is none of the words known, such as necrosis, oedema": {
            "class 1": 1
        },
        "names the label 'brain', which is none": {"background": 0, "brain": 1},
        "names the label 'lesion', which is none": {"0": "background", "1": "edema", "2": "lesion"},
        "names the label 'tumor without edema', which is none": {"tumor without edema": 1},
        "names the label 'enhancing tumor and edema', which is none": {
            "enhancing tumor and edema": 1,
            "NCR": 2,
        },
        "names the label 1 as ed and et at once": {"edema": 1, "enhancing": 1},
        "names no label that makes up a tumour": {"background": 0, "edema": 1},
        "has the label 'edema': 'one', which is not a name and its numbers": {"edema": "one"},
        "names no labels": {},
    }
    keys = [*(f"imagesTr/A_{channel:04}.nii.gz" for channel in range(4)), "labelsTr/A.nii.gz"]
    for sentence, labels in sentences.items():
        with pytest.raises(UsageError, match=re.escape(f"dataset.json {sentence}")) as error:
            discover(tmp_path, *keys, dataset={**NNUNET, "labels": labels})
        assert str(error.value).endswith(
            """so the numbers in the masks could mark anything; correct its "labels", or state the convention with """
            "--labels NAME (labels= in the library)"
        )
        (case,), _ = discover_cases(FileStorage(str(tmp_path)), labels="msd")
        assert case.declared == "msd"
    # Without a mask there is nothing to ask.
    (tmp_path / "labelsTr/A.nii.gz").unlink()
    (case,), problems = discover_cases(FileStorage(str(tmp_path)))
    assert (case.declared, problems) == (None, [])


def test_4d_files_of_another_task_do_not_take_its_labels(tmp_path: Path) -> None:
    only_channels = {"modality": MSD["modality"]}
    names = ("imagesTr/BRATS_001.nii.gz", "labelsTr/BRATS_001.nii.gz")
    (case,), _ = discover(tmp_path / "1", *names, dataset=only_channels)
    assert case.declared == "msd"
    with pytest.raises(UsageError, match=r"dataset\.json names no labels, so"):
        discover(tmp_path / "2", "imagesTr/X.nii.gz", "labelsTr/X.nii.gz", dataset=only_channels)


def test_channels_in_every_spelling(tmp_path: Path) -> None:
    spellings: dict[str, list[str]] = {
        "t1": ["T1", "t1", "T1w", "t1n", "T1-weighted", "T1 native", "MRI T1", "T1_pre"],
        "t1c": [
            "T1ce",
            "T1c",
            "T1Gd",
            "T1gd",
            "t1wce",
            "T1-Gd",
            "T1 post",
            "T1 (post-contrast)",
            "ceT1w",
            "T1+C",
        ],
        "t2": ["T2", "t2w", "T2-weighted", "MR_T2"],
        "flair": ["FLAIR", "flair", "T2-FLAIR", "t2f", "T2w FLAIR", "fla"],
    }
    for modality, names in spellings.items():
        for name in names:
            assert modality_of(name) == modality, name
    keys = [f"imagesTr/A_{channel:04}.nii.gz" for channel in range(4)]
    order = {"flair": 0, "t1": 1, "t1c": 2, "t2": 3}
    names = ["FLAIR", "T1", "T1ce", "T2"]
    numbered = {str(number): name for number, name in enumerate(names)}
    for field in ("channel_names", "modality"):
        for form in (names, numbered, {name: int(number) for number, name in numbered.items()}):
            (case,), problems = discover(tmp_path, *keys, dataset={field: form})
            assert not problems
            assert {m: keys.index(key) for m, key in case.images.items()} == order, form
    for wrong in (names[:3], [*names, "ADC"], ["FLAIR", "T1", "T1", "T2"], ["noNorm"] * 4):
        cases, (problem,) = discover(tmp_path, *keys, dataset={"channel_names": wrong})
        assert not cases
        assert f"names the channels {', '.join(wrong)}; expected T1, T1c, T2 and FLAIR" in problem.found
    # Without them nothing is assumed.
    (tmp_path / "dataset.json").unlink()
    cases, (problem,) = discover(tmp_path, *keys)
    assert not cases
    assert problem.found == "is missing or not valid, so that nothing names the modality of each channel"


def test_nnunet_cases_that_dataset_json_links(tmp_path: Path) -> None:
    files = [f"raw/p1/scan{n}.nii.gz" for n in range(4)]
    dataset = {
        "channel_names": ["FLAIR", "T1", "T1Gd", "T2"],
        "labels": {"background": 0, "edema": 1, "ET": 2, "necrosis": 3},
        "dataset": {
            "BraTS-GLI-00001-000": {
                "images": [f"../raw/p1/scan{n}.nii.gz" for n in range(4)],
                "label": "../raw/p1/truth.nii.gz",
            },
            "P2": {"images": ["../raw/p2/A_t1.nii.gz"] * 4, "label": "../gone.nii.gz"},
            "P3": {"images": ["../raw/p3/four.nii.gz"]},
        },
    }
    cases, problems = discover(
        tmp_path, *files, "raw/p1/truth.nii.gz", "raw/p3/four.nii.gz", dataset=dataset, at="Dataset001"
    )
    first, third = cases
    assert first.images == {"t1": files[1], "t1c": files[2], "t2": files[3], "flair": files[0]}
    assert (first.mask, first.declared, first.patient_id) == (
        "raw/p1/truth.nii.gz",
        "1=ed,2=et,3=ncr",
        "BraTS-GLI-00001",
    )
    assert (third.image, third.channels, third.mask) == (
        "raw/p3/four.nii.gz",
        ("flair", "t1", "t1c", "t2"),
        None,
    )
    assert [str(problem).partition(";")[0] for problem in problems] == [
        "case P2: Dataset001/dataset.json: lists ../raw/p2/A_t1.nii.gz, which is not below the data"
    ]


def test_masks_that_are_not_of_the_tumour(tmp_path: Path) -> None:
    """Files that BET, HD-BET, FAST, SynthSeg and others leave beside images, and names of real collections."""
    derived = [
        "A_001_t1_bet_mask",
        "A_001_brain_mask",
        "A_001_brainmask",
        "A_001-brain-mask",
        "A_001_t1_mask",
        "A_001_flair-mask",
        "A_001_t1ce_bet_mask",
        "A_001_T1_BrainMask",
        "A_001_t1_brain_seg",
        "A_001_t1_brain_pveseg",
        "A_001_synthseg",
        "brain_mask",
        "A_001_aparc+aseg",
        "A_001_hdbet_mask",
        "A_001_skull_mask",
        "A_001_brain_segmentation",
        "A_001_mask_t1",
        "A_001_seg_csf",
        "A_001_brain_parenchyma_segmentation",
        "A_001_brain_mask_2",
        "mask_brain",
    ]
    tumours = [
        "A_001_seg",
        "A_001_mask",
        "A_001_tumor_mask",
        "A_001_brain_tumor_seg",
        "A_001_flair_seg",
        "A_001-segmentation",
        "W39_Segm",
    ]
    images = brats("A_001", "A_001", "t1 t1ce t2 flair")
    for number, name in enumerate(derived):
        beside = discover(tmp_path / f"a{number}", *images, f"A_001/{name}.nii.gz", "A_001/A_001_seg.nii.gz")
        (case,), problems = beside
        assert (case.mask, problems) == ("A_001/A_001_seg.nii.gz", []), name
        (case,), (problem,) = discover(tmp_path / f"b{number}", *images, f"A_001/{name}.nii.gz")
        assert case.mask is None, name
        assert str(problem) == (
            f"case A_001: A_001/{name}.nii.gz: is not taken for the tumour's mask: its name says that it is derived from "
            "the images; name the tumour's mask CASE_seg.nii.gz, if it is one"
        )
    for number, name in enumerate(tumours):
        (case,), problems = discover(tmp_path / f"c{number}", *images, f"A_001/{name}.nii.gz")
        assert (case.mask, problems) == (f"A_001/{name}.nii.gz", []), name
    # A case whose own name holds such a word.
    (case,), problems = discover(tmp_path / "d", *brats("brain_001", "brain_001"))
    assert (case.mask, problems) == ("brain_001/brain_001_seg.nii.gz", [])
    # Several cases in one folder.
    flat = [*brats("", "A_01"), *brats("", "B_02"), "A_01_t1_bet_mask.nii.gz", "B_02_brainmask.nii.gz"]
    cases, problems = discover(tmp_path / "e", *flat)
    assert [case.mask for case in cases] == ["A_01_seg.nii.gz", "B_02_seg.nii.gz"]
    assert not problems


def test_meningiomas_before_radiotherapy_have_one_image(tmp_path: Path) -> None:
    name = "BraTS-MEN-RT-0001-1"
    (case,), problems = discover(tmp_path, *brats(name, name, "t1c gtv"))
    assert not problems
    assert (case.images, case.mask) == ({"t1c": f"{name}/{name}_t1c.nii.gz"}, f"{name}/{name}_gtv.nii.gz")
    assert case.patient_id == "BraTS-MEN-RT-0001"


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
    visits = [
        "UPENN-GBM-00001_11",
        "sub-01_ses-02",
        "P7_Timepoint_1",
        "P7_week-044",
        "Brats17_2013_10_1",
        "A_001",
    ]
    assert [patient_of(v) for v in visits] == [
        "UPENN-GBM-00001",
        "sub-01",
        "P7",
        "P7",
        "Brats17_2013_10_1",
        "A_001",
    ]


class _NamesToLookUp(set[str]):
    """Names of a folder that may hold a hundred thousand, so that nothing may go through them for each file."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("the names are gone through")


@pytest.mark.parametrize(
    ("stem", "is_derived"),
    [
        ("case-1_brain_mask", True),
        # Not of "case-1", whose name would leave "0_seg".
        ("case-10_seg", False),
        ("case-1_t1_mask", True),
        ("case-1_tumour_mask", False),
        ("elsewhere_brainmask", True),
    ],
)
def test_a_files_case_is_looked_up_among_those_of_its_folder(stem: str, is_derived: bool):
    assert is_derived_mask(stem, _NamesToLookUp({"case-1", "case-10"})) is is_derived
