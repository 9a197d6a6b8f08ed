"""Which objects of a data set make up a case: layouts are recognised by their names, never configured."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glioray.config import MODALITIES
from glioray.errors import CaseError
from glioray.storage import Storage

RECOGNISED = """\
BraTS 2017 to 2021      CASE/CASE_{t1,t1ce,t2,flair,seg}.nii.gz
BraTS 2023 and 2024     CASE/CASE-{t1n,t1c,t2w,t2f,seg}.nii.gz
Decathlon (Task01)      dataset.json, imagesTr/CASE.nii.gz with four channels, labelsTr/CASE.nii.gz
nnU-Net raw             imagesTr/CASE_0000.nii.gz to CASE_0003.nii.gz, labelsTr/CASE.nii.gz
(.nii as well as .nii.gz, in folders of any depth)"""
"""What `discover_cases` recognises, as a text for messages."""

NNUNET_CHANNELS = ("t1", "t1c", "t2", "flair")
"""Order of the channels of an nnU-Net folder without a dataset.json."""

MSD_CHANNELS = ("flair", "t1", "t1c", "t2")
"""Order of the channels in the 4-D files of the Medical Segmentation Decathlon's Task01."""

_ROLES = {
    "t1": ("t1", "t1n", "t1w"),
    "t1c": ("t1c", "t1ce", "t1gd"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "fla", "t2f"),
    "mask": ("seg", "segm", "mask", "label"),
}
_ROLE_OF = {token: role for role, tokens in _ROLES.items() for token in tokens}
_BRATS2023_TOKENS = {"t1n", "t2w", "t2f"}
_STUDY = re.compile(r"(BraTS-[A-Za-z]+-\d+)-\d+", re.IGNORECASE)
_LOOKS_LIKE_CASE = re.compile(r"[-_]\d{3,}$")
_NAME = re.compile(r"(?P<stem>.+?)(?P<ext>\.nii(?:\.gz)?)$", re.IGNORECASE)
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})$")
_DATA_FOLDERS = ("imagesTr", "imagesTs", "labelsTr", "labelsTs")


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """The objects of one case.

    Attributes:
        case_id: one study of one patient.
        patient_id: the patient; studies of one patient share it.
        layout: "brats2021", "brats2023", "msd" or "nnunet".
        images: modality -> key; empty where `image` is set.
        image: the key of one 4-D file, or None.
        channels: the modalities in the 4-D file's order; () otherwise.
        mask: the key of the mask, or None.
        declared: the label convention that the data set's dataset.json states, or None.
    """

    case_id: str
    patient_id: str
    layout: str
    images: dict[str, str]
    image: str | None = None
    channels: tuple[str, ...] = ()
    mask: str | None = None
    declared: str | None = None

    def keys(self) -> tuple[str, ...]:
        """Every object of the case: images in the fixed order of the modalities, then the mask."""
        images = (
            (self.image,) if self.image else tuple(self.images[m] for m in MODALITIES if m in self.images)
        )
        return images + ((self.mask,) if self.mask else ())


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something about a case or a file that the data set's owner should know; `str` is one line."""

    case_id: str
    file: str
    found: str
    advice: str

    def __str__(self) -> str:
        return str(CaseError(self.case_id, self.file, self.found, self.advice))

    @classmethod
    def of(cls, error: CaseError) -> Problem:
        """The problem that an error describes."""
        return cls(case_id=error.case_id, file=error.file, found=error.found, advice=error.advice)


@dataclass(frozen=True)
class _File:
    """One image file by its name: `folder/stem` and an extension."""

    key: str
    folder: str
    stem: str


def discover_cases(storage: Storage) -> tuple[list[CaseFiles], list[Problem]]:
    """The cases below a storage's root, sorted by their ids, and what was wrong with their names.

    Only lists keys and reads the dataset.json files; `RECOGNISED` says what is looked for. A case with
    something missing is a problem and no case; a case without a mask is a case.
    """
    keys = [info.key for info in storage.list() if not _is_junk(info.key)]
    problems: list[Problem] = []
    files = _image_files(keys, problems)
    roots = {key.rpartition("/")[0] for key in keys if key.rpartition("/")[2] == "dataset.json"}
    roots |= {f.folder.rpartition("/")[0] for f in files if f.folder.rpartition("/")[2] in _DATA_FOLDERS}
    cases: list[CaseFiles] = []
    named: list[_File] = []
    by_root: dict[str, list[_File]] = defaultdict(list)
    for file in files:
        root, _, last = file.folder.rpartition("/")
        if last in _DATA_FOLDERS and root in roots:
            by_root[root].append(file)
        else:
            named.append(file)
    for root in sorted(by_root):
        meta = _read_dataset_json(storage, root, set(keys), problems)
        cases += _dataset_cases(by_root[root], root, meta, problems)
    cases += _named_cases(named, problems)
    return _without_duplicates(cases, problems), sorted(problems, key=lambda p: (p.case_id, p.file))


def patient_of(case_id: str) -> str:
    """The patient of a case: BraTS-GLI-00012-001 is a study of BraTS-GLI-00012; other ids are the patient's."""
    match = _STUDY.fullmatch(case_id)
    return match.group(1) if match else case_id


