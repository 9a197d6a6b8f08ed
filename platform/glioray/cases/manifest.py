"""The manifest of a data set: its valid cases and its splits.

`check_case` runs in workers, one case at a time; `build_manifest` combines the results.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from glioray.cases.casefiles import CaseFiles, Problem, patient_key
from glioray.cases.collections import decide_conventions, group_of, read_numbers
from glioray.cases.content import content_digests
from glioray.cases.conventions import STATE_LABELS, LabelConvention, find_convention
from glioray.cases.fingerprint import Fingerprint, measure_fingerprint
from glioray.cases.labels import LABELS, labels_in
from glioray.cases.load import Case, assemble_case, brain_mask, check_tumour_size
from glioray.cases.nifti import read_volume
from glioray.cases.notes import collection_notes
from glioray.cases.splits import SPLITS, fold_patients, split_patients
from glioray.errors import CaseError, DataError, GliorayError, StorageError, UsageError
from glioray.serialization import from_dict, to_dict
from glioray.storage import Storage, join_uri, open_storage, split_uri

MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class CaseEntry:
    """A valid case.

    Attributes:
        files: its objects.
        checksum: sha256 over the sorted sha256s of its objects.
        checksums: key -> sha256 of the object.
        shape: (X, Y, Z) in RAS+ order; of the segmented slices only, if `load_case` cuts to them.
        spacing_mm: voxel edges in RAS+ order; 1 x 1 x 1 if the files state none (layout "lgg-tif").
        convention: the name of the mask's label convention, or None without a mask.
        label_voxels: the number of voxels of ncr, ed, et and rc; empty without a mask.
        brain_voxels: the number of voxels that are not background in at least one modality.
        digests: modality, or "mask" -> digest of its content (`content_digests`).
        same_patient: the patient that the case belongs to by its images, if its name says another; or "".
        notes: `Case.notes`.
        fingerprint: `cases.fingerprint` of the images; empty in a manifest of an older version.
    """

    files: CaseFiles
    checksum: str
    checksums: dict[str, str]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    convention: str | None
    label_voxels: dict[str, int]
    brain_voxels: int
    digests: dict[str, str] = field(default_factory=dict)
    same_patient: str = ""
    notes: tuple[str, ...] = ()
    fingerprint: Fingerprint = field(default_factory=dict)

    @property
    def case_id(self) -> str:
        return self.files.case_id

    @property
    def patient_id(self) -> str:
        return self.same_patient or self.files.patient_id

    @property
    def patient_names(self) -> set[str]:
        """The patient's names: by the images, and by the case's own name."""
        return {self.patient_id, self.files.patient_id}

    @property
    def image_digests(self) -> set[str]:
        """The digests of the images alone."""
        return {digest for name, digest in self.digests.items() if name != "mask"}

    @property
    def described_files(self) -> CaseFiles:
        """The files with what the manifest states of them: the convention, and the checksums to compare."""
        convention = self.convention or self.files.declared
        return dataclasses.replace(self.files, declared=convention, checksums=self.checksums)

    @property
    def has_mask(self) -> bool:
        return self.convention is not None

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.files.modalities

    @property
    def tumour_voxels(self) -> int:
        """The number of voxels of the whole tumour."""
        return sum(count for name, count in self.label_voxels.items() if name != "rc")

    @property
    def labelled_regions(self) -> tuple[str, ...]:
        """The regions of WT, TC and ET that the mask defines; () without a mask."""
        return find_convention(self.convention).regions if self.convention is not None else ()


def check_case(
    storage: Storage, files: CaseFiles, *, is_stated: bool = False
) -> tuple[CaseEntry | None, list[Problem]]:
    """The entry of a case, or None and its problem; never raises on bad data.

    Reads each object once. The entry's convention is provisional until `build_manifest` has seen all cases.

    Args:
        storage: holds the objects of the case.
        files: its objects.
        is_stated: whether the user stated the convention of the masks, which then may be of any size.
    """
    entry, problems, _ = examine_case(storage, files, is_stated=is_stated)
    return entry, problems


def examine_case(
    storage: Storage, files: CaseFiles, *, is_stated: bool = False
) -> tuple[CaseEntry | None, list[Problem], Case | None]:
    """As `check_case`, with the decoded case, or None if it is not valid."""
    checksums: dict[str, str] = {}

    def read(key: str) -> bytes:
        data = storage.read(key)
        checksums[key] = hashlib.sha256(data).hexdigest()
        return data

    try:
        case = assemble_case(files, read, is_provisional=True)
        brain_voxels = int(np.count_nonzero(brain_mask(case.images)))
        if case.mask is not None and not is_stated:
            check_tumour_size(case, files.mask or "", brain_voxels)
    except CaseError as error:
        return None, [Problem.from_error(error)], None
    except StorageError as error:
        advice = "check that its files can be read"
        return None, [Problem(case_id=files.case_id, file="", found=str(error), advice=advice)], None
    counts: dict[str, int] = {}
    if case.mask is not None:
        found = np.bincount(case.mask[case.mask > 0], minlength=len(LABELS))
        counts = {name: int(found[label]) for label, name in enumerate(LABELS) if label > 0}
    x, y, z = case.images.shape[1:]
    images, modalities, mask = _whole(case)
    entry = CaseEntry(
        files=files,
        checksum=hashlib.sha256("\n".join(sorted(checksums.values())).encode()).hexdigest(),
        checksums=checksums,
        shape=(x, y, z),
        spacing_mm=case.spacing_mm,
        convention=case.convention.name if case.convention is not None else None,
        label_voxels=counts,
        brain_voxels=brain_voxels,
        digests=content_digests(images, modalities, mask),
        notes=case.notes,
        fingerprint=measure_fingerprint(images, modalities, case.spacing_mm),
    )
    return entry, [], case


def _whole(case: Case) -> tuple[np.ndarray, tuple[str, ...], np.ndarray | None]:
    """The images, their modalities and the mask of a case, all uncut."""
    full, mask = case.full_volume, case.mask
    if full is None:
        return case.images, case.modalities, mask
    if mask is not None:
        cut, mask = mask, np.zeros(full.images.shape[1:], np.uint8)
        mask[(slice(None),) * full.axis + (full.kept,)] = cut
    return full.images, case.modalities, mask


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A data set: its valid cases, the problems found, and its splits.

    Attributes:
        data: the URI that the cases' keys are relative to.
        cases: the valid cases, sorted by id.
        problems: with the names or the contents of files.
        splits: "train", "val" and "test" -> case ids; cases without a mask are in no split.
        folds: the case ids of each fold, over the same labelled cases.
        seed: of the folds, and of the splits if they are shuffled.
    """

    data: str
    cases: tuple[CaseEntry, ...]
    problems: tuple[Problem, ...]
    splits: dict[str, tuple[str, ...]]
    folds: tuple[tuple[str, ...], ...]
    seed: int

    @property
    def hash(self) -> str:
        """Sixteen hex digits of a hash over contents, label conventions and splits."""
        contents = {entry.case_id: [entry.checksum, entry.convention] for entry in self.cases}
        text = json.dumps([contents, self.splits], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def notes(self) -> list[str]:
        """Caveats that a reader of the metrics should know (`collection_notes`)."""
        return collection_notes(self.cases)

    def entry(self, case_id: str) -> CaseEntry:
        """The case with that id. Raises: UsageError if there is none, with some of the valid ids."""
        for entry in self.cases:
            if entry.case_id == case_id:
                return entry
        examples = ", ".join(entry.case_id for entry in self.cases[:5])
        raise UsageError(f"No case '{case_id}' in {self.data}; it has {len(self.cases)}: {examples} …")

    def select(self, split: str) -> list[CaseEntry]:
        """The cases of "train", "val" or "test", "labelled" (with a mask) or "all", sorted by id."""
        if split == "all":
            return list(self.cases)
        if split == "labelled":
            return [entry for entry in self.cases if entry.has_mask]
        if split not in self.splits:
            raise UsageError(f"'{split}' is not a split; use {', '.join(SPLITS)}, labelled or all")
        wanted = set(self.splits[split])
        return [entry for entry in self.cases if entry.case_id in wanted]

    def with_fold(self, fold: int) -> Manifest:
        """A copy whose "val" is that fold and whose "train" is all other folds."""
        if not 0 <= fold < len(self.folds):
            raise UsageError(f"No fold {fold} in the manifest; it has {len(self.folds)}, numbered from 0")
        others = (case_id for index, ids in enumerate(self.folds) if index != fold for case_id in ids)
        splits = {"train": tuple(sorted(others)), "val": self.folds[fold], "test": ()}
        return dataclasses.replace(self, splits=splits)

    def with_folds(self, num_folds: int) -> Manifest:
        """A copy with the labelled cases divided into `num_folds` folds by patient.

        Patients of "test" are in no fold, so that they can test the model chosen by cross-validation. If there
        are fewer patients than folds, there are as many folds as patients.

        Raises:
            UsageError: fewer than two folds, or fewer than two labelled patients outside "test".
        """
        held_back = {entry.patient_id for entry in self.select("test")}
        cases_of: dict[str, list[str]] = {}
        for entry in self.select("labelled"):
            if entry.patient_id not in held_back:
                cases_of.setdefault(entry.patient_id, []).append(entry.case_id)
        if len(cases_of) < 2:
            outside = f" outside its test split of {len(held_back)}" if held_back else ""
            raise UsageError(
                f"{self.data} has {len(cases_of)} labelled patients{outside}; cross-validation needs at least two"
            )
        folds = fold_patients(cases_of, num_folds, seed=self.seed)
        dealt = (sorted(case_id for patient in fold for case_id in cases_of[patient]) for fold in folds)
        return dataclasses.replace(self, folds=tuple(tuple(ids) for ids in dealt))

    def to_json(self) -> str:
        """The manifest as JSON, a case a line, for `from_json`; its notes are for readers."""
        values = {"format": _FORMAT, "hash": self.hash, "notes": self.notes}
        values |= to_dict(dataclasses.replace(self, cases=()))
        del values["cases"]
        # One case at a time: as one indented tree, a hundred thousand took gigabytes.
        cases = ",\n".join(f"  {json.dumps(to_dict(entry))}" for entry in self.cases)
        return f'{json.dumps(values, indent=1)[:-2]},\n "cases": [\n{cases}\n ]\n}}'

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Parse the JSON written by `to_json`.

        Raises:
            DataError: not a manifest, another format, or contents that do not match the hash.
        """
        try:
            values = json.loads(text)
            if not isinstance(values, dict) or not {"format", "hash"} <= set(values):
                raise UsageError("it states no format and no hash")
            form, stated = values.pop("format"), values.pop("hash")
            values.pop("notes", None)  # follow from the cases
            if form != _FORMAT:
                raise UsageError(f"its format is {form}; expected {_FORMAT}")
            manifest = from_dict(cls, values)
        except ValueError as error:
            raise DataError(
                f"the manifest is not valid ({error}); create it again with jobs/prepare.py, or rename the file if "
                "another program wrote it"
            ) from error
        if manifest.hash != stated:
            raise DataError(
                f"the manifest was changed: it states the hash {stated} but has {manifest.hash}; "
                "create it again with jobs/prepare.py"
            )
        return manifest

    def save(self, storage: Storage, key: str = MANIFEST) -> None:
        """Write the manifest atomically."""
        storage.write(key, self.to_json().encode())


def load_manifest(uri: str) -> Manifest:
    """Load a manifest by its URI (`….json`) or the URI of its folder.

    Raises:
        StorageError: it cannot be read.
        DataError: it is not a manifest, or was changed; names the file.
    """
    folder, key = split_uri(uri) if uri.endswith(".json") else (uri, MANIFEST)
    storage = open_storage(folder)
    try:
        return Manifest.from_json(storage.read(key))
    except DataError as error:
        raise DataError(f"{join_uri(storage.uri, key)}: {error}") from error


def build_manifest(
    storage_uri: str,
    checked: Iterable[tuple[CaseEntry | None, list[Problem]]],
    *,
    seed: int = 0,
    ratios: tuple[float, float, float] = (0.8, 0.2, 0.0),
    num_folds: int = 5,
    shuffle: bool = False,
) -> Manifest:
    """Combine results of `check_case`, in any order, into a manifest.

    Splits never divide a patient. Cases that share an image belong to one patient, whatever their names.

    Args:
        storage_uri: the URI that the cases' keys are relative to.
        checked: the results.
        seed: of the folds, and of the splits if they are shuffled.
        ratios: fractions of patients in "train", "val" and "test".
        num_folds: for cross-validation.
        shuffle: as in `split_patients`.

    Raises:
        UsageError: invalid ratios or number of folds, or masks that several label conventions fit.
    """
    answers = list(checked)
    problems = sorted({p for _, found in answers for p in found}, key=lambda p: (p.case_id, p.file, p.found))
    cases = _unify_conventions(sorted((e for e, _ in answers if e is not None), key=lambda e: e.case_id))
    cases = _join_patients(cases)
    cases_of: dict[str, list[str]] = {}
    for entry in cases:
        if entry.has_mask:
            cases_of.setdefault(entry.patient_id, []).append(entry.case_id)

    def of_patients(patients: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(case_id for patient in patients for case_id in cases_of[patient]))

    splits = split_patients(cases_of, ratios, seed=seed, shuffle=shuffle)
    folds = fold_patients(cases_of, num_folds, seed=seed)
    return Manifest(
        data=storage_uri,
        cases=tuple(cases),
        problems=tuple(problems),
        splits={name: of_patients(patients) for name, patients in splits.items()},
        folds=tuple(of_patients(patients) for patients in folds),
        seed=seed,
    )


def check_conventions(manifest: Manifest, labels: str | None) -> None:
    """Check the conventions of a manifest that was made before against what is stated and known now.

    Raises:
        UsageError: they are not those that `labels` states or, where nothing is stated, not those that its names and
            numbers tell now.
    """
    advice = f"prepare {manifest.data} again"
    for entry in manifest.cases:
        if labels is not None and entry.convention not in (None, labels):
            raise UsageError(
                f"the manifest reads the masks of {manifest.data} as {entry.convention}, but labels is {labels}; "
                f"{advice} with --labels {labels}, or leave the flag out"
            )
    if labels is not None:
        return
    try:
        again = _unify_conventions(list(manifest.cases))
    except UsageError as error:
        raise UsageError(
            f"the manifest was made without a stated convention: {error}, and {advice}"
        ) from None
    for entry, now in zip(manifest.cases, again, strict=True):
        if now.convention != entry.convention:
            raise UsageError(
                f"the manifest reads the mask of {entry.case_id} as {entry.convention}, but masks of its collection are "
                f"{now.convention}; {advice}, with --labels {entry.convention} if that is right"
            )


def _join_patients(entries: list[CaseEntry]) -> list[CaseEntry]:
    """The entries, those of patients who share an image or a key under the first of these patients' names."""
    joined: dict[str, set[str]] = {}  # patient -> all patients who are the same one
    owners: dict[str, str] = {}
    for entry in entries:
        name = entry.files.patient_id
        same = joined.setdefault(name, {name})
        for shared in entry.image_digests | {patient_key(name)}:
            same |= joined[owners.setdefault(shared, name)]
        joined.update(dict.fromkeys(same, same))
    return [
        dataclasses.replace(entry, same_patient="" if first == entry.files.patient_id else first)
        for entry in entries
        for first in [min(joined[entry.files.patient_id])]
    ]


def _unify_conventions(entries: list[CaseEntry]) -> list[CaseEntry]:
    """The entries with the conventions that all masks of a collection tell together.

    A case of BraTS 2024 with a resection cavity (4) but no enhancing tumour (3) looks like one of BraTS 2017
    to 2021; a case with neither could be from any year.

    Raises:
        UsageError: several conventions fit.
    """
    asked = [entry for entry in entries if entry.convention is not None and entry.files.declared is None]
    decided = decide_conventions([(entry.files, set(_stored_counts(entry))) for entry in asked])
    return [
        _reread(entry, decided[entry.case_id]) if entry.case_id in decided else entry for entry in entries
    ]


def declare_conventions(storage: Storage, cases: Sequence[CaseFiles]) -> list[CaseFiles]:
    """The cases with the conventions that their masks have or, without one, should have; reads masks only.

    A case whose mask cannot be read stays as it is.

    Raises:
        UsageError: several conventions fit.
    """

    def read_labels(files: CaseFiles) -> set[int] | None:
        try:
            return labels_in(read_volume(storage.read(str(files.mask)), name=str(files.mask)).array)
        except GliorayError:
            return None

    asked = [files for files in cases if files.declared is None]
    labelled = [files for files in asked if files.mask is not None]
    with ThreadPoolExecutor() as threads:
        numbers = list(threads.map(read_labels, labelled))
    read = [(files, found) for files, found in zip(labelled, numbers, strict=True) if found is not None]
    decided = decide_conventions(read)
    together: dict[str, set[int]] = {}
    for files, found in read:
        together.setdefault(group_of(files), set()).update(found)
    for files in asked:
        if files.mask is None:
            reading = read_numbers(set(), files, together.get(group_of(files), set()))
            if not reading.is_decided:
                raise UsageError(
                    f"nothing says which numbers the mask of {files.case_id} should have; {STATE_LABELS}"
                )
            decided[files.case_id] = reading.candidates[0]
    return [
        dataclasses.replace(files, declared=decided[files.case_id].name)
        if files.case_id in decided
        else files
        for files in cases
    ]


def _stored_counts(entry: CaseEntry) -> dict[int, int]:
    """Number in the file -> count of voxels, for the numbers that occur."""
    if entry.convention is None:
        return {}
    internal = find_convention(entry.convention).to_internal
    stored = {LABELS[label]: number for number, label in internal.items()}
    return {stored[name]: count for name, count in entry.label_voxels.items() if count}


def _reread(entry: CaseEntry, convention: LabelConvention) -> CaseEntry:
    """The entry with its mask read by another convention."""
    if entry.convention == convention.name:
        return entry
    counts = dict.fromkeys(LABELS[1:], 0)
    for number, count in _stored_counts(entry).items():
        counts[LABELS[convention.to_internal[number]]] += count
    return dataclasses.replace(entry, convention=convention.name, label_voxels=counts)
