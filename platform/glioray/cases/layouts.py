"""Discovery of cases: layouts are recognised by file names, without configuration."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from glioray.cases.casefiles import ROLE_OF, STUDY, TCGA, CaseFiles, File, Problem, build_case
from glioray.cases.dataset_json import DATA_FOLDERS, Dataset, dataset_cases, linked_cases, read_dataset_json
from glioray.cases.tif_slices import tif_cases
from glioray.config import MODALITIES
from glioray.storage import Storage, Unlisted

RECOGNISED = """\
BraTS 2017 to 2021      CASE/CASE_{t1,t1ce,t2,flair,seg}.nii.gz
BraTS 2023 and 2024     CASE/CASE-{t1n,t1c,t2w,t2f,seg}.nii.gz
Decathlon (Task01)      dataset.json, imagesTr/CASE.nii.gz with four channels, labelsTr/CASE.nii.gz
nnU-Net raw             dataset.json, imagesTr/CASE_0000.nii.gz to CASE_0003.nii.gz, labelsTr/CASE.nii.gz
BraTS-MEN-RT            CASE/CASE_{t1c,gtv}.nii.gz
BraTS-TCGA (LGG, GBM)   TCGA-XX-NNNN/..._{t1,t1Gd,t2,flair,GlistrBoost,GlistrBoost_ManuallyCorrected}.nii.gz
LGG-1p19qDeletion       LGG-NNN/LGG-NNN_{T1,T2}.nii.gz, LGG-NNN-Segmentation.nii.gz: T1 after contrast, and T2
LGG in slices (Buda)    CASE/CASE_1.tif to CASE_N.tif (red T1, green FLAIR, blue T1c), CASE_1_mask.tif (0 and 255)
(.nii as well as .nii.gz, .tif as well as .tiff, in folders of any depth)"""
"""The layouts that `discover_cases` recognises, as text for messages."""

_BRATS2023_TOKENS = {"t1n", "t2w", "t2f"}
_LOOKS_LIKE_CASE = re.compile(r"[-_]\d{3,}$")
_LGG_1P19Q = re.compile(r"LGG[-_]\d{3}", re.IGNORECASE)
_MEN_RT = re.compile(r"BraTS-MEN-RT-\d", re.IGNORECASE)
_TUMOUR_WORDS = {"tumor", "tumour", "lesion", "gtv", "glioma"}
_MASK_WORD = re.compile(r"mask|seg")
# Of the whole brain (BET, HD-BET, SynthStrip, ROBEX), of tissues (FAST, FreeSurfer, SynthSeg), of valid voxels.
_OTHER_WORDS = re.compile(
    r"brain|head|skull|strip|\b(?:hd)?bet\b|robex|icv|tissue|csf|\b[gw]m\b|pve|\bfast\b|aseg|aparc|wmparc|synthseg|parenchyma"
    r"|ventric|cortex|\bvalid\b|fov|foreground|background|\bbody\b"
)
_CORRECTED = re.compile(r"_ManuallyCorrected$", re.IGNORECASE)
_NAME = re.compile(r"(?P<stem>.+?)(?P<ext>\.nii(?:\.gz)?)$", re.IGNORECASE)


def discover_cases(storage: Storage, *, labels: str | None = None) -> tuple[list[CaseFiles], list[Problem]]:
    """The cases below a storage's root, sorted by id, and the problems with their names.

    Only lists keys and reads dataset.json files; `RECOGNISED` lists the layouts. A case without all expected
    modalities is reported as a problem and left out; the mask is optional.

    Args:
        storage: holds the cases.
        labels: the label convention of all masks, if the user states it.

    Raises:
        UsageError: a dataset.json does not say what the labels of its masks mark, and no convention is stated.
    """
    unlisted: list[Unlisted] = []
    keys = [info.key for info in storage.list(unlisted=unlisted) if not _is_junk(info.key)]
    problems = [
        Problem(case_id="", file=item.key, found=item.found, advice=item.advice)
        for item in unlisted
        if not _is_junk(item.key)
    ]
    files = _image_files(keys, problems)
    roots = {key.rpartition("/")[0] for key in keys if key.rpartition("/")[2] == "dataset.json"}
    roots |= {f.folder.rpartition("/")[0] for f in files if f.folder.rpartition("/")[2] in DATA_FOLDERS}
    datasets = {
        root: Dataset(root, read_dataset_json(storage, root, set(keys), problems), labels)
        for root in sorted(roots)
    }
    cases: list[CaseFiles] = []
    for dataset in datasets.values():
        if isinstance(dataset.values.get("dataset"), dict):
            cases += linked_cases(set(keys), dataset, problems)
    linked = set().union(*(case.keys() for case in cases))
    named: list[File] = []
    by_root: dict[str, list[File]] = defaultdict(list)
    for file in files:
        root, _, last = file.folder.rpartition("/")
        if file.key in linked:
            continue
        if last in DATA_FOLDERS and root in roots:
            by_root[root].append(file)
        else:
            named.append(file)
    for root in sorted(by_root):
        cases += dataset_cases(by_root[root], datasets[root], problems)
    cases += [replace(case, declared=labels or case.declared) for case in _named_cases(named, problems)]
    cases += [replace(case, declared=labels or case.declared) for case in tif_cases(keys, problems)]
    return _without_duplicates(cases, problems), sorted(problems, key=lambda p: (p.case_id, p.file))


def _is_junk(key: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in key.split("/"))


def _image_files(keys: Iterable[str], problems: list[Problem]) -> list[File]:
    """The NIfTI files; if a .nii and a .nii.gz share a name, the .nii.gz."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key in keys:
        folder, _, name = key.rpartition("/")
        match = _NAME.match(name)
        if match:
            found[folder, match["stem"]].append(key)
    files = []
    for (folder, stem), same in sorted(found.items()):
        best = min(same, key=lambda key: (not key.lower().endswith(".gz"), key))
        files.append(File(best, folder, stem))
        for other in sorted(set(same) - {best}):
            ignored = f"is ignored in favour of {best}"
            advice = "delete one of them if they differ"
            problems.append(Problem(case_id="", file=other, found=ignored, advice=advice))
    return files


