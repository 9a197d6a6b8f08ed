"""Cases stored as tif slices: Buda's collection of lower-grade gliomas.

110 patients of The Cancer Genome Atlas. Each slice is an 8-bit RGB picture of 256 x 256 pixels whose channels
are T1 before contrast, FLAIR and T1 after contrast; its mask is 255 where FLAIR shows tumour and 0 elsewhere.
If a sequence is missing (T1 of 6 patients, T1c of 9), its channel is a copy of FLAIR; such cases are used
unchanged.

The files do not state their geometry. Assumed are voxels of 1 x 1 x 1 mm, so that 1 mm is one voxel and 1 ml is
1000 voxels; radiological orientation, with rows from the front to the back and columns from the patient's right
to the left; and slice numbers that increase from the feet to the head.

Reference: Buda et al. 2019, arXiv:1906.03720.
"""

from __future__ import annotations

import io
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from glioray.cases.casefiles import TCGA, CaseFiles, Problem, patient_of
from glioray.cases.formats import TIFF, identify
from glioray.cases.nifti import Header, Limits, Volume, make_header
from glioray.errors import CaseError

CHANNELS = ("t1", "flair", "t1c")
"""The modalities in the red, green and blue channels."""

_NAME = re.compile(r"(?P<case>.+)_(?P<number>\d{1,6})(?P<mask>_mask)?\.tiff?", re.IGNORECASE)
_MAX_SIDE = 4096
# Columns run to the patient's left and rows to the back; RAS+ reverses both.
_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass
class _NumberedFiles:
    images: dict[int, str] = field(default_factory=dict)
    masks: dict[int, str] = field(default_factory=dict)


def tif_cases(keys: Iterable[str], problems: list[Problem]) -> list[CaseFiles]:
    """The cases of tif slices among these keys.

    Files are CASE/CASE_1.tif, CASE/CASE_1_mask.tif and so on, or TCGA_..._1.tif in any folder. A case with a
    missing or repeated number, or with masks for only some slices, is reported as a problem.
    """
    found: dict[tuple[str, str], _NumberedFiles] = defaultdict(_NumberedFiles)
    repeated: dict[tuple[str, str], str] = {}
    for key in sorted(keys):
        folder, _, name = key.rpartition("/")
        match = _NAME.fullmatch(name)
        if match and (folder.rpartition("/")[2] == match["case"] or TCGA.match(name)):
            case = found[folder, match["case"]]
            files = case.masks if match["mask"] else case.images
            if int(match["number"]) in files:
                repeated[folder, match["case"]] = key
            files[int(match["number"])] = key
    cases = []
    for (folder, case_id), numbered in sorted(found.items()):
        file = repeated.get((folder, case_id), folder)
        fault = "repeats the number of another slice" if (folder, case_id) in repeated else _fault(numbered)
        if fault:
            advice = "correct the slices or leave the case out"
            problems.append(Problem(case_id=case_id, file=file, found=fault, advice=advice))
            continue
        order = sorted(numbered.images)
        cases.append(
            CaseFiles(
                case_id=case_id,
                patient_id=patient_of(case_id),
                layout="lgg-tif",
                images={},
                channels=CHANNELS,
                slices=tuple(numbered.images[number] for number in order),
                mask_slices=tuple(numbered.masks[number] for number in order) if numbered.masks else (),
                declared="wt-255",
            )
        )
    return cases


def _fault(case: _NumberedFiles) -> str | None:
    """The problem with a case's numbers, or None."""
    images, masks = set(case.images), set(case.masks)
    if not images:
        return "has masks but no slices"
    # Numbers usually start at 1, sometimes at 0.
    missing = set(range(min(1, *images), max(images))) - images
    if missing:
        return f"has no slice {_numbers(missing)}; expected {min(1, *images)} to {max(images)}"
    if images - masks and masks:
        return f"has no mask for slice {_numbers(images - masks)}"
    if masks - images:
        return f"has a mask but no image for slice {_numbers(masks - images)}"
    return None


def _numbers(numbers: set[int]) -> str:
    first = sorted(numbers)[:3]
    more = f" and {len(numbers) - len(first)} more" if len(numbers) > len(first) else ""
    return ", ".join(map(str, first)) + more


