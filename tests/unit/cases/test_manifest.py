"""A manifest describes its cases, can be saved and loaded, and never divides a patient."""

import dataclasses
import gzip
import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from glioray.cases.conventions import CONVENTIONS
from glioray.cases.inflate import GZIP_MAGIC
from glioray.cases.layouts import CaseFiles, Problem, discover_cases
from glioray.cases.load import load_case
from glioray.cases.manifest import CaseEntry, Manifest, build_manifest, check_case, load_manifest
from glioray.cases.nifti import encode_volume, read_volume
from glioray.cases.phantom import write_phantoms
from glioray.errors import CaseError, DataError, StorageError, UsageError
from glioray.storage import FileStorage


def entry(
    case_id: str,
    *,
    layout: str = "brats2021",
    convention: str | None = "brats-et4",
    declared: str | None = None,
    patient_id: str = "",
    **voxels: int,
) -> CaseEntry:
    files = CaseFiles(
        case_id=case_id, patient_id=patient_id or case_id, layout=layout, images={}, declared=declared
    )
    counts = {"ncr": 1, "ed": 2, "et": 3, "rc": 0, **voxels}
    return CaseEntry(
        files=files,
        checksum=hashlib.sha256(case_id.encode()).hexdigest(),
        checksums={},
        shape=(2, 3, 4),
        spacing_mm=(1.0, 1.0, 1.0),
        convention=convention,
        label_voxels=counts if convention else {},
        brain_voxels=9,
    )


def manifest_of(*entries: CaseEntry, **options: object) -> Manifest:
    return build_manifest("data", [(e, []) for e in entries], **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> FileStorage:
    storage = FileStorage(str(tmp_path_factory.mktemp("phantoms")))
    write_phantoms(storage, num_cases=3, shape=(32, 32, 24))
    return storage


def test_an_entry_describes_its_case(phantoms: FileStorage) -> None:
    cases, problems = discover_cases(phantoms)
    assert (len(cases), problems) == (3, [])
    found, none = check_case(phantoms, cases[0])
    assert none == []
    assert found is not None
    assert (found.case_id, found.patient_id, found.has_mask) == ("BraTS2021_90000", "BraTS2021_90000", True)
    assert found.shape == (32, 32, 24)
    assert found.spacing_mm == (6.0, 6.0, 6.0)
    assert found.convention == "brats-et4"
    assert list(found.label_voxels) == ["ncr", "ed", "et", "rc"]
    assert sum(found.label_voxels.values()) > 0
    assert 2000 < found.brain_voxels < 32 * 32 * 24 / 2
    sums = {
        key: hashlib.sha256(phantoms.read(key)).hexdigest()
        for key in (*cases[0].images.values(), str(cases[0].mask))
    }
    assert found.checksums == sums
    assert found.checksum == hashlib.sha256("\n".join(sorted(sums.values())).encode()).hexdigest()


def test_a_missing_object_is_a_problem(phantoms: FileStorage) -> None:
    case = discover_cases(phantoms)[0][0]
    gone = dataclasses.replace(case, images={**case.images, "t2": "nowhere.nii"})
    found, (problem,) = check_case(phantoms, gone)
    assert found is None
    assert "nowhere.nii' cannot be read" in str(problem)


def test_round_trip(phantoms: FileStorage, tmp_path: Path) -> None:
    cases, _ = discover_cases(phantoms)
    problem = Problem(case_id="X", file="x", found="is odd", advice="look")
    manifest = build_manifest(phantoms.uri, [*(check_case(phantoms, c) for c in cases), (None, [problem])])
    manifest.save(FileStorage(str(tmp_path)))
    assert load_manifest(str(tmp_path)) == manifest
    assert load_manifest(f"{tmp_path}/manifest.json") == manifest
    assert manifest.problems == (problem,)
    assert json.loads(manifest.to_json())["hash"] == manifest.hash
    assert manifest.entry("BraTS2021_90001").case_id == "BraTS2021_90001"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "hash": ""}',
        '{"format": 1, "hash": "", "cases": 3}',
        '{"format": 1, "hash": ""}',
    ],
)
def test_text_that_is_not_a_manifest_is_rejected(text: str) -> None:
    with pytest.raises(
        DataError, match=r"the manifest is not valid .*; create it again with jobs/prepare\.py"
    ):
        Manifest.from_json(text)


