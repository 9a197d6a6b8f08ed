"""A mask is read by its collection, its names and all numbers of its collection, or the user is asked."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glioray.api.cases import load_case
from glioray.api.data import check_labelled_regions, find_cases
from glioray.cases.casefiles import CaseFiles, patient_key, patient_of
from glioray.cases.collections import detect_convention
from glioray.cases.conventions import CONVENTIONS, find_convention
from glioray.cases.labels import LABELS
from glioray.cases.layouts import discover_cases
from glioray.cases.manifest import (
    Manifest,
    build_manifest,
    check_case,
    check_conventions,
    declare_conventions,
)
from glioray.cases.nifti import encode_volume
from glioray.cases.notes import collection_notes
from glioray.errors import CaseError, UsageError
from glioray.storage import FileStorage
from small_collections import BRAIN, NEW, OLD, SHAPE, VOXELS_EACH, mask_of, write_case

# Collection: its names, what its masks hold (of each kind that occurs), and what the numbers mark.
PUBLIC: dict[str, tuple[list[str], list[set[int]], dict[int, str]]] = {
    "GLI 2017": (["Brats17_2013_10_1", "Brats17_CBICA_AAB_1"], [{0, 1, 2, 4}, {0, 2, 4}], {1: "ncr", 2: "ed", 4: "et"}),
    "GLI 2020": (["BraTS20_Training_001", "BraTS20_Training_002"], [{0, 2, 4}, {0, 1, 2}], {1: "ncr", 2: "ed", 4: "et"}),
    "GLI 2021": (["BraTS2021_00000", "BraTS2021_00002"], [{0, 2, 4}, {0, 2}], {1: "ncr", 2: "ed", 4: "et"}),
    "GLI 2021, ET as 3": (["BraTS2021_00000", "BraTS2021_00002"], [{0, 1, 2, 3}, {0, 1, 2}], {1: "ncr", 2: "ed", 3: "et"}),
    "GLI 2023": (["BraTS-GLI-00012-000", "BraTS-GLI-00012-001"], [{0, 1, 2, 3}, {0, 2}], {1: "ncr", 2: "ed", 3: "et"}),
    "GLI 2024": (
        [f"BraTS-GLI-0206{n}-10{n % 2}" for n in range(6)],
        [{0, 2, 3, 4}, {0, 2, 4}, {0, 1, 2, 3, 4}, {0, 1, 2, 3}, {0, 2}, {0, 1, 2, 4}],
        {1: "ncr", 2: "ed", 3: "et", 4: "rc"},
    ),
    "GLI 2024 without a 3": (["BraTS-GLI-02060-100", "BraTS-GLI-02061-101"], [{0, 2, 4}, {0, 1, 2, 4}], {1: "ncr", 2: "ed", 4: "rc"}),
    "PED": (["BraTS-PED-00001-000", "BraTS-PED-00002-000"], [{0, 1, 2, 3, 4}, {0, 2}], {1: "et", 2: "ncr", 3: "ncr", 4: "ed"}),
    "PED without a 4": (["BraTS-PED-00001-000", "BraTS-PED-00002-000"], [{0, 1, 2, 3}, {0, 1, 2}], {1: "et", 2: "ncr", 3: "ncr"}),
    "MEN": (["BraTS-MEN-00001-000", "BraTS-MEN-00002-000"], [{0, 1, 2, 3}, {0, 3}], {1: "ncr", 2: "ed", 3: "et"}),
    "MEN-RT": (["BraTS-MEN-RT-0001-1", "BraTS-MEN-RT-0002-1"], [{0, 1}, {0, 1}], {1: "ncr"}),
    "MET 2023": (["BraTS-MET-00001-000", "BraTS-MET-00002-000"], [{0, 1, 2, 3}, {0, 2, 3}], {1: "ncr", 2: "ed", 3: "et"}),
    "MET 2025": (["BraTS-MET-00001-000", "BraTS-MET-00002-000"], [{0, 2, 4}, {0, 1, 2, 3}], {1: "ncr", 2: "ed", 3: "et", 4: "rc"}),
    "SSA": (["BraTS-SSA-00001-000", "BraTS-SSA-00002-000"], [{0, 1, 2, 3}, {0, 2, 3}], {1: "ncr", 2: "ed", 3: "et"}),
}  # fmt: skip


def index(storage: FileStorage, labels: str | None = None) -> Manifest:
    cases, problems = discover_cases(storage, labels=labels)
    checked = [check_case(storage, files, is_stated=labels is not None) for files in cases]
    return build_manifest(storage.uri, [(None, problems), *checked])


def write(root: Path, case_ids: list[str], masks: list[set[int]], names: dict[str, str] = OLD) -> FileStorage:
    storage = FileStorage(str(root))
    for number, (case_id, numbers) in enumerate(zip(case_ids, masks, strict=True)):
        write_case(storage, case_id, numbers, names, seed=number)
    return storage


def test_a_phantom_of_every_public_collection_is_read_right(tmp_path: Path) -> None:
    for name, (case_ids, masks, marks) in PUBLIC.items():
        names = NEW if "-" in case_ids[0] else OLD
        if name == "MEN-RT":
            names = {"t1c": "_t1c", "mask": "_gtv"}
        storage = write(tmp_path / name, case_ids, masks, names)
        manifest = index(storage)
        assert not manifest.problems, name
        assert [entry.case_id for entry in manifest.cases] == case_ids, name
        for entry, numbers in zip(manifest.cases, masks, strict=True):
            expected = dict.fromkeys(LABELS[1:], 0)
            for number in numbers - {0}:
                expected[marks[number]] += VOXELS_EACH
            assert entry.label_voxels == expected, (name, entry.case_id, entry.convention)
            assert entry.labelled_regions == (("tc",) if name == "MEN-RT" else ("wt", "tc", "et")), name
        # Predictions are written in the collection's numbers, with a mask beside the images and without one.
        for files in declare_conventions(storage, discover_cases(storage)[0]):
            assert files.declared == manifest.entry(files.case_id).convention, name
        check_conventions(manifest, None)


@pytest.mark.contracts
def test_visits_of_a_patient_never_part(tmp_path: Path) -> None:
    kinds = ("GLI", "PED", "MEN", "MET", "SSA", "MEN-RT")
    visits = {
        f"BraTS-{kind}-{number:05}": ["000", "001", "100", "101"][: 2 + number % 3]
        for kind in kinds
        for number in range(6)
    }
    for patient, numbers in visits.items():
        assert {patient_of(f"{patient}-{number}") for number in numbers} == {patient}
    for kind in kinds:
        storage = FileStorage(str(tmp_path / kind))
        names = {"t1c": "_t1c", "mask": "_gtv"} if kind == "MEN-RT" else NEW
        mine = [patient for patient in visits if patient.rpartition("-")[0] == f"BraTS-{kind}"]
        for seed, case_id in enumerate(f"{p}-{visit}" for p in mine for visit in visits[p]):
            write_case(storage, case_id, {1} if kind == "MEN-RT" else {1, 2, 3}, names, seed=seed)
        manifest = index(storage)
        assert len(manifest.cases) == sum(len(visits[patient]) for patient in mine), kind
        for parts in (manifest.splits.values(), manifest.folds):
            patients = [{manifest.entry(case_id).patient_id for case_id in ids} for ids in parts]
            assert sum(map(len, patients)) == len(set.union(*patients)) == 6, kind


def test_a_patient_of_2021_is_the_same_in_2023(tmp_path: Path) -> None:
    storage = FileStorage(str(tmp_path))
    for seed in range(5):
        write_case(storage, f"BraTS2021_0000{seed}", {1, 2, 4}, seed=seed)
        write_case(storage, f"BraTS-GLI-0000{seed}-000", {1, 2, 3}, NEW, seed=10 + seed)
    manifest = index(storage)
    assert len({entry.patient_id for entry in manifest.cases}) == 5
    for parts in (manifest.splits.values(), manifest.folds):
        for ids in parts:
            numbers = [re.findall(r"0000\d", case_id)[0] for case_id in ids]
            assert all(numbers.count(number) == 2 for number in numbers)
    for trained, seen in (
        ("BraTS2021_00003", "BraTS-GLI-00003"),
        ("BraTS-MEN-RT-0001-1", "BraTS-MEN-RT-0001"),
    ):
        assert patient_key(trained) == patient_key(seen)


# Names, numbers of the masks, and the conventions that fit.
ASKED: list[tuple[dict[str, str], list[str], list[set[int]], list[str]]] = [
    (OLD, ["A_001", "B_002"], [{0, 2, 4}, {0, 2}], ["brats-et4", "brats2024", "brats-ped"]),
    (OLD, ["A_001", "B_002"], [{0, 2, 4}, {0, 1, 2, 3}], ["brats2024", "brats-ped"]),
    (NEW, ["A_001", "B_002"], [{0, 1, 2, 4}, {0, 2}], ["brats-et4", "brats2024", "brats-ped"]),
    (NEW, ["A_001", "B_002"], [{0, 1, 2, 3, 4}, {0, 2}], ["brats2024", "brats-ped"]),
    (NEW, ["BraTS-GLI-00001-000", "BraTS-GLI-00002-000"], [{0, 2, 4}, {0, 1, 2, 3}], ["brats-et4", "brats2024"]),
    (NEW, ["BraTS-SSA-00001-000"], [{0, 1, 2, 4}], ["brats-et4", "brats2024"]),
    (OLD, ["BraTS2021_00001"], [{0, 1, 2, 3, 4}], ["brats2024"]),
    # A binary mask: of the whole tumour, of its core, or of one part of it.
    (OLD, ["A_001", "B_002"], [{0, 1}, {0, 1}], ["wt", "brats-gtv", "brats-et4"]),
    (OLD, ["BraTS2021_00001", "BraTS2021_00002"], [{0, 1}, {0}], ["wt", "brats-gtv", "brats-et4"]),
    (NEW, ["BraTS-GLI-00001-000"], [{0, 1}], ["wt", "brats-gtv", "brats-et3"]),
    (NEW, ["BraTS-PED-00001-000"], [{0, 1}], ["wt", "brats-gtv", "brats-ped"]),
    (OLD, ["A_001"], [{0, 255}], ["wt-255"]),
]  # fmt: skip


def _question(ask: Callable[[Any], Any], argument: Any) -> str:
    with pytest.raises((UsageError, CaseError)) as error:
        ask(argument)
    return str(error.value)


def test_where_several_conventions_fit_the_user_is_asked(tmp_path: Path) -> None:
    for number, (names, case_ids, masks, candidates) in enumerate(ASKED):
        storage = write(tmp_path / str(number), case_ids, masks, names)
        asked = [
            _question(index, storage),
            _question(lambda there: declare_conventions(there, discover_cases(there)[0]), storage),
            _question(partial(load_case, case_id=case_ids[0]), storage.uri),
        ]
        assert f"masks, that of {case_ids[0]} the first, hold the labels " in asked[0], number
        assert asked[1] == asked[0], number
        assert asked[2].startswith(f"case {case_ids[0]}: {case_ids[0]}/{case_ids[0]}")
        for sentence in asked[:2]:
            assert [name for name in CONVENTIONS if f"{name} (" in sentence] == sorted(
                candidates, key=list(CONVENTIONS).index
            ), sentence
            assert sentence.endswith("; state the convention with --labels NAME (labels= in the library)")
        # Each candidate answers, where it has every number of the collection.
        together = set().union(*masks)
        for name in candidates:
            if together <= set(CONVENTIONS[name].to_internal):
                manifest = index(storage, labels=name)
                assert {entry.convention for entry in manifest.cases} == {name}
                case = load_case(storage.uri, case_id=case_ids[0], labels=name)
                assert case.convention == CONVENTIONS[name]


def test_the_numbers_of_unlabelled_cases_are_those_of_their_collection() -> None:
    def files(case_id: str, layout: str = "brats2023") -> CaseFiles:
        return CaseFiles(case_id=case_id, patient_id=case_id, layout=layout, images={})

    expected = {
        "BraTS-PED-00001-000": "brats-ped",
        "BraTS-GLI-00001-100": "brats2024",
        "BraTS-GLI-00001-000": "brats-et3",
        "BraTS-MEN-RT-0001-1": "brats-gtv",
        "other": "brats-et3",
    }
    for case_id, name in expected.items():
        assert detect_convention(set(), files(case_id)).name == name
    assert detect_convention(set(), files("other", "brats2021")).name == "brats-et4"
    assert detect_convention(set(), files("BRATS_485", "msd")).name == "msd"
    for layout in ("msd", "nnunet"):
        with pytest.raises(CaseError, match="state the convention with --labels NAME"):
            detect_convention(set(), files("other", layout))


def test_a_stated_convention_is_kept_and_others_are_refused(tmp_path: Path) -> None:
    storage = write(tmp_path / "data", ["A_001", "B_002"], [{0, 2, 4}, {0, 2}])
    stated = index(storage, labels="brats2024")
    assert [entry.label_voxels["rc"] for entry in stated.cases] == [VOXELS_EACH, 0]
    assert Manifest.from_json(stated.to_json()) == stated
    assert stated.hash != index(storage, labels="brats-ped").hash
    for labels in (None, "brats2024"):
        check_conventions(stated, labels)
    with pytest.raises(
        UsageError, match=r"as brats2024, but labels is msd; prepare .* again with --labels msd"
    ):
        check_conventions(stated, "msd")
    stated.save(FileStorage(str(tmp_path / "out")))
    _, cases, _ = find_cases(str(tmp_path / "out"))
    assert {files.declared for files in cases} == {"brats2024"}


def test_a_manifest_from_before_is_refused_where_its_masks_are_read_otherwise_now(tmp_path: Path) -> None:
    ped = index(write(tmp_path / "p", ["BraTS-PED-00001-000"], [{0, 1, 2, 3, 4}], NEW))
    before = replace(
        ped,
        cases=(
            replace(
                ped.cases[0], convention="brats2024", label_voxels=dict.fromkeys(LABELS[1:], VOXELS_EACH)
            ),
        ),
    )
    with pytest.raises(
        UsageError,
        match=r"as brats2024, but masks of its collection are brats-ped; prepare .* again, with --labels",
    ):
        check_conventions(before, None)
    check_conventions(before, "brats2024")
    binary = replace(
        ped,
        cases=(
            replace(
                ped.cases[0],
                files=replace(ped.cases[0].files, case_id="A", layout="brats2021"),
                convention="brats-et4",
                label_voxels={"ncr": 9, "ed": 0, "et": 0, "rc": 0},
            ),
        ),
    )
    with pytest.raises(
        UsageError, match=r"made without a stated convention: 1 of 1 masks.* wt .*, and prepare"
    ):
        check_conventions(binary, None)


def test_masks_of_other_regions_do_not_train_one_model(tmp_path: Path) -> None:
    storage = write(tmp_path, ["A_001", "B_002", "C_003"], [{0, 1}, {0, 1}, {0, 1}])
    whole = index(storage, labels="wt")
    check_labelled_regions(whole)
    full = index(write(tmp_path / "more", ["BraTS2021_1", "BraTS2021_2"], [{0, 1, 2, 4}] * 2))
    mixed = build_manifest("data", [(entry, []) for entry in (*whole.cases, *full.cases)])
    with pytest.raises(
        UsageError,
        match=r"masks, that of A_001 the first, define only wt, the others wt, tc, et, .* as absent",
    ):
        check_labelled_regions(mixed)


def test_a_mask_of_the_brain_is_not_a_tumour(tmp_path: Path) -> None:
    storage = FileStorage(str(tmp_path))
    brain = np.zeros(SHAPE, np.uint8)
    brain[BRAIN] = 1
    write_case(storage, "A_001", brain)
    half = mask_of({1, 2, 4})
    half[BRAIN][:4] = 1
    write_case(storage, "BraTS2021_00001", half, seed=1)
    half = mask_of({1, 2, 4})
    half[BRAIN][:2] = 1
    write_case(storage, "BraTS2021_00002", half, seed=2)
    manifest = index(storage)
    assert [entry.case_id for entry in manifest.cases] == ["BraTS2021_00002"]
    assert [problem.case_id for problem in manifest.problems] == ["A_001", "BraTS2021_00001"]
    assert str(manifest.problems[0]) == (
        "case A_001: A_001/A_001_seg.nii.gz: marks 0 ml as tumour, 100 % of the brain; expected at most 40 % and 700 ml; "
        "remove the file if it is a mask of the brain, or, if it is right, state the convention with --labels NAME "
        "(labels= in the library)"
    )
    with pytest.raises(CaseError, match="100 % of the brain"):
        load_case(storage.uri, case_id="A_001")
    # A stated convention is used, with a note.
    stated = index(storage, labels="1=wt,2=ed,4=et")
    assert [entry.case_id for entry in stated.cases] == ["A_001", "BraTS2021_00001", "BraTS2021_00002"]
    (note,) = collection_notes([*stated.cases])[-1:]
    assert note == (
        "2 of 3 cases have a tumour of more than 40 % of the brain, A_001 the first: make sure that their masks are not "
        "of the brain"
    )


def test_in_a_head_with_its_skull_the_volume_decides(tmp_path: Path) -> None:
    """No corner is background there, so that a brain is a small share of the volume."""
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    rng = np.random.default_rng(0)
    storage = FileStorage(str(tmp_path))
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[4:16, 4:16, 4:16] = 1  # 885 ml
    mask[5, 5, 5] = 2
    mask[5, 5, 6] = 4
    for name in ("t1", "t1ce", "t2", "flair"):
        image = rng.integers(1, 900, mask.shape).astype(np.int16)
        storage.write(f"BraTS2021_1/BraTS2021_1_{name}.nii.gz", encode_volume(image, affine))
    storage.write("BraTS2021_1/BraTS2021_1_seg.nii.gz", encode_volume(mask, affine))
    (problem,) = index(storage).problems
    assert problem.found.startswith("marks 885 ml as tumour, 22 % of the brain")


def test_names_of_conventions() -> None:
    assert find_convention("1=ncr,2=ed,4=et") == CONVENTIONS["brats-et4"]
    odd = find_convention("3=ncr,1=ed,2=et")
    assert (odd.name, odd.regions) == ("1=ed,2=et,3=ncr", ("wt", "tc", "et"))
    assert odd.to_internal == {0: 0, 1: 2, 2: 3, 3: 1}
    for name, regions in {"1=tc,2=ed": ("wt", "tc"), "1=wt,2=et": ("wt", "et"), "7=et": ("et",)}.items():
        assert find_convention(name).regions == regions
    for wrong in ("nnunet", "", "1=foo", "1=et,1=ed", "0=et", "1=rc", "300=wt", "1=et;2=ed"):
        with pytest.raises(
            UsageError, match=r"labels is '.*'; expected one of brats-et4, .* such as 1=ed,2=et,3=ncr"
        ):
            find_convention(wrong)
