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
    "mask": ("seg", "segm", "mask", "label"),
}
ROLE_OF = {token: role for role, tokens in _ROLES.items() for token in tokens}
STUDY = re.compile(r"(BraTS-[A-Za-z]+-\d+)-\d+", re.IGNORECASE)


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
class File:
    """One image file by its name: `folder/stem` and an extension."""

    key: str
    folder: str
    stem: str


def patient_of(case_id: str) -> str:
    """The patient of a case: BraTS-GLI-00012-001 is a study of BraTS-GLI-00012; other ids are the patient's."""
    match = STUDY.fullmatch(case_id)
    return match.group(1) if match else case_id


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