def modality_of(name: str) -> str | None:
    """The modality that a channel's or file's name means (`T1Gd`, `t1ce`, `T2-FLAIR`), or None."""
    token = re.sub(r"[^a-z0-9]", "", name.lower())
    role = "flair" if token.endswith("flair") else _ROLE_OF.get(token)
    return role if role in MODALITIES else None


def _is_junk(key: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in key.split("/"))


def _image_files(keys: Iterable[str], problems: list[Problem]) -> list[_File]:
    """The NIfTI files; of a .nii and a .nii.gz of one name, the .nii.gz."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key in keys:
        folder, _, name = key.rpartition("/")
        match = _NAME.match(name)
        if match:
            found[folder, match["stem"]].append(key)
    files = []
    for (folder, stem), same in sorted(found.items()):
        best = min(same, key=lambda key: (not key.lower().endswith(".gz"), key))
        files.append(_File(best, folder, stem))
        for other in sorted(set(same) - {best}):
            advice = "delete one of them if they differ"
            problems.append(
                Problem(case_id="", file=other, found=f"lies beside {best}, which is used", advice=advice)
            )
    return files


def _named_cases(files: Sequence[_File], problems: list[Problem]) -> list[CaseFiles]:
    """Cases whose modality is the last word of the file's name."""
    folders: dict[str, list[_File]] = defaultdict(list)
    for file in files:
        folders[file.folder].append(file)
    cases = []
    for folder, inside in sorted(folders.items()):
        groups: dict[str, list[tuple[str, str, _File]]] = defaultdict(list)
        others = []
        for file in inside:
            prefix, token = _split_name(file.stem)
            role = _ROLE_OF.get(token)
            if role is None:
                others.append(file)
            else:
                groups[prefix].append((role, token, file))
        roles = [role for group in groups.values() for role, _, _ in group]
        name = folder.rpartition("/")[2]
        if folder and groups and len(roles) == len(set(roles)):
            # One case in a folder of its own, whatever its files call it.
            only = next(iter(groups)) if len(groups) == 1 else ""
            case_id = name if not only or _LOOKS_LIKE_CASE.search(name) else only
            members = [item for group in groups.values() for item in group]
            cases += _named_case(case_id, members, others, problems)
        else:
            for prefix, members in sorted(groups.items()):
                cases += _named_case(prefix or name, members, [], problems)
    return cases


def _split_name(stem: str) -> tuple[str, str]:
    match = re.fullmatch(r"(?:(.*)[-_.])?([A-Za-z0-9]+)", stem)
    return (match[1] or "", match[2].lower()) if match else (stem, "")


def _named_case(
    case_id: str, members: Sequence[tuple[str, str, _File]], others: Sequence[_File], problems: list[Problem]
) -> list[CaseFiles]:
    by_role: dict[str, list[str]] = defaultdict(list)
    for role, _, file in members:
        by_role[role].append(file.key)
    for role, keys in by_role.items():
        if len(keys) > 1:
            found = f"is one of {len(keys)} files for {role}: {', '.join(sorted(keys))}"
            advice = "keep one of them"
            problems.append(Problem(case_id=case_id, file=sorted(keys)[1], found=found, advice=advice))
            return []
    if "mask" not in by_role:
        segs = [file.key for file in others if "seg" in file.stem.lower()]
        if len(segs) > 1:
            found = f"is one of {len(segs)} files that may be the mask"
            problems.append(
                Problem(case_id=case_id, file=segs[0], found=found, advice=f"name one {case_id}_seg.nii.gz")
            )
            return []
        by_role["mask"] = segs
    images = {role: keys[0] for role, keys in by_role.items() if role in MODALITIES}
    tokens = {token for _, token, _ in members}
    layout = "brats2023" if _STUDY.fullmatch(case_id) or tokens & _BRATS2023_TOKENS else "brats2021"
    return _checked_case(case_id, layout, images, next(iter(by_role["mask"]), None), None, problems)


def _checked_case(
    case_id: str,
    layout: str,
    images: dict[str, str],
    mask: str | None,
    declared: str | None,
    problems: list[Problem],
) -> list[CaseFiles]:
    """The case, if its four modalities are there; otherwise a problem that names what is missing."""
    missing = [m for m in MODALITIES if m not in images]
    if missing:
        there = ", ".join(m for m in MODALITIES if m in images)
        found = f"has no {' and no '.join(missing)} ({f'only {there}' if there else 'only a mask'})"
        advice = "add what is missing or leave the case out"
        file = next(iter(images.values()), mask or "")
        problems.append(Problem(case_id=case_id, file=file.rpartition("/")[0], found=found, advice=advice))
        return []
    ordered = {m: images[m] for m in MODALITIES}
    return [
        CaseFiles(
            case_id=case_id,
            patient_id=patient_of(case_id),
            layout=layout,
            images=ordered,
            mask=mask,
            declared=declared,
        )
    ]