def test_a_changed_manifest_is_rejected() -> None:
    text = manifest_of(entry("A"), entry("B")).to_json()
    with pytest.raises(DataError, match="was changed"):
        Manifest.from_json(text.replace('"brats-et4"', '"brats-et3"', 1))


def test_a_missing_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        load_manifest(str(tmp_path))


def test_the_hash_covers_contents_and_splits() -> None:
    one = manifest_of(entry("A"), entry("B"), entry("C"))
    assert one.hash == manifest_of(entry("C"), entry("B"), entry("A")).hash
    assert one.hash == dataclasses.replace(one, data="s3://elsewhere").hash
    others = [
        manifest_of(entry("A"), entry("B")),
        manifest_of(entry("A"), entry("B"), dataclasses.replace(entry("C"), checksum="0")),
        manifest_of(entry("A"), entry("B"), entry("C"), ratios=(0.4, 0.6, 0.0)),
    ]
    assert len({one.hash, *(other.hash for other in others)}) == 4
    assert len({one.with_fold(fold).hash for fold in range(3)}) == 3


def test_splits_keep_patients_whole_and_omit_unlabelled_cases() -> None:
    studies = [entry(f"G-{n:03}-{k}", patient_id=f"G-{n:03}") for n in range(10) for k in range(1 + n % 3)]
    manifest = manifest_of(
        *studies, entry("unlabelled", convention=None), ratios=(0.6, 0.2, 0.2), shuffle=True
    )
    split_of = {case_id: name for name, ids in manifest.splits.items() for case_id in ids}
    assert sorted(split_of) == sorted(s.case_id for s in studies)
    for places in (manifest.splits.values(), manifest.folds):
        patients = [{manifest.entry(case_id).patient_id for case_id in ids} for ids in places]
        assert sum(len(p) for p in patients) == len(set.union(*patients)) == 10
    assert [e.case_id for e in manifest.select("all")][-1] == "unlabelled"
    assert len(manifest.select("labelled")) == len(studies)
    assert {e.case_id for e in manifest.select("test")} == set(manifest.splits["test"])


def test_a_fold_validates_and_the_others_train() -> None:
    manifest = manifest_of(*(entry(f"P{n}") for n in range(10)), num_folds=5)
    seen: list[str] = []
    for fold in range(5):
        part = manifest.with_fold(fold)
        assert part.splits["val"] == manifest.folds[fold]
        assert len(part.splits["train"]) == 8
        assert not set(part.splits["train"]) & set(part.splits["val"])
        seen += part.splits["val"]
    assert sorted(seen) == [f"P{n}" for n in range(10)]
    with pytest.raises(UsageError, match="No fold 5"):
        manifest.with_fold(5)


def test_the_number_of_folds_can_be_changed() -> None:
    studies = (entry(f"P{n}-{study}", patient_id=f"P{n}") for n in range(6) for study in "ab")
    manifest = manifest_of(*studies, entry("U", convention=None), num_folds=2)
    three = manifest.with_folds(3)
    assert [len(fold) for fold in three.folds] == [4, 4, 4]
    for fold in three.folds:  # patients whole
        assert {case_id.replace("-a", "-b") for case_id in fold} == {c for c in fold if c.endswith("-b")}
    assert sorted(case_id for fold in three.folds for case_id in fold) == sorted(
        e.case_id for e in manifest.select("labelled")
    )
    assert len(manifest.with_folds(100).folds) == 6  # a patient each
    with pytest.raises(UsageError, match="num_folds is 1; expected at least 2"):
        manifest.with_folds(1)


def test_patients_of_the_test_split_are_in_no_new_fold() -> None:
    manifest = manifest_of(*(entry(f"P{n}") for n in range(10)), ratios=(0.5, 0.2, 0.3))
    assert len(manifest.splits["test"]) == 3
    dealt = manifest.with_folds(2)
    assert sorted(case_id for fold in dealt.folds for case_id in fold) == [f"P{n}" for n in range(7)]
    assert set(dealt.with_fold(0).splits["train"]).isdisjoint(manifest.splits["test"])
    few = manifest_of(*(entry(f"P{n}") for n in range(3)), ratios=(0.4, 0.0, 0.6))
    with pytest.raises(UsageError, match="has 1 labelled patients outside its test split of 2"):
        few.with_folds(2)