def read_slices(files: CaseFiles, read: Callable[[str], bytes], limits: Limits) -> dict[str, Volume]:
    """Modality -> volume, (X, Y, Z) uint8 in the order of the pictures: columns, rows, slices.

    Raises:
        CaseError: a file is not an 8-bit RGB tif, cannot be decoded, or differs in size.
    """
    header, pixels = _read_stack(files, files.slices, read, "RGB", limits)
    # (Z, Y, X, C) in memory is (C, X, Y, Z) with x fastest.
    return {
        modality: Volume(array=pixels[..., channel].transpose(2, 1, 0), header=header)
        for channel, modality in enumerate(files.channels)
    }


def read_mask_slices(files: CaseFiles, read: Callable[[str], bytes], limits: Limits) -> Volume:
    """The mask, (X, Y, Z) uint8, in the axis order and with the label numbers of the files.

    Raises:
        CaseError: a file is not an 8-bit grey tif, cannot be decoded, or differs in size.
    """
    header, pixels = _read_stack(files, files.mask_slices, read, "L", limits)
    return Volume(array=pixels.transpose(2, 1, 0), header=header)


def _read_stack(
    files: CaseFiles, keys: Sequence[str], read: Callable[[str], bytes], mode: str, limits: Limits
) -> tuple[Header, np.ndarray]:
    """The header of a stack of slices and its pixels, (Z, Y, X) or (Z, Y, X, 3) uint8."""
    width = height = 0
    pixels = np.empty(0, np.uint8)
    for index, key in enumerate(keys):
        picture = _open(read(key), key, files.case_id, mode)
        if index == 0:
            width, height = picture.size
            if max(width, height) > _MAX_SIDE or width * height * len(keys) > limits.max_voxels:
                found = f"claims {width} x {height} pixels in each of {len(keys)} slices; expected at most"
                found += f" {_MAX_SIDE} per side and {limits.max_voxels} voxels"
                raise CaseError(files.case_id, key, found, "crop the slices, or check the file")
            pixels = np.empty((len(keys), height, width, 3)[: 3 + (mode == "RGB")], np.uint8)
        elif picture.size != (width, height):
            found = f"has {picture.size[0]} x {picture.size[1]} pixels, but {keys[0]} has {width} x {height}"
            raise CaseError(files.case_id, key, found, "export all slices of a case in one size")
        pixels[index] = _decode(picture, key, files.case_id)
    name = keys[0] if len(keys) == 1 else f"{keys[0]} to {keys[-1].rpartition('/')[2]}"
    return make_header((width, height, len(keys)), pixels.dtype, _AFFINE, name=name), pixels


def _open(data: bytes, key: str, case_id: str, mode: str) -> Image.Image:
    """Open a picture, reading only its header."""
    kind = {"RGB": "RGB", "L": "grey"}[mode]
    try:
        with warnings.catch_warnings():
            # Pillow only warns about a damaged directory.
            warnings.simplefilter("error")
            # Image.open accepts other formats, and warns about large pictures; the caller checks the size.
            picture = TiffImageFile(io.BytesIO(data))
            bits = picture.tag_v2.get(BITSPERSAMPLE, (1,))
    except Exception as error:  # Pillow's parsers raise exceptions of almost any type.
        other = identify(data)
        if other is not None and other is not TIFF:
            advice = "export it again as tif" if other.is_picture else other.advice
            found = f"is not a readable tif: it is {other.name}; expected 8-bit {kind}"
            raise CaseError(case_id, key, found, advice) from error
        found = f"is not a readable tif ({type(error).__name__}: {error}); expected 8-bit {kind}"
        raise CaseError(case_id, key, " ".join(found.split()), "copy or export it again") from error
    if picture.mode != mode or set(bits) != {8}:
        found = f"holds pixels of {'+'.join(map(str, bits))} bits ({picture.mode}); expected 8-bit {kind}"
        raise CaseError(case_id, key, found, "export it as the collection's authors did")
    return picture


def _decode(picture: Image.Image, key: str, case_id: str) -> np.ndarray:
    try:
        return np.asarray(picture)
    except Exception as error:
        found = f"is truncated or damaged ({type(error).__name__}: {error})"
        raise CaseError(case_id, key, " ".join(found.split()), "copy or export it again") from error
