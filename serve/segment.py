"""A case's mask, or its volumes: the work behind `/v1/segment`."""

from __future__ import annotations

import numpy as np
from fastapi import Response
from fastapi.responses import JSONResponse

from glioray.cases.labels import LABELS, REGION_LABELS, from_internal
from glioray.cases.load import Case, load_case_from_bytes
from glioray.cases.nifti import encode_mask
from glioray.slices.volumes import resample_labels
from glioray.tasks.segmentation.package import ModelSpec
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.superres.model import SuperResolver
from serve.schemas import LIMITS, MODEL_HEADER, SUPERRES_HEADER, Volumes
from serve.superresolve import sharpen_case, warned
from serve.uploads import Upload
from serve.watch import Served


def segment(
    served: Served[Predictor], sharper: Served[SuperResolver] | None, upload: Upload, as_json: bool
) -> Response:
    """The answer to a case: its mask as .nii.gz, or volumes as JSON.

    Args:
        served: what segments.
        sharper: what makes the case sharper first, where the upload asks for that.
        upload: the case.
        as_json: volumes in place of the mask.

    Raises:
        CaseError: the files are no case.
        ModelError: the case does not fit a model.
    """
    spec = served.model.spec
    case = load_case_from_bytes(upload.parts, modalities=spec.config.preprocess.modalities, limits=LIMITS)
    headers = {MODEL_HEADER: served.version}
    seen = case
    if upload.sharpening is not None:
        assert sharper is not None
        seen, warning = sharpen_case(sharper.model, case, upload.sharpening)
        headers |= {SUPERRES_HEADER: sharper.version, **warned(warning)}
    mask = served.model.predict(seen)
    if upload.grid == "input" and seen is not case:
        mask, seen = resample_labels(mask, case.images.shape[1:]), case
    if as_json:
        answer = _measure(mask, seen, served.version, spec, headers.get(SUPERRES_HEADER))
        return JSONResponse(answer.model_dump(exclude_none=True), headers=headers)
    data = encode_mask(from_internal(mask, upload.convention), like=seen.reference)
    headers["Content-Disposition"] = 'attachment; filename="segmentation.nii.gz"'
    return Response(data, media_type="application/gzip", headers=headers)


def _measure(mask: np.ndarray, case: Case, version: str, spec: ModelSpec, superres: str | None) -> Volumes:
    # Of what no mask told it a model has learned that it is nowhere; 0 ml of that would be no finding.
    regions = {name: labels for name, labels in REGION_LABELS.items() if name in spec.regions}
    if len(regions) == len(REGION_LABELS):
        regions |= {"ncr": (1,), "ed": (2,)}
    if spec.out_channels == len(LABELS):
        regions["rc"] = (4,)
    counts = np.bincount(mask.ravel(), minlength=len(LABELS))
    voxels = {name: int(counts[list(labels)].sum()) for name, labels in regions.items()}
    voxel_ml = abs(float(np.linalg.det(case.affine[:3, :3]))) / 1000
    return Volumes(
        model=version,
        superres=superres,
        volumes_ml={name: round(count * voxel_ml, 4) for name, count in voxels.items()},
        voxels=voxels,
        spacing_mm=case.spacing_mm,
    )