class TestOnePatientUnderTwoNames:
    """Cases that share an image are one patient in splits, and a note says so."""

    @staticmethod
    def copy(storage: FileStorage, source: CaseFiles, name: str, **changed: bytes) -> None:
        for modality, key in {**source.images, "seg": str(source.mask)}.items():
            data = changed.get(modality, storage.read(key))
            storage.write(f"{name}/{name}_{modality}.nii{'.gz' if data[:2] == GZIP_MAGIC else ''}", data)

    @pytest.fixture
    def storage(self, tmp_path: Path) -> FileStorage:
        storage = FileStorage(str(tmp_path))
        write_phantoms(storage, num_cases=2, shape=(32, 32, 24))
        return storage

    @staticmethod
    def prepared(storage: FileStorage, **options: object) -> Manifest:
        cases, problems = discover_cases(storage)
        assert problems == []
        return build_manifest(storage.uri, [check_case(storage, files) for files in cases], **options)  # type: ignore[arg-type]

    def test_whatever_their_names_headers_and_types_are(self, storage: FileStorage) -> None:
        first, other = discover_cases(storage)[0]
        self.copy(storage, first, "Study_001")
        rewritten = {}
        for modality, key in other.images.items():
            volume = read_volume(storage.read(key), name=key)
            turned = volume.array[::-1].astype(np.float32)
            rewritten[modality] = encode_volume(turned, np.diag([2.0, 2, 5, 1]), compress=False)
        mask = read_volume(storage.read(str(other.mask)), name="seg").array
        seg = encode_volume(mask[::-1], np.diag([2.0, 2, 5, 1]))
        self.copy(storage, other, "Study_002", **rewritten, seg=seg)
        manifest = self.prepared(storage, ratios=(0.5, 0.5, 0.0))
        patients = {e.case_id: e.patient_id for e in manifest.cases}
        assert patients["Study_001"] == patients[first.case_id] == first.patient_id
        assert patients["Study_002"] == patients[other.case_id] == other.patient_id
        assert manifest.splits["train"] == (first.case_id, "Study_001")
        assert manifest.splits["val"] == (other.case_id, "Study_002")
        assert sorted(map(len, manifest.folds)) == [2, 2]
        (note,) = manifest.notes
        assert note.startswith("2 of 4 cases show the images of another case, and the two are one patient")
        assert f"Study_001 is {first.case_id}; Study_002 is {other.case_id}" in note
        assert "masks" not in note
        assert json.loads(manifest.to_json())["notes"] == [note]
        assert Manifest.from_json(manifest.to_json()) == manifest

    def test_one_image_is_enough_and_other_masks_are_said(self, storage: FileStorage) -> None:
        first, other = discover_cases(storage)[0]
        self.copy(storage, first, "Study_001", t1=storage.read(other.images["t1"]))
        mask = read_volume(storage.read(str(other.mask)), name="seg")
        corrected = np.where(mask.array == 1, 2, mask.array)
        self.copy(storage, other, "Study_002", seg=encode_volume(corrected, mask.affine))
        manifest = self.prepared(storage)
        # Study_001 shows images of both.
        assert {e.patient_id for e in manifest.cases} == {first.patient_id}
        assert manifest.entry("Study_001").patient_names == {first.patient_id, "Study_001"}
        (note,) = manifest.notes
        assert f"Study_001 is {first.case_id} in t1c, t2, flair" in note or "in t1;" in note
        assert f"Study_002 is {other.case_id}; their masks differ" in note

    def test_manifests_without_digests_are_read(self, storage: FileStorage) -> None:
        values = json.loads(self.prepared(storage).to_json())
        del values["notes"]
        for case in values["cases"]:
            for name in ("digests", "same_patient", "notes"):
                del case[name]
            del case["files"]["checksums"]
        old = Manifest.from_json(json.dumps(values))
        assert [e.image_digests for e in old.cases] == [set(), set()]
        assert old.notes == []


def test_files_that_changed_since_are_refused(phantoms: FileStorage, tmp_path: Path) -> None:
    files = discover_cases(phantoms)[0][0]
    storage = FileStorage(str(tmp_path))
    for key in (*files.images.values(), str(files.mask)):
        storage.write(key, phantoms.read(key))
    found, _ = check_case(storage, files)
    assert found is not None
    assert load_case(storage, found.described_files).convention == CONVENTIONS["brats-et4"]
    storage.write(str(files.mask), phantoms.read(files.images["t1"]))
    with pytest.raises(
        CaseError, match=r"_seg\.nii\.gz: has changed since the manifest .*; run jobs/prepare\.py"
    ):
        load_case(storage, found.described_files)


