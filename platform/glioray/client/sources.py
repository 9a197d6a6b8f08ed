"""Cases as the endpoint takes them: the files of a form, and its fields."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from glioray.api.cases import find_case
from glioray.api.places import absolute_uri
from glioray.cases.casefiles import CaseFiles
from glioray.cases.dataset_json import MSD_CHANNELS
from glioray.cases.load import Case, load_case
from glioray.cases.nifti import encode_volume
from glioray.config import MODALITIES
from glioray.storage import Storage, open_storage, split_uri

Source = str | os.PathLike[str] | Case | Mapping[str, str | os.PathLike[str] | bytes]
"""A case: its folder, or one of several in a folder or `s3://bucket/prefix`; one file with all modalities, or one image;
a case in memory; or files, as paths or bytes, by the names of the endpoint's form: t1, t1c, t2, flair; image; or case,
a zip of its folder."""


class SuperResOptions(TypedDict, total=False):
    """How to super-resolve; what is left out is up to the model.

    Attributes:
        scale: pixels of the result for one of the input, along each axis.
        size: (H, W) of the result's slices, in place of `scale`.
        blend: 0 for the PSNR generator (smooth, faithful) to 1 for the GAN one (sharp, may invent).
        plane: of the slices: axial, coronal or sagittal.
        force: go on with an input that is at high resolution already.
    """

    scale: float
    size: tuple[int, int]
    blend: float
    plane: str
    force: bool


def names_its_files(source: Source) -> bool:
    """Whether a source says itself which files are sent."""
    return isinstance(source, Mapping) or (not isinstance(source, Case) and Path(source).is_file())


def read_source(source: Source, case_id: str | None, wanted: Sequence[str] | None) -> dict[str, bytes]:
    """The files to send, by the names of the endpoint's form.

    Args:
        source: the case.
        case_id: which of several.
        wanted: the modalities that are sent of a folder or a case in memory; None for all.
    """
    if isinstance(source, Case):
        return _encode(source, wanted)
    if isinstance(source, Mapping):
        return {name: data if isinstance(data, bytes) else _read(data) for name, data in source.items()}
    if Path(source).is_file():
        return {"image": _read(source)}
    return read_files(*find_case(os.fspath(source), case_id), wanted)


def _read(path: str | os.PathLike[str]) -> bytes:
    parent, name = split_uri(absolute_uri(os.fspath(path), "source"))
    return open_storage(parent).read(name)


def read_files(storage: Storage, files: CaseFiles, wanted: Sequence[str] | None) -> dict[str, bytes]:
    names = [name for name in files.modalities if wanted is None or name in wanted]
    if files.images:
        return {name: storage.read(files.images[name]) for name in names}
    if files.image is not None and files.channels == MSD_CHANNELS and set(names) == set(MODALITIES):
        return {"image": storage.read(files.image)}
    return _encode(load_case(storage, files, with_mask=False), wanted)


def _encode(case: Case, wanted: Sequence[str] | None) -> dict[str, bytes]:
    return {
        name: encode_volume(image, case.affine)
        for name, image in zip(case.modalities, case.images, strict=True)
        if wanted is None or name in wanted
    }


def form_fields(
    labels: str | None, superresolve: bool, grid: str | None, resample: bool, options: SuperResOptions
) -> dict[str, str]:
    """The text fields of a form to /v1/segment."""
    texts = {
        "labels": labels,
        "superresolve": "true" if superresolve else None,
        "grid": grid,
        "resample": "true" if resample else None,
    }
    sent = {name: text for name, text in texts.items() if text is not None}
    return sent | option_fields(options)


def job_fields(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    labels: str | None,
    uncertainty: bool,
    resample: bool,
) -> dict[str, Any]:
    """The fields of a request to /v1/jobs; places are the endpoint's own, and stay as they are."""
    given = {
        "data": os.fspath(data),
        "out": None if out is None else os.fspath(out),
        "labels": labels,
        "uncertainty": uncertainty or None,
        "resample": resample or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def option_fields(options: SuperResOptions) -> dict[str, str]:
    def text(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return {name: text(value) for name, value in options.items() if value is not None}
