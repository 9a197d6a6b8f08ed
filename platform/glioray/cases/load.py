"""Loading of cases: decoded, in RAS+ order, on one grid, with internal labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from glioray.cancellation import raise_if_cancelled
from glioray.cases import labels
from glioray.cases.casefiles import CaseFiles
from glioray.cases.collections import Reading, read_numbers
from glioray.cases.conventions import STATE_LABELS, LabelConvention, find_convention
from glioray.cases.dataset_json import MSD_CHANNELS
from glioray.cases.grid import describe_grid_difference, describe_qform, ras_view
from glioray.cases.nifti import (
    DEFAULT_LIMITS,
    Header,
    Limits,
    Volume,
    make_header,
    read_volume,
    slice_axis,
    to_canonical,
)
from glioray.cases.tif_slices import read_mask_slices, read_slices
from glioray.config import MODALITIES
from glioray.errors import CaseError
from glioray.storage import Storage


@dataclass(frozen=True, kw_only=True)
class FullVolume:
    """The volume from which the segmented slices of a case were cut.

    Attributes:
        images: (M, X, Y, Z), as `Case.images` but uncut.
        axis: the axis of (X, Y, Z) along which slices were selected.
        kept: the indices of the selected slices along that axis.
    """

    images: np.ndarray
    axis: int
    kept: np.ndarray

    def cut(self, images: np.ndarray) -> np.ndarray:
        """The selected slices of (M, X, Y, Z), with x fastest in memory."""
        return images.transpose(0, 3, 2, 1).take(self.kept, 3 - self.axis).transpose(0, 3, 2, 1)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A decoded study.

    Attributes:
        case_id: the study.
        images: (M, X, Y, Z) in RAS+, in the order of `modalities`; int16 if all files hold integers that
            fit, float32 otherwise. Raw intensities, neither scaled nor clipped.
        mask: (X, Y, Z) uint8 internal labels, or None.
        affine: (4, 4) float64 from voxel index to mm, both in RAS+.
        spacing_mm: voxel edges along X, Y, Z.
        reference: the header whose grid `nifti.encode_mask` restores a prediction to: of the first image
            or, if the case was cut to its segmented slices, of the cut volume.
        convention: of the mask, or None without a mask.
        modalities: of the images, in order.
        full_volume: the volume before cutting, if the case was cut to its segmented slices.
        notes: what is odd about the files but no fault, each as the rest of a sentence about the case.
    """

    case_id: str
    images: np.ndarray
    mask: np.ndarray | None
    affine: np.ndarray
    spacing_mm: tuple[float, float, float]
    reference: Header
    convention: LabelConvention | None
    modalities: tuple[str, ...] = MODALITIES
    full_volume: FullVolume | None = None
    notes: tuple[str, ...] = ()

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel in ml, also of a sheared grid, whose edges are no right angles."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000


def load_case(
    storage: Storage,
    files: CaseFiles,
    *,
    convention: LabelConvention | None = None,
    with_mask: bool = True,
    limits: Limits = DEFAULT_LIMITS,
) -> Case:
    """Read and decode a case.

    In the layout "lgg-1p19q" only a few slices are segmented, usually three, and the others are unlabelled.
    Loaded with its mask, such a case consists of those slices only, so that training and evaluation see
    nothing else. Gaps between them are closed: distances across a gap come out too short, and neighbouring
    slices used as channels are neighbours in the cut volume. Without its mask, the whole volume is loaded.

    Args:
        storage: holds the objects of the case.
        files: its objects.
        convention: of the mask; by default the one that the data set declares, or else the one that names, layout
            and numbers tell.
        with_mask: False skips the mask.
        limits: for each file, or for all tif slices of the case together.

    Raises:
        CaseError: a file cannot be decoded or is not the one that its manifest describes, a value is not finite, an
            image is constant, grids differ, a label is not in the convention, or several conventions fit.
        StorageError: an object cannot be read.
    """

    def read(key: str) -> bytes:
        data = storage.read(key)
        _check_checksum(files, key, data)
        return data

    return assemble_case(files, read, convention=convention, with_mask=with_mask, limits=limits)


