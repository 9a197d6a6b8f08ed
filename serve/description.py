"""What the OpenAPI description says of the bodies that the routes take and the answers that they give."""

from __future__ import annotations

from typing import Any

from glioray.cases.labels import CONVENTIONS
from glioray.config import MODALITIES, PLANES
from serve.fields import MAX_SCALE
from serve.schemas import Refusal, Sharpened, Volumes
from serve.uploads import DEFAULT_LABELS, GRIDS, LABELS_FIELD

_FILE = {"type": "string", "format": "binary"}
_FLAG = {"type": "string", "enum": ["true", "false"], "default": "false"}

_SHARPENING: dict[str, dict[str, Any]] = {
    "scale": {
        "type": "number",
        "minimum": 1,
        "maximum": MAX_SCALE,
        "description": "pixels of the result for one of the input, along each axis; by default the model's",
    },
    "size": {
        "type": "string",
        "pattern": "^[0-9]+x[0-9]+$",
        "description": "HxW of the result's slices, in place of scale",
    },
    "blend": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "description": "0 for the PSNR generator (smooth, faithful) to 1 for the GAN one (sharp, may invent); by default "
        "what the training ended with",
    },
    "plane": {
        "type": "string",
        "enum": list(PLANES),
        "description": "of the slices that are made sharper; by default the one with the squarest pixels",
    },
    "force": {**_FLAG, "description": "go on with an input that is at high resolution already"},
}


def _body(properties: dict[str, dict[str, Any]]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


SEGMENT_BODY = _body(
    {
        **{m: {**_FILE, "description": f"NIfTI, {m}; where the model takes it"} for m in MODALITIES},
        "image": {
            **_FILE,
            "description": "one 4-D NIfTI instead, with the channels FLAIR, T1, T1c, T2, "
            "where the model takes all four",
        },
        LABELS_FIELD: {"type": "string", "enum": list(CONVENTIONS), "default": DEFAULT_LABELS},
        "superresolve": {**_FLAG, "description": "make the case sharper first; the further fields say how"},
        "grid": {
            "type": "string",
            "enum": list(GRIDS),
            "default": GRIDS[0],
            "description": "of the mask of a case that was made sharper: the finer one, or that of the input",
        },
        **_SHARPENING,
    }
)

SUPERRES_BODY = _body(
    {
        **{m: {**_FILE, "description": f"NIfTI, {m}: a volume or one slice"} for m in MODALITIES},
        "image": {
            **_FILE,
            "description": "one image instead, for a model of one channel: NIfTI of any modality, or a grey PNG of 8 or "
            "16 bits; or a 4-D NIfTI with the channels FLAIR, T1, T1c, T2",
        },
        **_SHARPENING,
    }
)

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal} for status in (400, 408, 413, 415, 422, 429, 500, 503)
}

SEGMENT_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the mask on the image's own grid, or the volumes where JSON is accepted",
        "content": {
            "application/gzip": {"schema": _FILE},
            "application/json": {"schema": {"$ref": "#/components/schemas/Volumes"}},
        },
        "model": Volumes,
    },
    **_REFUSALS,
}

SUPERRES_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the image on the finer grid: a .nii.gz, for several modalities a .zip with one for each, for a "
        "PNG a PNG of its depth; or what that would be where JSON is accepted. A header X-Glioray-Warning says where "
        "the input is not what the model was trained on",
        "content": {
            **{kind: {"schema": _FILE} for kind in ("application/gzip", "application/zip", "image/png")},
            "application/json": {"schema": {"$ref": "#/components/schemas/Sharpened"}},
        },
        "model": Sharpened,
    },
    **_REFUSALS,
}
