"""One task's side of the endpoint, in the process of its model and in the process that forwards to it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from glioray.engine.serving import Enhancement, Served
from serve.forms import FormRequest, form_fields
from serve.forward import Forward, WholeRequest
from serve.observe import REQUEST_ID_HEADER, request_id
from serve.request_queue import RETRY_AFTER, Places, RequestQueue
from serve.status import Status
from serve.watch import ModelWatch

T = TypeVar("T")


def no_model_of(task: str) -> str:
    """The refusal of an endpoint that was started without a model of a task."""
    return f"this endpoint serves no model of the task {task}; start it with --{task}"


class TaskEndpoint:
    """What a task's routes work with (`engine.serving.Endpoint`).

    Attributes:
        name: of the task.
        watch: of its model; None where none is to be served.
        queue: shared by all tasks.
        enhancement: of another task, or None.
    """

    def __init__(
        self,
        name: str,
        watch: ModelWatch[Any] | None,
        queue: RequestQueue,
        enhancement: Enhancement | None = None,
    ) -> None:
        self.name, self.watch, self.queue, self.enhancement = name, watch, queue, enhancement

    @property
    def served(self) -> Served[Any]:
        if self.watch is None:
            raise HTTPException(503, no_model_of(self.name))
        if self.watch.served is None:
            raise HTTPException(503, self.watch.reason, RETRY_AFTER)
        return self.watch.served

    def make_router(self) -> APIRouter:
        endpoint = self

        class QueuedRoute(APIRoute):
            """Holds a place in the queue from before the body is read, for as long as there is a model."""

            def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                plain = super().get_route_handler()
                fields = form_fields(self.dependant)

                async def handle(request: Request) -> Response:
                    # The process that clients reach gave it.
                    request_id.set(request.headers.get(REQUEST_ID_HEADER, "-"))
                    _ = endpoint.served  # refused without a model, before the body is read
                    with endpoint.queue.places.take():
                        return await plain(FormRequest(request.scope, request.receive, fields))

                return handle

        return APIRouter(route_class=QueuedRoute)

    async def read(self, work: Callable[[], T]) -> T:
        return await self.queue.read(work)

    async def run(self, work: Callable[[], Response], *, done: str) -> Response:
        return await self.queue.run(work, done=done)


class ForwardingEndpoint:
    """What a task's routes are described with where they are forwarded (`engine.serving.Endpoint`).

    Attributes:
        name: of the task.
        forward: sends a request to the process with the model; None where none is to be served.
        status: of the models.
        places: for requests of all tasks.
        enhancement: of another task, or None; its form fields alone are used.
    """

    def __init__(
        self,
        name: str,
        forward: Forward | None,
        status: Status,
        places: Places,
        enhancement: Enhancement | None = None,
    ) -> None:
        self.name, self.forward, self.status, self.places = name, forward, status, places
        self.enhancement = enhancement

    @property
    def served(self) -> Served[Any]:
        raise AssertionError("a forwarded route has no model")

    async def read(self, work: Callable[[], T]) -> T:
        raise AssertionError("a forwarded route reads nothing")

    async def run(self, work: Callable[[], Response], *, done: str) -> Response:
        raise AssertionError("a forwarded route works on nothing")

    def make_router(self) -> APIRouter:
        endpoint = self

        class ForwardedRoute(APIRoute):
            """Describes its parameters, and passes the whole request on."""

            def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                return endpoint.handle

        return APIRouter(route_class=ForwardedRoute)

    async def handle(self, request: Request) -> Response:
        """Forward a request, which is refused without a model before its body is read.

        Raises:
            HTTPException: 400, 408, 413, 429, 503.
        """
        if self.forward is None:
            raise HTTPException(503, no_model_of(self.name))
        state = (await self.status.states())[self.name]
        if state.state != "ready":
            raise HTTPException(503, state.detail, RETRY_AFTER)
        with self.places.take():
            try:
                body = await request.body()
            except ClientDisconnect as error:
                raise HTTPException(400, "the body ended early; send it again") from error
            scope = request.scope
            answer = await self.forward(
                WholeRequest(
                    request.method, request.url.path, scope["query_string"], list(scope["headers"]), body
                )
            )
        response = Response(answer.body, answer.status)
        response.raw_headers = answer.headers
        return response