def _check_checksum(files: CaseFiles, key: str, data: bytes) -> None:
    if key in files.checksums and hashlib.sha256(data).hexdigest() != files.checksums[key]:
        found = "has changed since the manifest of its data set was made"
        advice = "run jobs/prepare.py again, or restore the file"
        raise CaseError(files.case_id, key, found, advice)


def load_case_from_bytes(
    parts: Mapping[str, bytes],
    *,
    case_id: str = "request",
    modalities: Collection[str] = MODALITIES,
    limits: Limits = DEFAULT_LIMITS,
) -> Case:
    """Decode a case from files in memory, without a mask.

    Args:
        parts: modality -> file; or, if all four modalities are expected, one 4-D "image" whose channels have
            the order of the Medical Segmentation Decathlon: FLAIR, T1, T1c, T2.
        case_id: for messages.
        modalities: the expected modalities.
        limits: for each file.

    Raises:
        CaseError: as `load_case`, or a part is missing or not expected.
    """
    names = tuple(m for m in MODALITIES if m in modalities)
    expected = f"expected {_describe_parts(names)}"
    if "image" in parts and names == MODALITIES:
        names = ("image",)
    missing = [name for name in names if name not in parts]
    unknown = [name for name in parts if name not in names]
    if missing or unknown:
        found = f"{missing[0]} is missing" if missing else f"{unknown[0]} is not expected"
        raise CaseError(case_id, "", f"{found}; {expected}", "send those files")
    files = CaseFiles(
        case_id=case_id,
        patient_id=case_id,
        layout="msd" if "image" in parts else "brats2021",
        images={} if "image" in parts else {m: m for m in names},
        image="image" if "image" in parts else None,
        channels=MSD_CHANNELS if "image" in parts else (),
    )
    return assemble_case(files, parts.__getitem__, with_mask=False, limits=limits)


def _describe_parts(modalities: Collection[str]) -> str:
    """The expected files in words, such as "t1 and flair"."""
    *others, last = (m for m in MODALITIES if m in modalities)
    names = f"{', '.join(others)} and {last}" if others else last
    return f"{names}, or one 4-D image" if set(modalities) == set(MODALITIES) else names


def assemble_case(
    files: CaseFiles,
    read: Callable[[str], bytes],
    *,
    convention: LabelConvention | None = None,
    with_mask: bool = True,
    limits: Limits = DEFAULT_LIMITS,
    is_provisional: bool = False,
) -> Case:
    """`load_case` with a function that returns an object's bytes in place of a storage.

    `is_provisional` reads a mask that several conventions fit by the first of them, for a caller who decides with
    more masks.
    """
    stack = _Stack(files)
    for modality, volume, array in _read_images(files, read, limits):
        stack.put(modality, volume, array)
    images, reference = stack.images, stack.reference
    mask, full_volume, reading = None, None, None
    notes = stack.notes
    if with_mask and (files.mask is not None or files.mask_slices):
        volume = _read_mask(files, read, limits)
        _check_grid(reference, volume, files.case_id)
        notes += describe_qform(volume.header)
        internal, reading = _internal_mask(volume, files, convention)
        mask = np.asfortranarray(ras_view(internal, volume.header, reference))
        if files.layout == "lgg-1p19q":
            full_volume, mask, reference = _segmented_slices(
                images, mask, reference, volume.name, files.case_id
            )
            images = full_volume.cut(images)
    affine = to_canonical(np.broadcast_to(np.uint8(0), reference.shape[:3]), reference.affine)[1]
    x, y, z = (float(edge) for edge in np.linalg.norm(affine[:3, :3], axis=0))
    case = Case(
        case_id=files.case_id,
        images=images,
        mask=mask,
        affine=affine,
        spacing_mm=(x, y, z),
        reference=reference,
        convention=reading.candidates[0] if reading is not None else None,
        modalities=files.modalities,
        full_volume=full_volume,
        notes=tuple(dict.fromkeys(notes)),
    )
    if reading is not None and not reading.is_decided and not is_provisional:
        # A mask of the brain is said to be one before its numbers are asked for.
        check_tumour_size(case, volume.name)
        raise reading.as_error(files)
    return case


