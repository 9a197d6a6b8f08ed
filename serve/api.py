"""The endpoint's routes, as a FastAPI application that knows nothing of Ray."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glioray.cases.labels import CONVENTIONS, LABELS, REGION_LABELS, from_internal
from glioray.cases.load import Case, load_case_from_bytes
from glioray.cases.nifti import Limits, encode_mask
from glioray.config import MODALITIES
from glioray.errors import CaseError, ModelError
from glioray.plain import to_dict
from serve.schemas import NOTICE, Health, ModelAnswer, Models, Readiness, Refusal, Settings, Volumes
from serve.uploads import DEFAULT_LABELS, LABELS_FIELD, Upload, read_upload
from serve.watch import ModelWatch, Served

_log = logging.getLogger("glioray.serve")

MODEL_HEADER, NOTICE_HEADER = "X-Glioray-Model", "X-Glioray-Notice"
_RETRY_AFTER = {"Retry-After": "5"}
# Smaller than a job's: what a stranger sends shall not fill a node's memory. A BraTS case has 9 million voxels.
_LIMITS = Limits(max_voxels=2**26, max_bytes=2**29)

_FILE = {"type": "string", "format": "binary"}
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    **{
                        m: {**_FILE, "description": f"NIfTI, {m}; where the model takes it"}
                        for m in MODALITIES
                    },
                    "image": {
                        **_FILE,
                        "description": "one 4-D NIfTI instead, with the channels FLAIR, T1, T1c, T2, "
                        "where the model takes all four",
                    },
                    LABELS_FIELD: {"type": "string", "enum": list(CONVENTIONS), "default": DEFAULT_LABELS},
                },
            }
        }
    },
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the mask on the image's own grid, or the volumes where JSON is accepted",
        "content": {
            "application/gzip": {"schema": _FILE},
            "application/json": {"schema": {"$ref": "#/components/schemas/Volumes"}},
        },
        "model": Volumes,
    },
    **{status: {"model": Refusal} for status in (400, 408, 413, 415, 422, 429, 500, 503)},
}


def make_api(settings: Settings, watch: ModelWatch) -> FastAPI:
    """The application; it starts and stops the watch with itself."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        watch.start()
        yield
        watch.stop()
        desk.close()

    desk = _Desk(settings, watch)
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

    @api.post("/v1/segment", openapi_extra={"requestBody": _BODY}, responses=_ANSWERS, response_model=None)
    async def segment(request: Request) -> Response:
        """Segment one case: its mask as .nii.gz, or with `Accept: application/json` volumes in ml."""
        return await desk.segment(request)

    @api.get("/v1/models")
    async def models() -> Models:
        """The model that is served."""
        return Models(models=[_describe(settings.model, watch.served)] if watch.served else [])

    @api.get("/healthz")
    async def healthz() -> Health:
        """Whether the process answers."""
        return Health()

    @api.get("/readyz", responses={503: {"model": Readiness}}, response_model=Readiness)
    async def readyz() -> Response:
        """Whether a model is loaded."""
        served = watch.served
        detail = watch.reason if served is None else f"serving {served.version}"
        answer = Readiness(state=watch.state, detail=detail)
        return JSONResponse(answer.model_dump(), 200 if answer.state == "ready" else 503)

    return api


class _Desk:
    """Takes cases in, as many as settings allow, and has them segmented one after the other beside the event loop."""

    def __init__(self, settings: Settings, watch: ModelWatch) -> None:
        self.settings, self.watch = settings, watch
        # Counts from before the body is read until the work has ended, also after the client has gone:
        # what a replica holds stays bounded.
        self.places = threading.BoundedSemaphore(settings.max_pending)
        self.pool = ThreadPoolExecutor(1, "segment", _set_threads, (settings.num_threads,))

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)

    async def segment(self, request: Request) -> Response:
        served = self.watch.served
        if served is None:
            raise HTTPException(503, self.watch.reason, _RETRY_AFTER)
        if not self.places.acquire(blocking=False):
            found = f"as many cases are being segmented as fit ({self.settings.max_pending})"
            raise HTTPException(429, f"{found}; try again in some seconds", _RETRY_AFTER)
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                modalities = served.predictor.spec.config.preprocess.modalities
                upload = await read_upload(request, self.settings.max_body_bytes, modalities)
            accept = [part.partition(";")[0].strip() for part in request.headers.get("accept", "").split(",")]
            as_json = "application/json" in accept
            work = self.pool.submit(_segment, served, upload, as_json)
        except TimeoutError as error:
            self.places.release()
            limit = f"{self.settings.timeout_s:g} s"
            raise HTTPException(408, f"the body had not arrived after {limit}; send it again") from error
        except BaseException:
            self.places.release()
            raise
        work.add_done_callback(lambda _: self.places.release())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(work), self.settings.timeout_s)
        except TimeoutError as error:
            found = f"the case was not segmented within {self.settings.timeout_s:g} s"
            raise HTTPException(503, f"{found}; try again when there is less to do", _RETRY_AFTER) from error


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


def _set_threads(num_threads: int | None) -> None:
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def _segment(served: Served, upload: Upload, as_json: bool) -> Response:
    """The answer to a case; what cannot be done becomes an HTTPException of one sentence."""
    try:
        modalities = served.predictor.spec.config.preprocess.modalities
        case = load_case_from_bytes(upload.parts, modalities=modalities, limits=_LIMITS)
        mask = served.predictor.predict(case)
        if as_json:
            answer = _measure(mask, case, served)
            return JSONResponse(answer.model_dump(), headers={MODEL_HEADER: served.version})
        data = encode_mask(from_internal(mask, upload.convention), like=case.reference)
    except CaseError as error:
        where = f"{error.file} " if error.file else ""
        raise HTTPException(422, f"{where}{error.found}; {error.advice}") from error
    except ModelError as error:
        raise HTTPException(422, str(error)) from error
    except MemoryError as error:
        raise HTTPException(413, "the case needs more memory than this server has; crop it") from error
    except Exception as error:
        _log.exception("a case could not be segmented")
        raise HTTPException(500, "the server failed on this case; its log says why") from error
    headers = {
        MODEL_HEADER: served.version,
        "Content-Disposition": 'attachment; filename="segmentation.nii.gz"',
    }
    return Response(data, media_type="application/gzip", headers=headers)


def _measure(mask: np.ndarray, case: Case, served: Served) -> Volumes:
    spec = served.predictor.spec
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
        model=served.version,
        volumes_ml={name: round(count * voxel_ml, 4) for name, count in voxels.items()},
        voxels=voxels,
        spacing_mm=case.spacing_mm,
    )


def _describe(uri: str, served: Served) -> ModelAnswer:
    spec = served.predictor.spec
    return ModelAnswer(
        uri=uri,
        version=served.version,
        recipe=spec.config.recipe,
        metrics=spec.metrics,
        modalities=spec.config.preprocess.modalities,
        spacing_mm=spec.spacing_mm,
        preprocessing=to_dict(spec.config.preprocess),
    )
