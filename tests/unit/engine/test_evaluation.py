"""Which cases evaluate a model."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from glioray.api.requests import EvaluationRule
from glioray.cases.casefiles import CaseFiles
from glioray.cases.manifest import CaseEntry, Manifest
from glioray.config import MODALITIES
from glioray.engine import evaluation
from glioray.engine.evaluation import (
    RULES,
    check_rule,
    describe_training,
    files_of,
    patients_of,
    seen_patients,
    select_cases,
)
from glioray.engine.task import Spec
from glioray.errors import DataError, UsageError
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.package import ModelSpec
from glioray.tasks.superres.package import SuperResSpec
from glioray.tasks.superres.recipes import mri_tiny


def _entry(case_id: str, patient_id: str, *, has_mask: bool = True) -> CaseEntry:
    return CaseEntry(
        files=CaseFiles(
            case_id=case_id, patient_id=patient_id, layout="brats2021", images={m: m for m in MODALITIES}
        ),
        checksum=case_id,
        checksums={},
        shape=(8, 8, 8),
        spacing_mm=(1.0, 1.0, 1.0),
        convention="brats-et4" if has_mask else None,
        label_voxels={},
        brain_voxels=1,
    )


@pytest.fixture
def manifest() -> Manifest:
    """Two studies of patient a, one of b and of c, and one of d without a mask."""
    return Manifest(
        data="/data",
        cases=(
            _entry("a1", "a"),
            _entry("a2", "a"),
            _entry("b1", "b"),
            _entry("c1", "c"),
            _entry("d1", "d", has_mask=False),
        ),
        problems=(),
        splits={"train": ("a1", "b1"), "val": ("c1",), "test": ()},
        folds=(("a1", "a2"), ("b1", "c1")),
        seed=0,
    )


def _spec(patients: str = "") -> ModelSpec:
    return ModelSpec(
        config=RunConfig(recipe="test"),
        out_channels=3,
        spacing_mm=(1.0, 1.0, 1.0),
        manifest_hash="",
        train_patients=tuple(patients),
    )


def _ids(entries: list[CaseEntry]) -> list[str]:
    return [entry.case_id for entry in entries]


def test_unseen_goes_by_patients_and_masks(manifest: Manifest):
    def unseen(*patients: str) -> list[str]:
        specs = {f"model {number}": _spec(known) for number, known in enumerate(patients)}
        return _ids(select_cases(manifest, specs, labelled=True))

    assert unseen("a") == ["b1", "c1"]
    assert unseen("bc") == ["a1", "a2"]
    assert unseen("") == ["a1", "a2", "b1", "c1"]
    assert unseen("a", "b") == ["c1"]
    with pytest.raises(
        DataError,
        match="no patient of the 4 labelled cases in '/data' is new to every model: of 3 patients were trained the "
        "model 0 on 3; evaluate on other cases",
    ):
        unseen("abcd")
    used = "trained, or had its thresholds fitted,"
    with pytest.raises(DataError, match="were trained, or had its thresholds fitted, the model on 3"):
        select_cases(manifest, {"model": _spec("abc")}, labelled=True, used=used)


def test_unseen_by_a_super_resolution_model_and_by_its_segmenter(manifest: Manifest):
    def unseen(known: str, segmenter: str, split: str = "unseen") -> list[str]:
        specs: dict[str, Spec] = {
            "super-resolution model": SuperResSpec(
                config=mri_tiny(), spacing_mm=(1, 1, 1), manifest_hash="", train_patients=tuple(known)
            ),
            "segmenter": _spec(segmenter),
        }
        return _ids(select_cases(manifest, specs, split, labelled=False))

    assert unseen("a", "") == ["b1", "c1", "d1"]
    assert unseen("a", "b") == ["c1", "d1"]
    assert unseen("ab", "cd", "val") == ["c1"]
    with pytest.raises(
        DataError,
        match=r"no patient of the 5 .* trained the super-resolution model on 2, the segmenter on 3;",
    ):
        unseen("ab", "bcd")
    with pytest.raises(DataError, match="has no case in the split 'test'"):
        unseen("", "", "test")


def test_unseen_goes_by_images_too(manifest: Manifest, caplog: pytest.LogCaptureFixture):
    """Patient a was trained on as "x": one of its studies shows an image of x, so that both studies are known."""
    digests = {"a2": {"t1": "11", "flair": "12"}, "b1": {"t1": "21", "mask": "13"}}
    cases = tuple(dataclasses.replace(e, digests=digests.get(e.case_id, {})) for e in manifest.cases)
    spec = dataclasses.replace(_spec("x"), train_images=("12", "13"))
    with caplog.at_level("WARNING"):
        found = select_cases(dataclasses.replace(manifest, cases=cases), {"model": spec}, labelled=True)
    assert _ids(found) == ["b1", "c1"]
    assert "2 of 4 cases are of patients of the training under other names" in caplog.text
    assert "a1, a2" in caplog.text


def test_unseen_goes_by_numbers_that_collections_share(manifest: Manifest):
    files = dataclasses.replace(manifest.cases[0].files, patient_id="BraTS-GLI-00012")
    cases = (dataclasses.replace(manifest.cases[0], files=files), *manifest.cases[1:])
    spec = dataclasses.replace(_spec("x"), train_patients=("BraTS2021_00012",))
    found = select_cases(dataclasses.replace(manifest, cases=cases), {"model": spec}, labelled=True)
    assert _ids(found) == ["a2", "b1", "c1"]


def test_a_model_states_names_and_images_of_its_training(manifest: Manifest):
    joined = dataclasses.replace(manifest.cases[2], same_patient="a", digests={"t1": "2", "mask": "9"})
    assert describe_training([manifest.cases[0], joined]) == {
        "train_patients": ("a", "b"),
        "train_images": ("2",),
    }
    # Known by either name.
    for name in "ab":
        assert seen_patients(_spec(name), [joined]) == {"a"}


def test_other_splits(manifest: Manifest):
    def select(split: str) -> list[str]:
        return _ids(select_cases(manifest, {"model": _spec("abc")}, split, labelled=True))

    assert select("val") == ["c1"]
    assert select("labelled") == ["a1", "a2", "b1", "c1"]
    assert select("all") == ["a1", "a2", "b1", "c1"]
    with pytest.raises(DataError, match="'/data' has no labelled case in the split 'test'"):
        select("test")
    with pytest.raises(UsageError, match="'holdout' is not a split"):
        select("holdout")


def test_files_carry_the_convention_of_the_manifest(manifest: Manifest):
    files = files_of(manifest.cases)
    assert [one.case_id for one in files] == _ids(list(manifest.cases))
    assert [one.declared for one in files] == ["brats-et4"] * 4 + [None]
    assert patients_of(manifest.cases) == {"a1": "a", "a2": "a", "b1": "b", "c1": "c", "d1": "d"}


def test_a_rule_that_cannot_be_followed_is_refused(monkeypatch: pytest.MonkeyPatch):
    assert typing.get_args(EvaluationRule) == RULES
    for output in ("labels", "images"):
        check_rule("brats2023", output)
    with pytest.raises(UsageError, match="metrics is 'brats2022'; expected one of brats2023, brats2026"):
        check_rule("brats2022", "labels")
    with pytest.raises(
        UsageError, match="'brats2026', which evaluates masks, but the model makes images; leave"
    ):
        check_rule("brats2026", "images")

    def missing() -> None:
        raise ModuleNotFoundError("No module named 'panoptica'")

    monkeypatch.setattr(evaluation, "find_panoptica", missing)
    with pytest.raises(
        UsageError, match=r"needs panoptica, .* \(No module named 'panoptica'\); install the extra"
    ):
        check_rule("brats2026", "labels")
