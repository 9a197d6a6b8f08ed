"""Data sets with a dataset.json: the Decathlon's Task01 and raw nnU-Net data.

The order of channels and the meaning of labels are read from dataset.json and never assumed: nnU-Net's own
converters keep the names of BraTS cases and change both.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glioray.cases.casefiles import CaseFiles, File, Problem, build_case, modality_of, patient_of
from glioray.cases.label_names import read_labels
from glioray.config import MODALITIES
from glioray.errors import UsageError
from glioray.storage import Storage

MSD_CHANNELS = ("flair", "t1", "t1c", "t2")
"""The order of the channels in the 4-D files of Task01 of the Medical Segmentation Decathlon."""

DATA_FOLDERS = ("imagesTr", "imagesTs", "labelsTr", "labelsTs")

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})$")
_TASK01 = re.compile(r"BRATS_\d+")


@dataclass(frozen=True)
class Dataset:
    """The statements of a dataset.json.

    Attributes:
        root: the folder that holds it.
        values: its contents; {} if there is none.
        labels: the label convention that the user states for all masks, or None.
    """

    root: str
    values: Mapping[str, Any]
    labels: str | None = None

    @property
    def file(self) -> str:
        """The key of the file."""
        return f"{self.root}/dataset.json".lstrip("/")

    def channels(self, problems: list[Problem]) -> tuple[str, ...] | None:
        """The modality of each channel, from `channel_names` (nnU-Net 2) or `modality` (Decathlon, nnU-Net 1).

        None with a problem added if it does not name the four.
        """
        stated = self.values.get("channel_names") or self.values.get("modality")
        names = _in_order(stated)
        if names is None:
            found = "does not name" if self.values else "is missing or not valid, so that nothing names"
            found += " the modality of each channel"
        else:
            order = tuple(modality_of(name) or name for name in names)
            if sorted(order) == sorted(MODALITIES):
                return order
            found = f"names the channels {', '.join(names)}; expected T1, T1c, T2 and FLAIR in any order"
        advice = 'state them as "channel_names": {"0": "T1", "1": "T1c", "2": "T2", "3": "FLAIR"}'
        problems.append(Problem(case_id="", file=self.file, found=found, advice=advice))
        return None

    def declare(self, case: CaseFiles) -> CaseFiles:
        """The case with the convention of its mask.

        Raises:
            UsageError: the case has a mask, and neither the user nor dataset.json states what its numbers mark.
        """
        if self.labels is not None:
            return replace(case, declared=self.labels)
        convention, found = read_labels(self.values.get("labels"))
        is_task01 = case.layout == "msd" and _TASK01.fullmatch(case.case_id)
        if convention is not None:
            return replace(case, declared=convention.name)
        if case.mask is None or (is_task01 and "labels" not in self.values):
            return replace(case, declared="msd" if is_task01 else None)
        raise UsageError(
            f"{self.file} {found if self.values else 'is missing or not valid'}, so the numbers in the masks could mark "
            'anything; correct its "labels", or state the convention with --labels NAME (labels= in the library)'
        )


def _in_order(stated: Any) -> list[str] | None:
    """The names of channels in order: of a list, of numbers to names, or of names to numbers."""
    if isinstance(stated, list):
        return [str(name) for name in stated] or None
    if not isinstance(stated, dict) or not stated:
        return None
    numbers = {str(key): value for key, value in stated.items()}
    if not all(number.isdigit() for number in numbers):
        numbers = {str(value): key for key, value in stated.items()}
    if not all(number.isdigit() for number in numbers):
        return None
    return [str(numbers[number]) for number in sorted(numbers, key=int)]


def dataset_cases(files: Sequence[File], dataset: Dataset, problems: list[Problem]) -> list[CaseFiles]:
    """The cases of imagesTr and labelsTr, as 4-D files or as one file per channel (_0000).

    Args:
        files: the image files below `dataset.root`.
        dataset: of the folder that holds imagesTr and labelsTr.
        problems: extended in place.

    Raises:
        UsageError: as `Dataset.declare`.
    """
    masks = {f.stem: f.key for f in files if f.folder.rpartition("/")[2].startswith("labels")}
    images = [f for f in files if f.folder.rpartition("/")[2].startswith("images")]
    channelled = [(m["case"], int(m["channel"]), f) for f in images if (m := _CHANNEL.match(f.stem))]
    order = dataset.channels(problems)
    if order is None:
        return []
    cases: list[CaseFiles] = []
    if any(channel == 0 for _, channel, _ in channelled):
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
            cases += build_case(case_id, "nnunet", channels, masks.get(case_id), None, problems)
    else:
        cases += [_of_one_file(file.stem, file.key, order, masks.pop(file.stem, None)) for file in images]
        for case_id, mask in sorted(masks.items()):
            cases += build_case(case_id, "msd", {}, mask, None, problems)
    return [dataset.declare(case) for case in cases]


def linked_cases(keys: set[str], dataset: Dataset, problems: list[Problem]) -> list[CaseFiles]:
    """The cases that nnU-Net's `dataset` lists: {"CASE": {"images": [a file for each channel], "label": file}}.

    Paths are relative to the folder of dataset.json.

    Args:
        keys: of all objects.
        dataset: whose values have `dataset`.
        problems: extended in place.

    Raises:
        UsageError: as `Dataset.declare`.
    """
    order = dataset.channels(problems)
    if order is None:
        return []
    cases: list[CaseFiles] = []
    for case_id, files in sorted(dataset.values["dataset"].items()):
        listed = files if isinstance(files, dict) else {}
        images, label = listed.get("images", []), listed.get("label")
        paths = [*(images if isinstance(images, list) else [images]), *([label] if label else [])]
        found = [posixpath.normpath(posixpath.join(dataset.root, str(path))) for path in paths]
        lost = [str(path) for path, key in zip(paths, found, strict=True) if key not in keys]
        if lost:
            what = f"lists {lost[0]}, which is not below the data"
            advice = "give a folder that holds dataset.json and the files, and paths relative to dataset.json"
            problems.append(Problem(case_id=case_id, file=dataset.file, found=what, advice=advice))
            continue
        mask = found.pop() if label else None
        if len(found) == 1 and len(order) > 1:
            cases.append(_of_one_file(case_id, found[0], order, mask))
        else:
            cases += build_case(
                case_id, "nnunet", dict(zip(order, found, strict=False)), mask, None, problems
            )
    return [dataset.declare(case) for case in cases]


def _of_one_file(case_id: str, image: str, channels: tuple[str, ...], mask: str | None) -> CaseFiles:
    return CaseFiles(
        case_id=case_id,
        patient_id=patient_of(case_id),
        layout="msd",
        images={},
        image=image,
        channels=channels,
        mask=mask,
    )


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