def _read_images(
    files: CaseFiles, read: Callable[[str], bytes], limits: Limits
) -> Iterator[tuple[str, Volume, np.ndarray]]:
    """Yield (modality, volume that holds it, its voxels (X, Y, Z) in stored order)."""
    if files.slices:
        volumes = read_slices(files, read, limits)
        yield from ((modality, volumes[modality], volumes[modality].array) for modality in files.modalities)
    elif files.image is not None:
        volume = read_volume(read(files.image), name=files.image, case_id=files.case_id, limits=limits)
        _check_channels(volume, files)
        for modality in files.modalities:
            yield modality, volume, volume.array[..., files.channels.index(modality)]
    else:
        for modality in files.modalities:
            raise_if_cancelled()
            key = files.images[modality]
            volume = read_volume(read(key), name=key, case_id=files.case_id, limits=limits)
            _check_three_dimensions(volume, files.case_id, "store each modality in its own file")
            yield modality, volume, volume.array


def _read_mask(files: CaseFiles, read: Callable[[str], bytes], limits: Limits) -> Volume:
    if files.mask is None:
        return read_mask_slices(files, read, limits)
    volume = read_volume(read(files.mask), name=files.mask, case_id=files.case_id, limits=limits)
    advice = "join one-hot channels into one volume of label numbers, 0 outside the tumour"
    _check_three_dimensions(volume, files.case_id, advice)
    return volume


def _segmented_slices(
    images: np.ndarray, mask: np.ndarray, reference: Header, file: str, case_id: str
) -> tuple[FullVolume, np.ndarray, Header]:
    """The volume with its segmented slices, their mask, and a header for them in RAS+ order."""
    axis = slice_axis(reference)
    kept = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
    if not len(kept):
        raise CaseError(case_id, file, "is empty, so no slice is labelled", "leave the case out")
    affine = to_canonical(np.broadcast_to(np.uint8(0), reference.shape[:3]), reference.affine)[1]
    affine[:3, 3] += affine[:3, axis] * kept[0]
    mask = np.asfortranarray(mask.take(kept, axis))
    header = make_header(mask.shape, reference.dtype, affine, name=reference.name)
    return FullVolume(images=images, axis=axis, kept=kept), mask, header


class _Stack:
    """Fills (M, X, Y, Z) file by file, holding one decoded file besides the result."""

    images: np.ndarray
    reference: Header

    def __init__(self, files: CaseFiles) -> None:
        self.case_id, self.modalities = files.case_id, files.modalities
        self.num_filled = 0
        self.notes: list[str] = []

    def put(self, modality: str, volume: Volume, array: np.ndarray) -> None:
        _check_values(array, volume.name, modality, self.case_id)
        reference = self.reference if self.num_filled else volume.header
        view = ras_view(array, volume.header, reference)
        small = np.can_cast(array.dtype, np.int16)
        if self.num_filled == 0:
            self.reference = reference
            # x is fastest in memory, as in the files, so that an axial slice is contiguous.
            dtype = np.int16 if small else np.float32
            shape = (len(self.modalities), *view.shape[::-1])
            self.images = np.empty(shape, dtype).transpose(0, 3, 2, 1)
        else:
            _check_grid(self.reference, volume, self.case_id)
            if not small and self.images.dtype == np.int16:
                self.images = self.images.astype(np.float32)
        self.images[self.modalities.index(modality)] = view
        self.notes += describe_qform(volume.header)
        self.num_filled += 1


def _check_values(array: np.ndarray, file: str, modality: str, case_id: str) -> None:
    if array.dtype.kind == "f":
        # The sum is not finite if any value is not finite; only then are the values counted.
        with np.errstate(all="ignore"):
            bad = (
                0 if np.isfinite(array.sum(dtype=np.float64)) else array.size - int(np.isfinite(array).sum())
            )
        if bad:
            found = f"holds {bad} voxels that are NaN or infinite"
            raise CaseError(case_id, file, found, "replace them by numbers, 0 in the background")
    low, high = array.min(), array.max()
    if low == high:
        raise CaseError(case_id, file, f"is empty: every voxel of {modality} is {low:g}", "export it again")
    largest = max(abs(float(low)), abs(float(high)))
    if largest > float(np.finfo(np.float32).max):
        found = f"holds values up to {largest:g}, beyond the range of float32"
        raise CaseError(case_id, file, found, "export it again in the scanner's units")


