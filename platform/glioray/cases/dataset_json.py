"""Data sets with a dataset.json: the Decathlon's Task01 and raw nnU-Net data."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from glioray.cases.casefiles import CaseFiles, File, Problem, build_case, modality_of, patient_of
from glioray.config import MODALITIES
from glioray.storage import Storage

NNUNET_CHANNELS = ("t1", "t1c", "t2", "flair")
"""The order of the channels in an nnU-Net folder without a dataset.json."""

MSD_CHANNELS = ("flair", "t1", "t1c", "t2")
"""The order of the channels in the 4-D files of Task01 of the Medical Segmentation Decathlon."""

DATA_FOLDERS = ("imagesTr", "imagesTs", "labelsTr", "labelsTs")

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})$")


def dataset_cases(
    files: Sequence[File], root: str, meta: Mapping[str, Any], problems: list[Problem]
) -> list[CaseFiles]:
    """The cases of imagesTr and labelsTr, as 4-D files or as one file per channel (_0000).

    Args:
        files: the image files below `root`.
        root: the folder that holds imagesTr and labelsTr.
        meta: contents of its dataset.json, or {}.
        problems: extended in place.
    """
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
        numbered = {file for _, _, file in channelled}
        for other in (file for file in images if file not in numbered):
            found = "has no channel number in its name, unlike the other files in its folder"
            advice = "name it CASE_0000 (or another channel), or remove it"
            problems.append(Problem(case_id="", file=other.key, found=found, advice=advice))
        by_case: dict[str, dict[str, str]] = defaultdict(dict)
        for case_id, channel, file in channelled:
            if channel < len(order):
                by_case[case_id][order[channel]] = file.key
        for case_id in sorted(set(by_case) | set(masks)):
            channels = by_case.get(case_id, {})
            cases += build_case(case_id, "nnunet", channels, masks.get(case_id), declared, problems)
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
        cases += build_case(case_id, "msd", {}, mask, declared, problems)
    return cases


def read_dataset_json(
    storage: Storage, root: str, keys: set[str], problems: list[Problem]
) -> Mapping[str, Any]:
    """Read a folder's dataset.json; {} if it is missing or, with a problem added, not valid."""
    key = f"{root}/dataset.json".lstrip("/")
    if key not in keys:
        return {}
    try:
        meta = json.loads(storage.read(key))
        if not isinstance(meta, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        found = f"is not a valid dataset.json ({error})"
        problems.append(Problem(case_id="", file=key, found=found, advice="restore it or delete it"))
        return {}
    return meta


def _channel_order(
    meta: Mapping[str, Any], root: str, default: tuple[str, ...] | None, problems: list[Problem]
) -> tuple[str, ...] | None:
    """The modality of each channel, from `channel_names` (nnU-Net) or `modality` (Decathlon)."""
    stated = meta.get("channel_names") or meta.get("modality")
    file = f"{root}/dataset.json".lstrip("/")
    advice = 'state them as "channel_names": {"0": "T1", "1": "T1c", "2": "T2", "3": "FLAIR"}'
    if not isinstance(stated, dict):
        if default is None:
            found = "does not name the modality of each channel of the 4-D files"
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
    """The convention stated by `labels` in dataset.json, or None.

    `labels` maps numbers to names, or names to a number or a list of numbers.
    """
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
