"""The endpoint as FastAPI applications: one that clients see, and one for each model behind it. Without Ray."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Union

from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, create_model
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from glioray import tasks
from glioray.engine.serving import MODEL_HEADER, NOTICE, WARNING_HEADER, Enhancement, Routes, prefers
from glioray.errors import UsageError
from serve.api_keys import KeyFile, RequireKey
from serve.endpoint import ForwardingEndpoint, TaskEndpoint
from serve.forms import NO_OBJECT, explain
from serve.forward import Forward, call_app
from serve.jobs import JobStore, Launcher, make_job_router
from serve.limits import BodyLimits
from serve.metrics import NoRecorder, Recorder
from serve.observe import REQUEST_ID_HEADER, Observe
from serve.page import make_page_router, read_files
from serve.request_queue import Places, RequestQueue
from serve.schemas import NOTICE_HEADER, Health, Index, Readiness, Settings
from serve.status import LocalStatus, ModelState, Status
from serve.watch import ModelWatch
from serve.webhook import make_webhook_router, read_secret

_EXPOSED = (MODEL_HEADER, WARNING_HEADER, NOTICE_HEADER, REQUEST_ID_HEADER)


def make_api(
    settings: Settings,
    watches: Mapping[str, ModelWatch[Any]],
    recorder: Recorder | None = None,
    launcher: Launcher | None = None,
) -> FastAPI:
    """The endpoint with the models in its own process, without Ray; it starts and stops the watches with itself.

    Args:
        settings: limits.
        watches: of the models, by the name of their task; the first task's makes the endpoint ready. The routes of a
            task without a watch, or without a model, answer 503.
        recorder: takes the measurements; None for none.
        launcher: of jobs; None for none.
    """
    queue = RequestQueue(settings)
    made: dict[str, tuple[FastAPI, Routes]] = {}
    for name, enhancement in _with_enhancements(lambda name: made[name][1]):
        made[name] = make_task_api(TaskEndpoint(name, watches.get(name), queue, enhancement))
    status = LocalStatus(watches, {name: routes for name, (_, routes) in made.items()})

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        for watch in watches.values():
            watch.start()
        yield
        for watch in watches.values():
            watch.stop()
        queue.close()

    forwards = {name: partial(call_app, made[name][0]) for name in watches}
    return make_gateway(settings, status, forwards, lifespan, recorder, launcher)


def make_task_api(endpoint: TaskEndpoint) -> tuple[FastAPI, Routes]:
    """The routes of the task of an endpoint, for the process with its model."""
    routes = tasks.load_task(endpoint.name).routes(endpoint)
    api = FastAPI(openapi_url=None)
    _add_refusals(api)
    api.include_router(routes.router)
    return api, routes


def make_gateway(
    settings: Settings,
    status: Status,
    forwards: Mapping[str, Forward],
    lifespan: Lifespan[FastAPI] | None = None,
    recorder: Recorder | None = None,
    launcher: Launcher | None = None,
    sends_id: bool = True,
) -> FastAPI:
    """The application that clients see: keys, limits, the routes of every task, and the endpoint's own.

    Args:
        settings: limits.
        status: of the models.
        forwards: send requests to each task's model; a task without one answers 503.
        lifespan: of the application.
        recorder: takes the measurements; None for none.
        launcher: of jobs; None for none.
        sends_id: as of `Observe`.

    Raises:
        UsageError: the file of API keys, that of the webhook's secret or a root of jobs cannot be used.
    """
    # The usual pages under /docs load scripts from elsewhere; the description itself needs nobody.
    api = FastAPI(
        title="glioray",
        description=NOTICE,
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    _add_refusals(api)
    places = Places(settings.max_pending * settings.max_replicas)
    routes: dict[str, Routes] = {}
    for name, enhancement in _with_enhancements(lambda name: routes[name]):
        endpoint = ForwardingEndpoint(name, forwards.get(name), status, places, enhancement)
        routes[name] = tasks.load_task(name).routes(endpoint)
    routes = {name: routes[name] for name in tasks.TASKS}
    for task_routes in routes.values():
        api.include_router(task_routes.router)
    store = JobStore(settings.job_roots) if settings.job_roots else None
    api.include_router(make_job_router(store, launcher, status, next(iter(routes)), settings.max_jobs))
    if settings.webhook_secret is not None:
        api.include_router(make_webhook_router(read_secret(settings.webhook_secret), status))
    _add_status(api, status, routes)
    api.include_router(make_page_router(status))
    _add_middleware(api, settings, recorder or NoRecorder(), routes, sends_id)
    return api


def _add_middleware(
    api: FastAPI, settings: Settings, recorder: Recorder, routes: Mapping[str, Routes], sends_id: bool
) -> None:
    """Put what every request passes around an application, the innermost first."""
    paths = {route.path: task for task, made in routes.items() for route in made.router.routes}  # type: ignore[attr-defined]
    api.add_middleware(
        BodyLimits, max_bytes=settings.max_body_bytes, timeout_s=settings.timeout_s, paths=paths.keys()
    )
    if settings.api_keys is not None:
        api.add_middleware(RequireKey, keys=KeyFile(settings.api_keys))
    api.add_middleware(Observe, recorder=recorder, tasks=paths, sends_id=sends_id)
    if settings.allowed_origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", REQUEST_ID_HEADER],
            expose_headers=[*_EXPOSED, "Content-Disposition", "Retry-After"],
        )
    api.add_middleware(_Notice)
    api.add_middleware(_Head)


def _with_enhancements(made: Callable[[str], Routes]) -> Iterator[tuple[str, Enhancement | None]]:
    """Each task, and the enhancement for its routes; tasks that make images come first, as they enhance for others.

    Args:
        made: the routes of a task that was yielded before.
    """
    images = list_image_tasks()
    yield from ((name, None) for name in images)
    offers = [offer for name in images if (offer := made(name).enhancement) is not None]
    yield from ((name, offers[0] if offers else None) for name in tasks.TASKS if name not in images)


def list_image_tasks() -> list[str]:
    """The tasks that make images, which enhance cases for the others."""
    return [name for name in tasks.TASKS if tasks.load_task(name).output == "images"]


def enhancement_fields(task: str) -> Callable[..., Any]:
    """The form fields of the enhancement that a task offers."""
    endpoint = ForwardingEndpoint(task, None, LocalStatus({}, {}), Places(1))
    offer = tasks.load_task(task).routes(endpoint).enhancement
    assert offer is not None
    return offer.fields


def _add_refusals(api: FastAPI) -> None:
    @api.exception_handler(RequestValidationError)
    async def refuse_fields(request: Request, error: RequestValidationError) -> Response:
        return JSONResponse({"detail": explain(request, error)}, 422)

    @api.exception_handler(StarletteHTTPException)
    async def refuse_body(request: Request, error: StarletteHTTPException) -> Response:
        # FastAPI has a sentence that helps nobody for what its JSON parser cannot even begin with.
        if isinstance(error.__cause__, UnicodeDecodeError | RecursionError):
            return JSONResponse({"detail": NO_OBJECT}, 422)
        return await http_exception_handler(request, error)

    @api.exception_handler(UsageError)
    async def refuse_usage(_: Request, error: UsageError) -> Response:
        return JSONResponse({"detail": str(error)}, 422)


def _add_status(api: FastAPI, status: Status, routes: Mapping[str, Routes]) -> None:
    """Add /, /v1/models, /healthz and /readyz."""
    first, *others = routes
    answers = tuple(dict.fromkeys(made.answer for made in routes.values()))
    models_type: type[BaseModel] = create_model(
        "Models", __doc__="The models that are served; none without champions.", models=list[Union[answers]]  # type: ignore[valid-type]  # noqa: UP007
    )  # fmt: skip
    description = "state of its model; left out where none is to be served"
    states: dict[str, Any] = {name: (str | None, Field(None, description=description)) for name in others}
    readiness_type: type[BaseModel] = create_model("Readiness", __base__=Readiness, **states)

    index_type = create_model("Index", __base__=(Index, models_type, readiness_type))
    page = {"content": {"text/html": {"schema": {"type": "string"}}}, "description": "by `Accept`"}

    def list_models(states: Mapping[str, ModelState]) -> list[dict[str, Any]]:
        return [state.entry for state in states.values() if state.entry is not None]

    def describe_state(states: Mapping[str, ModelState]) -> dict[str, str]:
        others_now = {name: state.detail for name, state in states.items() if name != first}
        return {"state": states[first].state, "detail": states[first].detail, **others_now}

    @api.get("/", response_model=index_type, responses={200: page})
    async def index(request: Request) -> Response:
        """This endpoint's version, state, models and routes; the page for people where HTML is preferred."""
        if prefers(request.headers.get("accept", ""), "text/html", ["application/json"]):
            return read_files()["index.html"].answer(request)
        states = await status.states()
        found = {
            "service": api.title,
            "notice": NOTICE,
            **describe_state(states),
            "models": list_models(states),
            "routes": [
                {"method": method.upper(), "path": path, "summary": route["description"].partition("\n")[0]}
                for path, methods in api.openapi()["paths"].items()
                for method, route in methods.items()
            ],
            "openapi": api.openapi_url,
        }
        return JSONResponse(found, headers={"Vary": "Accept"})

    @api.get("/v1/models", response_model=models_type)
    async def models() -> dict[str, Any]:
        """The models that are served."""
        return {"models": list_models(await status.states())}

    @api.get("/healthz")
    async def healthz() -> Health:
        """Whether the process answers."""
        return Health()

    @api.get("/readyz", responses={503: {"model": readiness_type}}, response_model=readiness_type)
    async def readyz() -> Response:
        """Whether a model that segments is loaded; and the states of the other models, which may be missing."""
        answer = describe_state(await status.states())
        return JSONResponse(answer, 200 if answer["state"] == "ready" else 503)


class _Head:
    """Answers HEAD as GET without the body; FastAPI's own routes answer 405."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, send_head)


class _Notice:
    """Puts the notice on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_noticed(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = (NOTICE_HEADER.lower().encode(), NOTICE.encode())
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        await self.app(scope, receive, send_noticed)