def test_a_manifest_of_another_program_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "My App", "start_url": "/"}')
    with pytest.raises(
        DataError,
        match=rf"^{tmp_path}/manifest\.json: the manifest is not valid \(it states no .* rename the file",
    ):
        load_manifest(str(tmp_path))


def test_a_qform_far_from_the_sform_is_noted(phantoms: FileStorage, tmp_path: Path) -> None:
    storage = FileStorage(str(tmp_path))
    files = discover_cases(phantoms)[0][0]
    for key in (*files.images.values(), str(files.mask)):
        raw = bytearray(gzip.decompress(phantoms.read(key)))
        if key.endswith("_t2.nii.gz"):
            (x,) = struct.unpack_from("<f", raw, 268)  # qoffset_x
            struct.pack_into("<f", raw, 268, x + 37)
        storage.write(key, gzip.compress(bytes(raw)))
    found, problems = check_case(storage, files)
    assert problems == []
    assert found is not None
    (note,) = manifest_of(found).notes
    assert "1 of 1 cases has files to look at: the qform of" in note
    assert "_t2.nii.gz lies up to 37 mm away from its sform, which is used" in note
    unchanged, _ = check_case(phantoms, files)
    assert unchanged is not None
    assert (unchanged.notes, unchanged.digests) == ((), found.digests)


def test_unknown_names_are_rejected() -> None:
    manifest = manifest_of(entry("A"))
    with pytest.raises(
        UsageError, match="'validation' is not a split; use train, val, test, labelled or all"
    ):
        manifest.select("validation")
    with pytest.raises(UsageError, match="No case 'B' in data"):
        manifest.entry("B")


class TestCollectionConvention:
    def test_a_cavity_without_enhancement_is_detected_by_its_name(self) -> None:
        names = {"layout": "brats2023", "ncr": 0, "ed": 5, "et": 7}
        new = manifest_of(entry("BraTS-GLI-00001-100", **names)).entry("BraTS-GLI-00001-100")
        assert (new.convention, new.label_voxels) == ("brats2024", {"ncr": 0, "ed": 5, "et": 0, "rc": 7})

    def test_without_a_name_it_is_asked_for(self) -> None:
        for others in ([], [entry("G-2", layout="brats2023", convention="brats2024", rc=4)]):
            with pytest.raises(
                UsageError,
                match=rf"^{1 + len(others)} of {1 + len(others)} masks, that of G-1 the first, hold the labels .*4, which "
                r"fit .*brats2024 \(1 NCR, 2 ED, 3 ET, 4 RC\).*; state the convention with --labels NAME",
            ):
                manifest_of(entry("G-1", layout="brats2023", ncr=0, ed=5, et=7), *others)

    def test_old_years_may_mix_3_and_4(self) -> None:
        manifest = manifest_of(entry("BraTS2021_1"), entry("BraTS2021_2", convention="brats-et3"))
        assert [e.convention for e in manifest.cases] == ["brats-et4", "brats-et3"]
        with pytest.raises(UsageError, match=r"1, 2, 3, 4, which fit brats2024 .* and brats-ped"):
            manifest_of(entry("A"), entry("B", convention="brats-et3"))

    def test_a_case_with_neither_gets_the_convention_of_the_others(self) -> None:
        neither = entry("G-1", et=0)
        manifest = manifest_of(neither, entry("G-2", convention="brats-et3"))
        assert [e.convention for e in manifest.cases] == ["brats-et3", "brats-et3"]

    def test_a_declared_convention_is_kept(self) -> None:
        declared = entry("M-1", layout="msd", convention="msd", declared="msd")
        assert manifest_of(declared).entry("M-1") == declared


def test_the_json_of_a_manifest_has_a_case_a_line() -> None:
    manifest = manifest_of(entry("a"), entry("b", layout="brats2023", convention="brats-et3"))
    lines = [line for line in manifest.to_json().splitlines() if '"case_id"' in line]
    assert [json.loads(line.rstrip(","))["files"]["case_id"] for line in lines] == ["a", "b"]
    assert Manifest.from_json(manifest.to_json()) == manifest
    nothing = dataclasses.replace(manifest, cases=(), splits={"train": (), "val": (), "test": ()}, folds=())
    assert Manifest.from_json(nothing.to_json()) == nothing
