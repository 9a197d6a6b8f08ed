"""Inputs of /v1/superresolve: NIfTI files or a PNG to a case, and what a model makes of it to files again."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glioray.cases.casefiles import CaseFiles
from glioray.cases.formats import identify
from glioray.cases.load import Case, assemble_case, load_case_from_bytes
from glioray.cases.nifti import encode_volume, make_header, read_header
from glioray.engine.serving import LIMITS
from glioray.errors import CaseError, ModelError
from glioray.slices.preprocess import PLANE_AXES
from glioray.tasks.superres.model import SuperResolver, plane_of
from glioray.tasks.superres.package import SuperResSpec
from glioray.tasks.superres.png import PNG_MAGIC, encode_png, read_png

MAX_SCALE = 8.0
MAX_SIDE_PX = 2048
MAX_SLICE_PX = 2**21
"""Pixels of a slice that is made, and of a PNG that is read: a generator has dozens of features for each."""

_SCALE_TOLERANCE = 0.05  # sizes are whole pixels: 28 becomes 128 by 32/7


@dataclass(frozen=True, kw_only=True)
class SuperResOptions:
    """How to super-resolve an input; None where a form did not say.

    Attributes:
        scale: pixels of the result for one of the input; by default the model's.
        size: (H, W) of the result's slices, in place of `scale`.
        blend: 0 for the PSNR generator to 1 for the GAN one; by default the training's last.
        plane: of the slices; by default the one that the input's voxels suggest.
        force: go on although the input is at high resolution already; by default False.
    """

    scale: float | None = None
    size: tuple[int, int] | None = None
    blend: float | None = None
    plane: str | None = None
    force: bool | None = None


@dataclass(frozen=True)
class Input:
    """An upload to super-resolve.

    Attributes:
        case: low resolution.
        pixels: (H, W) of the PNG that it came from; None for NIfTI.
    """

    case: Case
    pixels: NDArray[Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The grid of the output for an input.

    Attributes:
        plane: of the slices.
        lr_size: (H, W) of the input's.
        size: (H, W) of the result's.
        warning: where the input differs from the training, or None.
        notes: of the case.
    """

    plane: str
    lr_size: tuple[int, int]
    size: tuple[int, int]
    warning: str | None
    notes: tuple[str, ...] = ()

    @property
    def remarks(self) -> str:
        """The warning and the notes, for a header; empty where there are none."""
        return "; and ".join([*([self.warning] if self.warning else []), *self.notes])


def read_input(parts: Mapping[str, bytes], spec: SuperResSpec) -> Input:
    """Read the files of a form.

    Raises:
        CaseError: they are damaged, too large or no case.
        ModelError: a PNG for a model that takes several modalities together.
    """
    data = parts.get("image", b"")
    if data.startswith(PNG_MAGIC):
        pixels = read_png(data, name="image", max_pixels=MAX_SLICE_PX)
        return Input(_case_of_png(pixels, spec), pixels)
    kind = identify(data)
    if kind is not None and kind.is_picture:
        found = f"is not NIfTI or PNG: it is {kind.name}"
        advice = "export the original again as NIfTI, or as a grey PNG of 8 or 16 bits"
        raise CaseError("", "image", found, advice)
    return Input(_load(dict(parts), spec))