def _dataset_cases(
    files: Sequence[_File], root: str, meta: Mapping[str, Any], problems: list[Problem]
) -> list[CaseFiles]:
    """Cases of an imagesTr/labelsTr folder: 4-D files, or a file a channel where names end in _0000."""
    masks = {f.stem: f.key for f in files if f.folder.rpartition("/")[2].startswith("labels")}
    images = [f for f in files if f.folder.rpartition("/")[2].startswith("images")]
    channelled = [(m["case"], int(m["channel"]), f) for f in images if (m := _CHANNEL.match(f.stem))]
    is_nnunet = any(channel == 0 for _, channel, _ in channelled)
    order = _channel_order(meta, root, NNUNET_CHANNELS if is_nnunet else None, problems)
    if order is None:
        return []
    declared = _declared_convention(meta)
    cases: list[CaseFiles] = []
    if is_nnunet:
        by_case: dict[str, dict[str, str]] = defaultdict(dict)
        for case_id, channel, file in channelled:
            if channel < len(order):
                by_case[case_id][order[channel]] = file.key
        for case_id in sorted(set(by_case) | set(masks)):
            found = by_case.get(case_id, {})
            cases += _checked_case(case_id, "nnunet", found, masks.get(case_id), declared, problems)
        return cases
    for file in images:
        cases.append(
            CaseFiles(
                case_id=file.stem,
                patient_id=patient_of(file.stem),
                layout="msd",
                images={},
                image=file.key,
                channels=order,
                mask=masks.pop(file.stem, None),
                declared=declared or "msd",
            )
        )
    for case_id, mask in sorted(masks.items()):
        cases += _checked_case(case_id, "msd", {}, mask, declared, problems)
    return cases


def _read_dataset_json(
    storage: Storage, root: str, keys: set[str], problems: list[Problem]
) -> Mapping[str, Any]:
    key = f"{root}/dataset.json".lstrip("/")
    if key not in keys:
        return {}
    try:
        meta = json.loads(storage.read(key))
        if not isinstance(meta, dict):
            raise ValueError("it holds no object")
    except ValueError as error:
        found = f"is not the JSON of a data set ({error})"
        problems.append(Problem(case_id="", file=key, found=found, advice="restore it or delete it"))
        return {}
    return meta


def _channel_order(
    meta: Mapping[str, Any], root: str, default: tuple[str, ...] | None, problems: list[Problem]
) -> tuple[str, ...] | None:
    """The modalities by channel number, from `channel_names` (nnU-Net) or `modality` (Decathlon)."""
    stated = meta.get("channel_names") or meta.get("modality")
    file = f"{root}/dataset.json".lstrip("/")
    advice = 'state them as "channel_names": {"0": "T1", "1": "T1c", "2": "T2", "3": "FLAIR"}'
    if not isinstance(stated, dict):
        if default is None:
            found = "does not say which modality each channel of the 4-D files is"
            problems.append(Problem(case_id="", file=file, found=found, advice=advice))
        return default
    names = [
        str(stated[number]) for number in sorted(stated, key=lambda n: int(n) if n.isdigit() else len(stated))
    ]
    order = tuple(modality_of(name) or name for name in names)
    if sorted(order) != sorted(MODALITIES):
        found = f"names the channels {', '.join(names)}; expected T1, T1c, T2 and FLAIR in any order"
        problems.append(Problem(case_id="", file=file, found=found, advice=advice))
        return None
    return order


def _declared_convention(meta: Mapping[str, Any]) -> str | None:
    """The convention that dataset.json's `labels` spell out: number -> name, or name -> number or numbers."""
    labels = meta.get("labels")
    if not isinstance(labels, dict):
        return None
    numbers: dict[str, set[int]] = {}
    for key, value in labels.items():
        name, number = (value, key) if str(key).isdigit() else (key, value)
        values = number if isinstance(number, list) else [number]
        if all(str(n).isdigit() for n in values):
            numbers[re.sub(r"[^a-z]", "", str(name).lower())] = {int(n) for n in values}
    oedema = next((n for name, n in numbers.items() if "edema" in name or name in ("ed", "snfh")), None)
    core = next((n for name, n in numbers.items() if "core" in name and len(n) > 1), None)
    cavity = next((n for name, n in numbers.items() if "cavity" in name or name == "rc"), None)
    if oedema == {1} or core == {2, 3}:
        return "msd"
    if cavity == {4}:
        return "brats2024"
    if oedema == {2} or core in ({1, 3}, {1, 4}):
        return "brats-et4" if {4} in numbers.values() or core == {1, 4} else "brats-et3"
    return None


def _without_duplicates(cases: Iterable[CaseFiles], problems: list[Problem]) -> list[CaseFiles]:
    kept: dict[str, CaseFiles] = {}
    for case in sorted(cases, key=lambda c: (c.case_id, c.keys())):
        if case.case_id in kept:
            found = f"is a second case of this name beside {kept[case.case_id].keys()[0]}; the first is used"
            problems.append(
                Problem(case_id=case.case_id, file=case.keys()[0], found=found, advice="rename one of them")
            )
        else:
            kept[case.case_id] = case
    return list(kept.values())
