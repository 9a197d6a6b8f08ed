"""HTTP routes of segmentation: a case to its mask, or to the volumes of its tumour."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import Depends, File, Form, Request, Response, UploadFile
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from glioray.cases.conventions import CONVENTIONS, LabelConvention
from glioray.cases.load import Case, load_case_from_bytes
from glioray.engine.serving import (
    BINARY,
    CASE_ZIP,
    FILES,
    JSON,
    LIMITS,
    MODEL_HEADER,
    NOTICE,
    REFUSALS,
    WARNING_HEADER,
    Endpoint,
    Enhanced,
    Routes,
    Served,
    accepts_json,
    check_uploads,
    unzip_case,
    warning_header,
)
from glioray.errors import UsageError
from glioray.serialization import to_dict
from glioray.slices import volumes
from glioray.tasks.segmentation.files import choose_convention
from glioray.tasks.segmentation.findings import Report
from glioray.tasks.segmentation.outputs import Outputs
from glioray.tasks.segmentation.predictor import Predictor, uncertainty

Upload = UploadFile | SkipJsonSchema[None]
"""A file that need not be sent."""


class ModelAnswer(BaseModel):
    """A segmentation model that is served."""

    task: Literal["segmentation"] = "segmentation"
    uri: str = Field(description="that the endpoint was started with")
    version: str = Field(description="that it stands for now, as models:/NAME/VERSION")
    recipe: str
    metrics: dict[str, float] = Field(description="of its last validation")
    modalities: tuple[str, ...] = Field(description="the files that it takes")
    spacing_mm: tuple[float, float, float] = Field(
        description="median of its training cases, along X, Y, Z in RAS+ order"
    )
    preprocessing: dict[str, Any]
    notice: str = NOTICE


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "by `output`: the mask on the image's own grid as .nii.gz; the report as JSON; a .zip of a .nii.gz "
        "for each region; a PNG; or a .zip of all of these with the report as a page",
        "content": {
            **{kind: {"schema": BINARY} for kind in FILES},
            "application/json": {"schema": {"$ref": "#/components/schemas/Report"}},
        },
        "model": Report,
    },
    **REFUSALS,
}


def make_routes(endpoint: Endpoint) -> Routes:
    """The route /v1/segment."""
    router = endpoint.make_router()
    enhancement = endpoint.enhancement

    @router.post("/v1/segment", responses=_ANSWERS, response_model=None)
    async def segment(
        request: Request,
        t1: Annotated[Upload, File(description="NIfTI, t1; where the model takes it")] = None,
        t1c: Annotated[Upload, File(description="NIfTI, t1c; where the model takes it")] = None,
        t2: Annotated[Upload, File(description="NIfTI, t2; where the model takes it")] = None,
        flair: Annotated[Upload, File(description="NIfTI, flair; where the model takes it")] = None,
        image: Annotated[
            Upload,
            File(
                description="one 4-D NIfTI instead, with the channels FLAIR, T1, T1c, T2, where the model takes all four"
            ),
        ] = None,
        case: Annotated[Upload, File(description=CASE_ZIP)] = None,
        labels: Annotated[
            str | SkipJsonSchema[None],
            Form(
                description="numbers of the mask: a convention, or what each number marks, such as 1=ed,2=et,3=ncr "
                "(default: brats-et4, or brats2024 where the model labels a resection cavity)",
                json_schema_extra={"examples": list(CONVENTIONS)},
            ),
        ] = None,
        superresolve: Annotated[
            Literal["true", "false"],
            Form(description="super-resolve the case first; the further fields say how"),
        ] = "false",
        grid: Annotated[
            Literal["fine", "input"] | SkipJsonSchema[None],
            Form(
                description="of the mask of a super-resolved case: the finer grid (the default), or that of the input"
            ),
        ] = None,
        resample: Annotated[
            Literal["true", "false"],
            Form(
                description="resample a case whose voxel size is far from that of training, which is refused otherwise; "
                "the mask comes back on the case's own grid"
            ),
        ] = "false",
        output: Annotated[
            Literal["mask", "report", "probabilities", "overlay", "all"] | SkipJsonSchema[None],
            Form(
                description="mask (the default); report, which `Accept: application/json` asks for too; probabilities of "
                "each region and their uncertainty (the entropy), in [0, 1] by steps of 1/255; overlay, a picture of three planes; or all of them"
            ),
        ] = None,
        options: Any = Depends(_no_fields if enhancement is None else enhancement.fields),  # noqa: B008
    ) -> Response:
        """Segment one case: its mask as .nii.gz, a report as JSON, probabilities, a picture, or all of them.

        With `superresolve=true` the case is super-resolved first.
        """
        served: Served[Predictor] = endpoint.served
        files = {"t1": t1, "t1c": t1c, "t2": t2, "flair": flair, "image": image}
        parts = {name: await file.read() for name, file in files.items() if file is not None}
        modalities = served.model.spec.config.preprocess.modalities
        if case is not None:
            parts = await unzip_case(endpoint, await case.read(), beside=parts, modalities=modalities)
        check_uploads(parts, modalities)
        convention = choose_convention(labels, served.model.spec)
        enhance = None
        if superresolve == "true" and enhancement is not None:
            enhance = enhancement.begin(options)
        else:
            sent = {"grid": grid, **vars(options)}
            unused = [name for name, value in sent.items() if value is not None]
            if unused:
                raise UsageError(
                    f"{unused[0]} was sent without superresolve; send superresolve=true beside it"
                )
        read, enhanced = await endpoint.read(lambda: _read(served, parts, enhance, resample == "true"))
        if output is None:
            output = "report" if accepts_json(request.headers.get("accept", "")) else "mask"

        def work() -> Response:
            return _segment(served, read, enhanced, convention, grid == "input", resample == "true", output)

        return await endpoint.run(work, done="segmented")

    return Routes(router, ModelAnswer, _describe)


class _NoOptions:
    pass


def _no_fields() -> _NoOptions:
    return _NoOptions()


def _read(
    served: Served[Predictor],
    parts: dict[str, bytes],
    enhance: Callable[[Case], Callable[[], Enhanced]] | None,
    resample: bool,
) -> tuple[Case, Callable[[], Enhanced] | None]:
    """The case that was sent, and what improves it.

    Raises:
        CaseError: the files are no case.
        ModelError: the case does not fit a model.
    """
    modalities = served.model.spec.config.preprocess.modalities
    case = load_case_from_bytes(parts, modalities=modalities, limits=LIMITS)
    if enhance is not None:
        return case, enhance(case)
    served.model.choose_preprocessing(case, resample=resample, max_voxels=LIMITS.max_voxels)
    return case, None


def _segment(
    served: Served[Predictor],
    case: Case,
    enhance: Callable[[], Enhanced] | None,
    convention: LabelConvention,
    on_input_grid: bool,
    resample: bool,
    output: str,
) -> Response:
    """The answer to one case.

    Raises:
        CaseError, ModelError: the case does not fit a model.
    """
    model = served.model
    headers = {MODEL_HEADER: served.version, **warning_header("; ".join(case.notes))}
    enhanced = None if enhance is None else enhance()
    grid = case
    if enhanced is not None:
        grid = enhanced.case
        headers |= enhanced.headers
    probs = model.probs(grid, resample=resample)
    # Where it was not resampled, there is nothing to describe: such voxels are refused.
    resampling = model.describe_resampling(grid)
    if resampling is not None:
        headers |= warning_header("; ".join(filter(None, [headers.get(WARNING_HEADER), resampling])))
    mask = model.decode(probs, grid.voxel_ml)
    maps = model.region_probs(probs) if output != "mask" else {}
    if output in ("probabilities", "all"):
        maps["uncertainty"] = uncertainty(probs, model.spec.config.loss.target, model.spec.regions)
    if on_input_grid and enhanced is not None:
        shape = case.images.shape[1:]
        mask, grid = volumes.resample_labels(mask, shape), case
        maps = {name: volumes.resample(values, shape) for name, values in maps.items()}
    superres = None if enhanced is None else enhanced.version
    unsure = maps.pop("uncertainty", None)
    outputs = Outputs(grid, mask, maps, unsure, convention, model.spec, served.version, superres, resampling)
    data, media_type, name = outputs.encode(output)
    if media_type != JSON:
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return Response(data, media_type=media_type, headers=headers)


def _describe(uri: str, served: Served[Predictor]) -> ModelAnswer:
    spec = served.model.spec
    return ModelAnswer(
        uri=uri,
        version=served.version,
        recipe=spec.config.recipe,
        metrics=spec.metrics,
        modalities=spec.config.preprocess.modalities,
        spacing_mm=spec.spacing_mm,
        preprocessing=to_dict(spec.config.preprocess),
    )
