"""HTTP routes of super-resolution: slices to slices on a finer grid."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, File, Form, Request, Response, UploadFile
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from glioray.cases.load import Case
from glioray.engine.serving import (
    BINARY,
    CASE_ZIP,
    MODEL_HEADER,
    NOTICE,
    REFUSALS,
    Endpoint,
    Enhanced,
    Routes,
    Served,
    accepts_json,
    unzip_case,
    warning_header,
)
from glioray.errors import UsageError
from glioray.serialization import to_dict
from glioray.tasks.superres.files import check_files, list_modalities
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.uploads import (
    MAX_SCALE,
    MAX_SIDE_PX,
    Input,
    Plan,
    SuperResOptions,
    encode_result,
    plan_super_resolution,
    read_input,
)

SUPERRES_HEADER = "X-Glioray-Superres-Model"

Upload = UploadFile | SkipJsonSchema[None]
"""A file that need not be sent."""

_Scale = Annotated[float, Field(ge=1, le=MAX_SCALE)]
_Blend = Annotated[float, Field(ge=0, le=1)]


class Sharpened(BaseModel):
    """The size and spacing of an input and of its output."""

    model: str = Field(description="the version that makes it, as models:/NAME/VERSION")
    scale: tuple[float, float] = Field(description="pixels of the result for one of the input, along H and W")
    lr_size: tuple[int, int] = Field(description="H and W of the input's slices, in pixels")
    size: tuple[int, int] = Field(description="H and W of the result's")
    plane: str = Field(description="of the slices that are super-resolved; of no meaning for a PNG")
    blend: float = Field(description="0 for the PSNR generator, 1 for the GAN one, or between them")
    fits: bool = Field(description="whether the input is like those of the training")
    warning: str | None = Field(description="how it differs, or null")
    notice: str = NOTICE


class SuperResAnswer(BaseModel):
    """A super-resolution model that is served."""

    task: Literal["super-resolution"] = "super-resolution"
    uri: str = Field(description="that the endpoint was started with")
    version: str = Field(description="that it stands for now, as models:/NAME/VERSION")
    recipe: str
    metrics: dict[str, float] = Field(description="of its last validation")
    modalities: tuple[str, ...] = Field(description="that it was trained on")
    channels: Literal["each", "joint"] = Field(
        description="each: every modality is an image of its own, so any of them will do; joint: it takes all together"
    )
    scale: float = Field(description="pixels of the result for one of the input, along each axis of a slice")
    generators: tuple[str, ...] = Field(
        description="psnr and gan, which `blend` lies between; or one of them"
    )
    collapse: str = Field(description="of its last validation: healthy, collapsed, dead or unjudged")
    spacing_mm: tuple[float, float, float] = Field(
        description="median of its training cases, the high resolution, along X, Y, Z in RAS+ order"
    )
    degradation: dict[str, Any] = Field(description="how low resolution was made for its training")
    preprocessing: dict[str, Any]
    notice: str = NOTICE


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the image on the finer grid: a .nii.gz, for several modalities a .zip with one for each, for a "
        "PNG a PNG of its depth; or a description of it where JSON is accepted. If the input differs from the "
        "training, the answer carries X-Glioray-Warning",
        "content": {
            **{kind: {"schema": BINARY} for kind in ("application/gzip", "application/zip", "image/png")},
            "application/json": {"schema": {"$ref": "#/components/schemas/Sharpened"}},
        },
        "model": Sharpened,
    },
    **REFUSALS,
}


def parse_options(
    scale: Annotated[
        _Scale | SkipJsonSchema[None],
        Form(
            description="pixels of the result for one of the input, along each axis; by default the model's",
        ),
    ] = None,
    size: Annotated[
        str | SkipJsonSchema[None],
        Form(
            description="HxW of the result's slices, in place of scale",
            json_schema_extra={"pattern": "^[0-9]+x[0-9]+$"},
        ),
    ] = None,
    blend: Annotated[
        _Blend | SkipJsonSchema[None],
        Form(
            description="0 for the PSNR generator (smooth, faithful) to 1 for the GAN one (sharp, may invent); by default "
            "what the training ended with",
        ),
    ] = None,
    plane: Annotated[
        Literal["axial", "coronal", "sagittal"] | SkipJsonSchema[None],
        Form(
            description="of the slices that are super-resolved; by default the one with the squarest pixels"
        ),
    ] = None,
    force: Annotated[
        Literal["true", "false"] | SkipJsonSchema[None],
        Form(description="go on with an input that is at high resolution already"),
    ] = None,
) -> SuperResOptions:
    """The form fields that say how to super-resolve.

    Raises:
        UsageError: both scale and size, or a size that is none.
    """
    if scale is not None and size is not None:
        raise UsageError("both scale and size were sent; send one of them")
    return SuperResOptions(
        scale=scale,
        size=None if size is None else _parse_size(size),
        blend=blend,
        plane=plane,
        force=None if force is None else force == "true",
    )


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if match is None or not all(1 <= int(side) <= MAX_SIDE_PX for side in match.groups()):
        raise UsageError(
            f"size is '{text[:40]}'; expected HxW in pixels, such as 240x240, each up to {MAX_SIDE_PX}"
        )
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class SuperResolution:
    """Super-resolution of a case before another task works on it (`engine.serving.Enhancement`)."""

    endpoint: Endpoint
    fields: Callable[..., SuperResOptions] = parse_options

    def begin(self, options: SuperResOptions) -> Callable[[Case], Callable[[], Enhanced]]:
        served: Served[SuperResolver] = self.endpoint.served

        def check(case: Case) -> Callable[[], Enhanced]:
            plan = plan_super_resolution(served.model, Input(case), options)
            headers = {SUPERRES_HEADER: served.version, **warning_header(plan.remarks)}

            def enhance() -> Enhanced:
                fine = served.model.super_resolve(case, plane=plan.plane, blend=options.blend, size=plan.size)
                return Enhanced(fine, served.version, headers)

            return enhance

        return check


def make_routes(endpoint: Endpoint) -> Routes:
    """The route /v1/superresolve."""
    router = endpoint.make_router()

    @router.post("/v1/superresolve", responses=_ANSWERS, response_model=None)
    async def superresolve(
        request: Request,
        t1: Annotated[Upload, File(description="NIfTI, t1: a volume or one slice")] = None,
        t1c: Annotated[Upload, File(description="NIfTI, t1c: a volume or one slice")] = None,
        t2: Annotated[Upload, File(description="NIfTI, t2: a volume or one slice")] = None,
        flair: Annotated[Upload, File(description="NIfTI, flair: a volume or one slice")] = None,
        image: Annotated[
            Upload,
            File(
                description="one image instead, for a model of one channel: NIfTI of any modality, or a grey PNG of 8 or "
                "16 bits; or a 4-D NIfTI with the channels FLAIR, T1, T1c, T2"
            ),
        ] = None,
        case: Annotated[Upload, File(description=CASE_ZIP)] = None,
        options: SuperResOptions = Depends(parse_options),  # noqa: B008
    ) -> Response:
        """Super-resolve slices: NIfTI to NIfTI on a finer grid, PNG to PNG.

        With `Accept: application/json` a description of the result, without making it.
        """
        served: Served[SuperResolver] = endpoint.served
        files = {"t1": t1, "t1c": t1c, "t2": t2, "flair": flair, "image": image}
        parts = {name: await file.read() for name, file in files.items() if file is not None}
        spec = served.model.spec
        if case is not None:
            parts = await unzip_case(
                endpoint, await case.read(), beside=parts, modalities=list_modalities(spec)
            )
        check_files(parts, spec)
        sent, plan = await endpoint.read(lambda: _read(served, parts, options))
        if accepts_json(request.headers.get("accept", "")):
            return _describe_plan(served, plan, options)
        return await endpoint.run(lambda: _super_resolve(served, sent, plan, options), done="super-resolved")

    return Routes(router, SuperResAnswer, _describe, SuperResolution(endpoint))


def _read(
    served: Served[SuperResolver], parts: dict[str, bytes], options: SuperResOptions
) -> tuple[Input, Plan]:
    """The upload, and the sizes of its output.

    Raises:
        CaseError: the files are no input, or the result would be too large.
        ModelError: the input does not fit the model.
    """
    sent = read_input(parts, served.model.spec)
    return sent, plan_super_resolution(served.model, sent, options)


def _describe_plan(served: Served[SuperResolver], plan: Plan, options: SuperResOptions) -> Response:
    rows, columns = plan.lr_size
    answer = Sharpened(
        model=served.version,
        scale=(plan.size[0] / rows, plan.size[1] / columns),
        lr_size=plan.lr_size,
        size=plan.size,
        plane=plan.plane,
        blend=float("gan" in served.model.nets) if options.blend is None else options.blend,
        fits=plan.warning is None,
        warning=plan.warning,
    )
    return JSONResponse(answer.model_dump(), headers={MODEL_HEADER: served.version})


def _super_resolve(
    served: Served[SuperResolver], sent: Input, plan: Plan, options: SuperResOptions
) -> Response:
    fine = served.model.super_resolve(sent.case, plane=plan.plane, blend=options.blend, size=plan.size)
    data, media_type, name = encode_result(fine, sent)
    headers = {
        MODEL_HEADER: served.version,
        "Content-Disposition": f'attachment; filename="{name}"',
        **warning_header(plan.remarks),
    }
    return Response(data, media_type=media_type, headers=headers)


def _describe(uri: str, served: Served[SuperResolver]) -> SuperResAnswer:
    spec = served.model.spec
    config = spec.config
    return SuperResAnswer(
        uri=uri,
        version=served.version,
        recipe=config.recipe,
        metrics=spec.metrics,
        modalities=config.preprocess.modalities,
        channels="each" if config.channels == "each" else "joint",
        scale=config.degrade.scale,
        generators=spec.stages,
        collapse=spec.collapse,
        spacing_mm=spec.spacing_mm,
        degradation=to_dict(config.degrade),
        preprocessing=to_dict(config.preprocess),
    )