def _named_cases(files: Sequence[File], problems: list[Problem]) -> list[CaseFiles]:
    """Cases whose file names end in the modality."""
    folders: dict[str, list[File]] = defaultdict(list)
    corrected = {(f.folder, _CORRECTED.sub("", f.stem)) for f in files if _CORRECTED.search(f.stem)}
    for file in files:
        if (file.folder, file.stem) not in corrected:
            folders[file.folder].append(file)
    cases = []
    for folder, inside in sorted(folders.items()):
        groups: dict[str, list[tuple[str, str, File]]] = defaultdict(list)
        others, derived = [], []
        case_names = {name for name, token in (_split_name(file.stem) for file in inside) if _is_image(token)}
        for file in inside:
            prefix, token = _split_name(file.stem)
            role = ROLE_OF.get(token)
            if is_derived_mask(file.stem, case_names):
                derived.append(file)
            elif role is None:
                others.append(file)
            else:
                groups[prefix].append((role, token, file))
        roles = [role for group in groups.values() for role, _, _ in group]
        name = folder.rpartition("/")[2]
        found: list[CaseFiles] = []
        if folder and groups and len(roles) == len(set(roles)):
            # A folder of one case, even if its files have other names.
            only = next(iter(groups)) if len(groups) == 1 else ""
            is_case = _LOOKS_LIKE_CASE.search(name) or TCGA.fullmatch(name)
            case_id = name if not only or is_case else only
            members = [item for group in groups.values() for item in group]
            found = _named_case(case_id, members, others, problems)
        else:
            for prefix, members in sorted(groups.items()):
                found += _named_case(prefix or name, members, [], problems)
        _report_derived(derived, found, problems)
        cases += found
    return cases


