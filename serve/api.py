"""The endpoint as a FastAPI application: every task's routes, and what the endpoint says of itself. Without Ray."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Union

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field, create_model
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glioray import tasks
from glioray.engine.serving import NOTICE, Routes, prefers
from glioray.errors import UsageError
from glioray.reports.html import render
from serve.endpoint import TaskEndpoint
from serve.forms import explain
from serve.limits import BodyLimits
from serve.request_queue import RequestQueue
from serve.schemas import NOTICE_HEADER, Health, Index, Readiness, Settings
from serve.watch import ModelWatch


def make_api(settings: Settings, watches: Mapping[str, ModelWatch[Any]]) -> FastAPI:
    """The application; it starts and stops the watches with itself.

    The routes of every task are mounted. Those of a task without a watch, or without a model, answer 503.

    Args:
        settings: limits.
        watches: of the models, by the name of their task; the first task's makes the endpoint ready.
    """
    queue = RequestQueue(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        for watch in watches.values():
            watch.start()
        yield
        for watch in watches.values():
            watch.stop()
        queue.close()

    # The usual pages under /docs load scripts from elsewhere; the description itself needs nobody.
    api = FastAPI(
        title="glioray",
        description=NOTICE,
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    api.add_middleware(BodyLimits, max_bytes=settings.max_body_bytes, timeout_s=settings.timeout_s)
    api.add_middleware(_Notice)
    api.add_middleware(_Head)

    @api.exception_handler(RequestValidationError)
    async def refuse_fields(request: Request, error: RequestValidationError) -> Response:
        return JSONResponse({"detail": explain(request, error)}, 422)

    @api.exception_handler(UsageError)
    async def refuse_usage(_: Request, error: UsageError) -> Response:
        return JSONResponse({"detail": str(error)}, 422)

    routes = _make_routes(watches, queue)
    for task_routes in routes.values():
        api.include_router(task_routes.router)
    _add_status(api, watches, routes)
    return api


def _make_routes(watches: Mapping[str, ModelWatch[Any]], queue: RequestQueue) -> dict[str, Routes]:
    """Each task's routes, in the order of `TASKS`; tasks that make images come first, as they enhance for others."""
    found = {name: tasks.load_task(name) for name in tasks.TASKS}
    routes: dict[str, Routes] = {}
    for name in sorted(found, key=lambda name: found[name].output != "images"):
        offers = [made.enhancement for made in routes.values() if made.enhancement is not None]
        enhancement = offers[0] if offers and found[name].output != "images" else None
        routes[name] = found[name].routes(TaskEndpoint(name, watches.get(name), queue, enhancement))
    return {name: routes[name] for name in found}


def _add_status(api: FastAPI, watches: Mapping[str, ModelWatch[Any]], routes: Mapping[str, Routes]) -> None:
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

    def list_models() -> list[BaseModel]:
        return [
            routes[name].describe(watch.uri, watch.served)
            for name, watch in watches.items()
            if watch.served is not None
        ]

    def describe_state() -> dict[str, str]:
        watch = watches[first]
        others_now = {name: other.status for name, other in watches.items() if name != first}
        return {"state": watch.state, "detail": watch.status, **others_now}

    @api.get("/", response_model=index_type, responses={200: page})
    async def index(request: Request) -> Response:
        """This endpoint's version, state, models and routes; a page where HTML is preferred."""
        found = {
            "service": api.title,
            "notice": NOTICE,
            **describe_state(),
            "models": [model.model_dump(mode="json") for model in list_models()],
            "routes": [
                {"method": method.upper(), "path": path, "summary": route["description"].partition("\n")[0]}
                for path, methods in api.openapi()["paths"].items()
                for method, route in methods.items()
            ],
            "openapi": api.openapi_url,
        }
        if prefers(request.headers.get("accept", ""), "text/html", ["application/json"]):
            return HTMLResponse(render("endpoint.html", **found))
        return JSONResponse(found)

    @api.get("/v1/models", response_model=models_type)
    async def models() -> dict[str, Any]:
        """The models that are served."""
        return {"models": list_models()}

    @api.get("/healthz")
    async def healthz() -> Health:
        """Whether the process answers."""
        return Health()

    @api.get("/readyz", responses={503: {"model": readiness_type}}, response_model=readiness_type)
    async def readyz() -> Response:
        """Whether a model that segments is loaded; and the states of the other models, which may be missing."""
        answer = describe_state()
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
