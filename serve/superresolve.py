"""Slices made sharper: the work behind `/v1/superresolve`, and before a segmentation that asks for it."""

from __future__ import annotations

import io
import math
import zipfile
from typing import Any

import numpy as np
from fastapi import Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray

from glioray.cases.casefiles import CaseFiles
from glioray.cases.load import Case, assemble_case, load_case_from_bytes
from glioray.cases.nifti import encode_volume, make_header, read_header
from glioray.errors import CaseError, ModelError
from glioray.slices.preprocess import PLANE_AXES
from glioray.tasks.superres.model import SuperResolver, plane_of
from glioray.tasks.superres.package import SuperResSpec
from serve.fields import MAX_SCALE, Sharpening
from serve.png import PNG_MAGIC, encode_png, read_png
from serve.schemas import LIMITS, MODEL_HEADER, WARNING_HEADER, Sharpened
from serve.uploads import SuperResUpload
from serve.watch import Served

MAX_SLICE_PX = 2**21
"""Of a slice that is made, and of a PNG that is read: a generator holds dozens of features for each of its pixels."""

_SCALE_TOLERANCE = 0.05  # sizes are whole pixels: 28 becomes 128 by 32/7


def superresolve(served: Served[SuperResolver], upload: SuperResUpload, as_json: bool) -> Response:
    """The answer to an input: the like of it on a finer grid, or what that would be as JSON.

    A PNG becomes a PNG of the same depth, one modality a .nii.gz, several a .zip with one for each.

    Raises:
        CaseError: the files are no input, or what would come of them is too large.
        ModelError: the input does not fit the model.
    """
    resolver, how = served.model, upload.sharpening
    picture = _picture(upload.parts)
    spec = resolver.spec
    case = _load(upload.parts, spec) if picture is None else _case_of_picture(picture, spec)
    if as_json:
        headers = {MODEL_HEADER: served.version}
        return JSONResponse(_describe(served, case, how, picture is not None).model_dump(), headers=headers)
    sharp, warning = sharpen_case(resolver, case, how, is_picture=picture is not None)
    if picture is not None:
        data, kind, name = encode_png(_pixels(sharp, picture.dtype)), "image/png", "superres.png"
    elif len(sharp.images) == 1:
        data, kind, name = encode_volume(sharp.images[0], sharp.affine), "application/gzip", "superres.nii.gz"
    else:
        data, kind, name = _zip(sharp), "application/zip", "superres.zip"
    headers = {
        MODEL_HEADER: served.version,
        "Content-Disposition": f'attachment; filename="{name}"',
        **warned(warning),
    }
    return Response(data, media_type=kind, headers=headers)


def sharpen_case(
    resolver: SuperResolver, case: Case, how: Sharpening, *, is_picture: bool = False
) -> tuple[Case, str | None]:
    """The case on its finer grid, and a sentence where it is not what the model was trained to make sharper.

    Raises:
        CaseError: the finer grid would be too large, or no finer one.
        ModelError: the case is at high resolution already, or the model cannot do what is asked for.
    """
    plane, size, warning = _plan(resolver, case, how, is_picture)
    return resolver.super_resolve(case, plane=plane, blend=how.blend, size=size), warning


def warned(warning: str | None) -> dict[str, str]:
    """The header that says so, where there is something to say."""
    return {} if warning is None else {WARNING_HEADER: warning.encode("ascii", "replace").decode()}


def _plan(
    resolver: SuperResolver, case: Case, how: Sharpening, is_picture: bool
) -> tuple[str, tuple[int, int], str | None]:
    """The plane, the size of its new slices, and the warning; all that can be refused is refused here."""
    resolver.generator(how.blend)
    plane = how.plane or plane_of(case)
    depth, rows, columns = (case.images.shape[1 + axis] for axis in PLANE_AXES[plane])
    trained = resolver.spec.config.degrade.scale
    scale = how.scale or trained
    height, width = how.size or (round(rows * scale), round(columns * scale))
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
    # Of a PNG nobody knows how large its pixels are.
    said = [] if is_picture else [resolver.check_fit(case, plane=plane, force=how.force)]
    if any(abs(math.log(ratio / trained)) > _SCALE_TOLERANCE for ratio in ratios):
        scales = " x ".join(f"{ratio:.3g}" for ratio in ratios)
        said.append(f"the scale is {scales}, but the model was trained for {trained:.3g}; trust it the less")
    return plane, (height, width), "; and ".join(text for text in said if text) or None


def _describe(served: Served[SuperResolver], case: Case, how: Sharpening, is_picture: bool) -> Sharpened:
    plane, size, warning = _plan(served.model, case, how, is_picture)
    _, rows, columns = (case.images.shape[1 + axis] for axis in PLANE_AXES[plane])
    return Sharpened(
        model=served.version,
        scale=(size[0] / rows, size[1] / columns),
        lr_size=(rows, columns),
        size=size,
        plane=plane,
        blend=float("gan" in served.model.nets) if how.blend is None else how.blend,
        fits=warning is None,
        warning=warning,
    )


def _picture(parts: dict[str, bytes]) -> NDArray[Any] | None:
    """(H, W) of the file `image` where that is a PNG."""
    data = parts.get("image", b"")
    return read_png(data, name="image", max_pixels=MAX_SLICE_PX) if data.startswith(PNG_MAGIC) else None


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


def _case_of_picture(pixels: NDArray[Any], spec: SuperResSpec) -> Case:
    """One axial slice whose rows run along Y; its pixels are taken to be those that the model takes."""
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
    """What an image of no stated kind is taken for; a model of one channel treats all kinds alike."""
    return spec.config.preprocess.modalities[0]


def _pixels(case: Case, dtype: np.dtype[Any]) -> NDArray[Any]:
    values = np.rint(case.images[0, :, :, 0].T).clip(0, np.iinfo(dtype).max)
    return np.ascontiguousarray(values.astype(dtype))


def _zip(case: Case) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # what it holds is compressed already
        for modality, image in zip(case.modalities, case.images, strict=True):
            archive.writestr(f"{modality}.nii.gz", encode_volume(image, case.affine))
    return buffer.getvalue()