def plan_super_resolution(resolver: SuperResolver, sent: Input, options: SuperResOptions) -> Plan:
    """Choose the plane and the size; everything that can be refused is refused here.

    Raises:
        CaseError: the finer grid would be too large.
        ModelError: no finer grid, an input at high resolution already, or a blend that the model does not have.
    """
    case = sent.case
    resolver.generator(options.blend)
    plane = options.plane or plane_of(case)
    depth, rows, columns = (case.images.shape[1 + axis] for axis in PLANE_AXES[plane])
    trained = resolver.spec.config.degrade.scale
    scale = options.scale or trained
    height, width = options.size or (round(rows * scale), round(columns * scale))
    ratios = height / rows, width / columns
    if not all(1 <= ratio <= MAX_SCALE for ratio in ratios):
        found = f"the size asked for is {height} x {width}, of slices of {rows} x {columns}"
        raise ModelError(f"{found}; expected 1 to {MAX_SCALE:g} times as much along each axis")
    if height * width > MAX_SLICE_PX:
        found = f"would become slices of {height} x {width}; at most {MAX_SLICE_PX} pixels are made"
        raise CaseError("", "", found, "crop it or ask for a smaller scale")
    voxels = depth * height * width
    if voxels > LIMITS.max_voxels or 4 * voxels * len(case.images) > LIMITS.max_bytes:
        found = f"would become {depth} slices of {height} x {width} in {len(case.images)} modalities"
        limit = f"at most {LIMITS.max_voxels} voxels and {LIMITS.max_bytes} bytes are made"
        raise CaseError("", "", f"{found}; {limit}", "crop it or ask for a smaller scale")
    # A PNG does not state the size of its pixels.
    warnings = []
    if sent.pixels is None:
        warnings.append(resolver.check_fit(case, plane=plane, force=bool(options.force)))
    if any(abs(math.log(ratio / trained)) > _SCALE_TOLERANCE for ratio in ratios):
        scales = " x ".join(f"{ratio:.3g}" for ratio in ratios)
        warnings.append(
            f"the scale is {scales}, but the model was trained for {trained:.3g}; trust it the less"
        )
    warning = "; and ".join(text for text in warnings if text) or None
    size = (height, width)
    return Plan(plane=plane, lr_size=(rows, columns), size=size, warning=warning, notes=case.notes)


def encode_result(case: Case, sent: Input) -> tuple[bytes, str, str]:
    """A super-resolved case as (data, media type, file name).

    A PNG becomes a PNG of the same depth, one modality a .nii.gz, several a .zip with one for each.
    """
    if sent.pixels is not None:
        return encode_png(_pixels(case, sent.pixels.dtype)), "image/png", "superres.png"
    if len(case.images) == 1:
        return encode_volume(case.images[0], case.affine), "application/gzip", "superres.nii.gz"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # its files are compressed already
        for modality, image in zip(case.modalities, case.images, strict=True):
            archive.writestr(f"{modality}.nii.gz", encode_volume(image, case.affine))
    return buffer.getvalue(), "application/zip", "superres.zip"


def _load(parts: dict[str, bytes], spec: SuperResSpec) -> Case:
    """The case of NIfTI files: those of modalities, or one image of one or of all of them."""
    if "image" not in parts:
        return load_case_from_bytes(parts, modalities=parts, limits=LIMITS)
    if (
        spec.config.num_channels > 1
        or len(read_header(parts["image"], name="image", limits=LIMITS).shape) > 3
    ):
        return load_case_from_bytes(parts, limits=LIMITS)
    files = CaseFiles(
        case_id="request", patient_id="request", layout="brats2021", images={_modality(spec): "image"}
    )
    return assemble_case(files, parts.__getitem__, with_mask=False, limits=LIMITS)


def _case_of_png(pixels: NDArray[Any], spec: SuperResSpec) -> Case:
    """One axial slice whose rows run along Y, with pixels of the size that the model takes."""
    if spec.config.num_channels > 1:
        raise ModelError(
            f"a PNG is one image but the model takes {', '.join(spec.config.preprocess.modalities)} together; send "
            "NIfTI files"
        )
    if pixels.min() == pixels.max():
        raise CaseError("", "image", f"is empty: every pixel is {pixels.min()}", "export it again")
    # int16 would not hold 16 bits.
    images = pixels.T[None, :, :, None].astype(np.int16 if pixels.dtype == np.uint8 else np.float32)
    x, y, z = spec.spacing_mm
    scale = spec.config.degrade.scale
    spacing = (x * scale, y * scale, z)
    affine = np.diag([*spacing, 1.0])
    shape = images.shape[1:]
    return Case(
        case_id="request",
        images=images,
        mask=None,
        affine=affine,
        spacing_mm=spacing,
        reference=make_header((shape[0], shape[1], 1), images.dtype, affine, name="image"),
        convention=None,
        modalities=(_modality(spec),),
    )


def _modality(spec: SuperResSpec) -> str:
    """The modality that an image of no stated one counts as; a model of one channel treats all alike."""
    return spec.config.preprocess.modalities[0]


def _pixels(case: Case, dtype: np.dtype[Any]) -> NDArray[Any]:
    values = np.rint(case.images[0, :, :, 0].T).clip(0, np.iinfo(dtype).max)
    return np.ascontiguousarray(values.astype(dtype))
