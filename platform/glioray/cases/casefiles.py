"""The objects that make up a case, the meaning of file names, and problems with either."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from glioray.config import MODALITIES
from glioray.errors import CaseError

_ROLES = {
    "t1": ("t1", "t1n", "t1w"),
    "t1c": ("t1c", "t1ce", "t1gd"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "fla", "t2f"),
    "mask": ("seg", "segm", "segmentation", "mask", "label", "glistrboost", "gtv"),
}
ROLE_OF = {token: role for role, tokens in _ROLES.items() for token in tokens}
STUDY = re.compile(r"(BraTS(?:-[A-Za-z]+)+-\d+)-\d+", re.IGNORECASE)
"""Matches the name of one visit of a patient of BraTS 2023 and later; the group names the patient."""

_VISIT = re.compile(
    r"(?P<upenn>UPENN-GBM-\d+)_\d+|(?P<other>.+?)[-_](?:ses|session|timepoint|visit|week)[-_]?\d+(?:[-_].*)?",
    re.IGNORECASE,
)
_KEPT_NUMBER = re.compile(r"BraTS(?:2021_|-GLI-)(\d{5})", re.IGNORECASE)
TCGA = re.compile(r"TCGA[-_]([A-Z0-9]{2})[-_]([A-Z0-9]{4})(?![A-Z0-9])", re.IGNORECASE)
"""Matches a name that begins with a patient of The Cancer Genome Atlas."""


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """The objects of one case.

    Attributes:
        case_id: one study of one patient.
        patient_id: the patient; shared by all studies of the patient.
        layout: "brats2021", "brats2023", "msd", "nnunet", "lgg-1p19q" or "lgg-tif".
        images: modality -> key of a 3-D file; empty if `image` or `slices` is set.
        image: the key of one 4-D file, or None.
        channels: the modalities of the channels of `image` or `slices`, in order; () otherwise.
        mask: the key of the mask, or None.
        declared: the label convention stated by dataset.json or implied by the layout, or None.
        slices: the keys of 2-D files, ordered from the lowest slice to the highest; () otherwise.
        mask_slices: the keys of the masks of `slices`, or ().
        checksums: key -> sha256 of the objects that a manifest describes; `load_case` refuses others.
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
    checksums: dict[str, str] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The case's modalities, in the order of `config.MODALITIES`."""
        return tuple(m for m in MODALITIES if m in self.images or m in self.channels)

    def keys(self) -> tuple[str, ...]:
        """The keys of all objects: images in the order of `config.MODALITIES`, then the mask."""
        images = tuple(self.images[m] for m in MODALITIES if m in self.images)
        masks = (self.mask,) if self.mask else ()
        return ((self.image,) if self.image else images) + self.slices + masks + self.mask_slices


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A problem with a case or a file, for the owner of the data set; `str` is one line."""

    case_id: str
    file: str
    found: str
    advice: str

    def __str__(self) -> str:
        return str(CaseError(self.case_id, self.file, self.found, self.advice))

    @classmethod
    def from_error(cls, error: CaseError) -> Problem:
        """The problem described by an error."""
        return cls(case_id=error.case_id, file=error.file, found=error.found, advice=error.advice)


@dataclass(frozen=True)
class File:
    """An image file's key, split into `folder/stem` and an extension."""

    key: str
    folder: str
    stem: str


def patient_of(case_id: str) -> str:
    """The patient of a case: BraTS-GLI-00012-001 is a study of BraTS-GLI-00012.

    So are UPENN-GBM-00001_21 and sub-01_ses-02 of UPENN-GBM-00001 and sub-01; other ids name the patient. Patients of The Cancer Genome Atlas are written as TCGA-CS-4941 whatever the
    collection's spelling, so that a patient who is in two collections stays on one side of a split.
    """
    match = STUDY.fullmatch(case_id)
    if match:
        return match.group(1)
    tcga = TCGA.match(case_id)
    if tcga:
        return f"TCGA-{tcga[1]}-{tcga[2]}".upper()
    visit = _VISIT.fullmatch(case_id)
    return visit["upenn"] or visit["other"] if visit else case_id


def patient_key(patient_id: str) -> str:
    """The part that the names of one patient in several collections share: BraTS-GLI kept the numbers of BraTS 2021.

    A name that includes a visit, as older versions recorded some, counts as the patient's.
    """
    patient = patient_of(patient_id)
    kept = _KEPT_NUMBER.fullmatch(patient)
    return f"BraTS-GLI-{kept[1]}" if kept else patient


_MODALITY_NAMES = {
    "flair": r".*flair|fla|t2f",
    "t1c": r"t1w?(?:c|ce|cw|gd|gad\w*|km|post\w*|contrast\w*|enhanced)|(?:ce|gd|gad\w*|post\w*|contrast\w*)t1w?",
    "t1": r"t1[wn]?|t1w?(?:native|pre\w*|plain)|(?:native|pre\w*)t1w?",
    "t2": r"t2w?|t2w?tse",
}


def modality_of(name: str) -> str | None:
    """The modality named by a channel (`T1Gd`, `t1ce`, `T2-FLAIR`, `T1-weighted post contrast`), or None."""
    token = (
        re.sub(r"[^a-z0-9]", "", name.lower()).replace("weighted", "w").removeprefix("mri").removeprefix("mr")
    )
    return next((m for m, pattern in _MODALITY_NAMES.items() if re.fullmatch(pattern, token)), None)


def build_case(
    case_id: str,
    layout: str,
    images: dict[str, str],
    mask: str | None,
    declared: str | None,
    problems: list[Problem],
    expected: tuple[str, ...] = MODALITIES,
) -> list[CaseFiles]:
    """The case, if it has the expected modalities; otherwise nothing, and a problem is added.

    Args:
        case_id: one study of one patient.
        layout: of the case, as in `CaseFiles`.
        images: modality -> key; modalities beyond `expected` are ignored.
        mask: the key of the mask, or None.
        declared: the label convention, if it is known.
        problems: extended in place.
        expected: the modalities that the case must have.
    """
    missing = [m for m in expected if m not in images]
    if missing:
        present = ", ".join(m for m in MODALITIES if m in images)
        found = f"has no {' and no '.join(missing)} ({f'only {present}' if present else 'only a mask'})"
        advice = "add the missing files or remove the case"
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
