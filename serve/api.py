"""The endpoint's routes, as a FastAPI application that knows nothing of Ray."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glioray.serialization import to_dict
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.superres.model import SuperResolver
from serve.description import SEGMENT_ANSWERS, SEGMENT_BODY, SUPERRES_ANSWERS, SUPERRES_BODY
from serve.request_queue import RequestQueue, served_by
from serve.schemas import (
    NOTICE,
    NOTICE_HEADER,
    Health,
    ModelAnswer,
    Models,
    Readiness,
    Settings,
    SuperResAnswer,
)
from serve.segment import segment as segment_upload
from serve.superresolve import superresolve as superresolve_upload
from serve.uploads import SuperResUpload, Upload, read_superres_upload, read_upload
from serve.watch import ModelWatch, Served


def make_api(
    settings: Settings, watch: ModelWatch[Predictor], superres: ModelWatch[SuperResolver] | None = None
) -> FastAPI:
    """The application; it starts and stops the watches with itself.

    Args:
        settings: limits and names.
        watch: what segments; the application is ready when it is.
        superres: what makes cases sharper, or None where that is not offered.
    """
    desk = RequestQueue(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        watches = [found for found in (watch, superres) if found is not None]
        for found in watches:
            found.start()
        yield
        for found in watches:
            found.stop()
        desk.close()

    # The usual pages under /docs load scripts from elsewhere; the description itself needs nobody.
    api = FastAPI(
        title="glioray",
        description=NOTICE,
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    api.add_middleware(_Notice)

    def sharper() -> Served[SuperResolver]:
        if superres is None:
            raise HTTPException(503, "this endpoint serves no super-resolution; start it with --superres")
        return served_by(superres)

    @api.post("/v1/segment", openapi_extra=SEGMENT_BODY, responses=SEGMENT_ANSWERS, response_model=None)
    async def segment(request: Request) -> Response:
        """Segment one case: its mask as .nii.gz, or with `Accept: application/json` volumes in ml.

        With `superresolve=true` the case is made sharper first.
        """
        served = served_by(watch)
        modalities = served.model.spec.config.preprocess.modalities

        async def read() -> tuple[Upload, Served[SuperResolver] | None]:
            upload = await read_upload(request, settings.max_body_bytes, modalities)
            return upload, None if upload.sharpening is None else sharper()

        def work(body: tuple[Upload, Served[SuperResolver] | None]) -> Response:
            upload, first = body
            return segment_upload(served, first, upload, _accepts_json(request))

        return await desk.handle(read, work, done="segmented")

    @api.post(
        "/v1/superresolve", openapi_extra=SUPERRES_BODY, responses=SUPERRES_ANSWERS, response_model=None
    )
    async def superresolve(request: Request) -> Response:
        """Make slices sharper: NIfTI to NIfTI on a finer grid, PNG to PNG.

        With `Accept: application/json` a description of what would come, without making it.
        """
        served = sharper()
        config = served.model.spec.config

        async def read() -> SuperResUpload:
            joint, modalities = config.num_channels > 1, config.preprocess.modalities
            return await read_superres_upload(request, settings.max_body_bytes, modalities, joint)

        work = partial(superresolve_upload, served, as_json=_accepts_json(request))
        return await desk.handle(read, work, done="made sharper")

    @api.get("/v1/models")
    async def models() -> Models:
        """The models that are served."""
        answers: list[ModelAnswer | SuperResAnswer] = []
        if watch.served is not None:
            answers.append(_describe(watch.uri, watch.served))
        if superres is not None and superres.served is not None:
            answers.append(_describe_superres(superres.uri, superres.served))
        return Models(models=answers)

    @api.get("/healthz")
    async def healthz() -> Health:
        """Whether the process answers."""
        return Health()

    @api.get("/readyz", responses={503: {"model": Readiness}}, response_model=Readiness)
    async def readyz() -> Response:
        """Whether a model that segments is loaded; and how super-resolution stands, which may be missing."""
        answer = Readiness(
            state=watch.state, detail=watch.status, superres=None if superres is None else superres.status
        )
        status = 200 if answer.state == "ready" else 503
        return JSONResponse(answer.model_dump(exclude_none=True), status)

    return api


class _Notice:
    """Puts the notice on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noticed(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = (NOTICE_HEADER.lower().encode(), NOTICE.encode())
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        await self.app(scope, receive, noticed)


def _accepts_json(request: Request) -> bool:
    parts = request.headers.get("accept", "").split(",")
    return "application/json" in [part.partition(";")[0].strip() for part in parts]


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


def _describe_superres(uri: str, served: Served[SuperResolver]) -> SuperResAnswer:
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
