"""A case by its objects, what a file's name means, and what is wrong with either."""

from __future__ import annotations

import re
from dataclasses import dataclass

from glioray.config import MODALITIES
from glioray.errors import CaseError

_ROLES = {
    "t1": ("t1", "t1n", "t1w"),
    "t1c": ("t1c", "t1ce", "t1gd"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "fla", "t2f"),
    "mask": ("seg", "segm", "segmentation", "mask", "label", "glistrboost"),
}
ROLE_OF = {token: role for role, tokens in _ROLES.items() for token in tokens}
STUDY = re.compile(r"(BraTS-[A-Za-z]+-\d+)-\d+", re.IGNORECASE)
TCGA = re.compile(r"TCGA[-_]([A-Z0-9]{2})[-_]([A-Z0-9]{4})(?![A-Z0-9])", re.IGNORECASE)
"""A patient of The Cancer Genome Atlas, at the beginning of a name."""


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """The objects of one case.

    Attributes:
        case_id: one study of one patient.
        patient_id: the patient; studies of one patient share it.
        layout: "brats2021", "brats2023", "msd", "nnunet", "lgg-1p19q" or "lgg-tif".
        images: modality -> key; empty where `image` or `slices` is set.
        image: the key of one 4-D file, or None.
        slices: the keys of 2-D files, from below upwards; () otherwise.
        channels: the modalities in the order of the 4-D file's or the slices' channels; () otherwise.
        mask: the key of the mask, or None.
        mask_slices: the keys of the masks of `slices`, or ().
        declared: the label convention that the data set's dataset.json states or that its layout always has,
            or None.
    """

    case_id: str
    patient_id: str
    layout: str
    images: dict[str, str]
    image: str | None = None
    channels: tuple[str, ...] = ()
    mask: str | None = None
    declared: str | None = None
    slices: tuple[str, ...] = ()
    mask_slices: tuple[str, ...] = ()

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the case has, in the order of `config.MODALITIES`."""
        return tuple(m for m in MODALITIES if m in self.images or m in self.channels)

    def keys(self) -> tuple[str, ...]:
        """Every object of the case: images in the fixed order of the modalities, then the mask."""
        images = tuple(self.images[m] for m in MODALITIES if m in self.images)
        masks = (self.mask,) if self.mask else ()
        return ((self.image,) if self.image else images) + self.slices + masks + self.mask_slices


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
class File:
    """One image file by its name: `folder/stem` and an extension."""

    key: str
    folder: str
    stem: str


def patient_of(case_id: str) -> str:
    """The patient of a case: BraTS-GLI-00012-001 is a study of BraTS-GLI-00012; other ids are the patient's.

    Patients of The Cancer Genome Atlas are TCGA-CS-4941 however a collection writes it, so that a patient who is
    in two collections stays on one side of a split.
    """
    match = STUDY.fullmatch(case_id)
    if match:
        return match.group(1)
    tcga = TCGA.match(case_id)
    return f"TCGA-{tcga[1]}-{tcga[2]}".upper() if tcga else case_id


def modality_of(name: str) -> str | None:
    """The modality that a channel's or file's name means (`T1Gd`, `t1ce`, `T2-FLAIR`), or None."""
    token = re.sub(r"[^a-z0-9]", "", name.lower())
    role = "flair" if token.endswith("flair") else ROLE_OF.get(token)
    return role if role in MODALITIES else None


def checked_case(
    case_id: str,
    layout: str,
    images: dict[str, str],
    mask: str | None,
    declared: str | None,
    problems: list[Problem],
    expected: tuple[str, ...] = MODALITIES,
) -> list[CaseFiles]:
    """The case, if the modalities expected are there; otherwise a problem that names what is missing."""
    missing = [m for m in expected if m not in images]
    if missing:
        there = ", ".join(m for m in MODALITIES if m in images)
        found = f"has no {' and no '.join(missing)} ({f'only {there}' if there else 'only a mask'})"
        advice = "add what is missing or leave the case out"
        file = next(iter(images.values()), mask or "")
        problems.append(Problem(case_id=case_id, file=file.rpartition("/")[0], found=found, advice=advice))
        return []
    ordered = {m: images[m] for m in expected}
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