def is_derived_mask(stem: str, case_names: Collection[str]) -> bool:
    """Whether a file's name says that it is a mask of the brain, of a tissue or of one image, not of the tumour.

    Args:
        stem: of the file.
        case_names: of the cases in its folder: the names of images without the modality.
    """
    # A folder may hold a hundred thousand cases: look the stem's beginnings up, rather than go through all names.
    ends = (end for end in range(len(stem) + 1) if not re.match("[A-Za-z0-9]", stem[end : end + 1]))
    known = next((end for end in ends if stem[:end] in case_names), 0)
    words = re.findall(r"[a-z]+\d?[a-z]*|\d+", stem[known:].lower())
    text = " ".join(words)
    if not _MASK_WORD.search(text) or not _TUMOUR_WORDS.isdisjoint(words):
        return False
    return bool(_OTHER_WORDS.search(text)) or ("mask" in words and any(map(_is_image, words)))


def _is_image(token: str) -> bool:
    return ROLE_OF.get(token) in MODALITIES


def _report_derived(derived: Sequence[File], cases: Sequence[CaseFiles], problems: list[Problem]) -> None:
    """Say of cases that are left without a mask that a file beside their images was not taken for it."""
    unlabelled = [case.case_id for case in cases if case.mask is None]
    if not derived or not unlabelled:
        return
    found = "is not taken for the tumour's mask: its name says that it is derived from the images"
    advice = "name the tumour's mask CASE_seg.nii.gz, if it is one"
    for file in derived:
        case_id = unlabelled[0] if len(cases) == 1 else ""
        problems.append(Problem(case_id=case_id, file=file.key, found=found, advice=advice))


def _split_name(stem: str) -> tuple[str, str]:
    match = re.fullmatch(r"(?:(.*)[-_.])?([A-Za-z0-9]+)", _CORRECTED.sub("", stem))
    return (match[1] or "", match[2].lower()) if match else (stem, "")


def _named_case(
    case_id: str, members: Sequence[tuple[str, str, File]], others: Sequence[File], problems: list[Problem]
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
            found, advice = f"is one of {len(segs)} possible masks", f"name the mask {case_id}_seg.nii.gz"
            problems.append(Problem(case_id=case_id, file=segs[0], found=found, advice=advice))
            return []
        by_role["mask"] = segs
    images = {role: keys[0] for role, keys in by_role.items() if role in MODALITIES}
    mask = next(iter(by_role["mask"]), None)
    if _LGG_1P19Q.fullmatch(case_id) and not {"t1c", "flair"} & set(images):
        # T1 in this collection is T1 after contrast.
        images = {{"t1": "t1c"}.get(role, role): key for role, key in images.items()}
        return build_case(case_id, "lgg-1p19q", images, mask, "wt", problems, expected=("t1c", "t2"))
    if _MEN_RT.match(case_id):
        # Planned on T1 after contrast alone, in its native space.
        return build_case(case_id, "brats2023", images, mask, None, problems, expected=("t1c",))
    tokens = {token for _, token, _ in members}
    layout = "brats2023" if STUDY.fullmatch(case_id) or tokens & _BRATS2023_TOKENS else "brats2021"
    return build_case(case_id, layout, images, mask, None, problems)


def _without_duplicates(cases: Iterable[CaseFiles], problems: list[Problem]) -> list[CaseFiles]:
    kept: dict[str, CaseFiles] = {}
    for case in sorted(cases, key=lambda c: (c.case_id, c.keys())):
        if case.case_id in kept:
            found = (
                f"is a second case of this name and is ignored in favour of {kept[case.case_id].keys()[0]}"
            )
            problems.append(
                Problem(case_id=case.case_id, file=case.keys()[0], found=found, advice="rename one of them")
            )
        else:
            kept[case.case_id] = case
    return list(kept.values())