def _check_channels(volume: Volume, files: CaseFiles) -> None:
    if volume.array.ndim != 4 or volume.array.shape[3] != len(files.channels):
        found = f"has the shape {volume.array.shape}; expected (X, Y, Z, {len(files.channels)})"
        raise CaseError(files.case_id, volume.name, found, f"store the channels {', '.join(files.channels)}")


def _check_three_dimensions(volume: Volume, case_id: str, advice: str) -> None:
    if volume.array.ndim != 3:
        found = f"has the shape {volume.array.shape}; expected one volume (X, Y, Z)"
        raise CaseError(case_id, volume.name, found, advice)


def _check_grid(reference: Header, volume: Volume, case_id: str) -> None:
    difference = describe_grid_difference(reference, volume)
    if difference is not None:
        raise CaseError(case_id, volume.name, difference, "resample it to that grid or export it again")


def _internal_mask(
    volume: Volume, files: CaseFiles, convention: LabelConvention | None
) -> tuple[np.ndarray, Reading]:
    where = {"case_id": files.case_id, "file": volume.name}
    if convention is None and files.declared is not None:
        convention = find_convention(files.declared)
    if convention is not None:
        reading = Reading((), (convention,), is_decided=True)
    else:
        reading = read_numbers(labels.labels_in(volume.array, **where), files)
    return labels.to_internal(volume.array, reading.candidates[0], **where), reading


def brain_mask(images: np.ndarray) -> np.ndarray:
    """(X, Y, Z) bool, True where any modality differs from its background; everywhere where one has none.

    Args:
        images: (M, X, Y, Z).
    """
    brain = np.zeros(images.shape[1:], dtype=bool, order="F")
    for image in images:
        background = background_of(image)
        brain |= True if background is None else image != background
    return brain


def background_of(image: np.ndarray) -> float | None:
    """The value that most of a volume's eight corners share: 0 after skull stripping.

    Another number if the file was z-scored including its background; None in a head with its skull.
    """
    corners = image[:: image.shape[0] - 1 or 1, :: image.shape[1] - 1 or 1, :: image.shape[2] - 1 or 1]
    values, counts = np.unique(corners, return_counts=True)
    return values[counts.argmax()] if counts.max() * 2 > corners.size else None


MAX_TUMOUR_SHARE, MAX_TUMOUR_ML = 0.4, 700.0
"""Of the brain, and in ml: beyond either, a mask is more likely one of the brain or of a tissue. The tumours of ten cases
of BraTS 2021 take up 1 to 14 % of the brain and 18 to 195 ml; a brain has 900 ml and more."""


def check_tumour_size(case: Case, file: str, brain_voxels: int | None = None) -> None:
    """Refuse a mask that marks more than a tumour can be.

    Args:
        case: with a mask.
        file: the mask's name, for the message.
        brain_voxels: of `brain_mask`, if known.

    Raises:
        CaseError: the tumour, without a cavity, is larger than `MAX_TUMOUR_SHARE` or `MAX_TUMOUR_ML`.
    """
    assert case.mask is not None
    # Cut to its segmented slices, a case does not show how large its tumour is beside the brain.
    num_brain = brain_voxels or np.count_nonzero(brain_mask(case.images))
    num_tumour = np.count_nonzero(np.isin(case.mask, labels.REGION_LABELS["wt"]))
    share, tumour_ml = num_tumour / max(num_brain, 1), num_tumour * case.voxel_ml
    if (share > MAX_TUMOUR_SHARE and case.full_volume is None) or tumour_ml > MAX_TUMOUR_ML:
        found = (
            f"marks {tumour_ml:.0f} ml as tumour, {100 * share:.0f} % of the brain; expected at most "
            f"{100 * MAX_TUMOUR_SHARE:.0f} % and {MAX_TUMOUR_ML:.0f} ml"
        )
        advice = f"remove the file if it is a mask of the brain, or, if it is right, {STATE_LABELS}"
        raise CaseError(case.case_id, file, found, advice)
