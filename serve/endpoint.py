"""One task's side of the endpoint: the model that is served, and a router with the endpoint's limits."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.routing import APIRoute

from glioray.engine.serving import Enhancement, Served
from serve.forms import FormRequest, form_fields
from serve.request_queue import RETRY_AFTER, RequestQueue
from serve.watch import ModelWatch

T = TypeVar("T")


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
            raise HTTPException(
                503, f"this endpoint serves no model of the task {self.name}; start it with --{self.name}"
            )
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
                    _ = endpoint.served  # refused without a model, before the body is read
                    with endpoint.queue.place():
                        return await plain(FormRequest(request.scope, request.receive, fields))

                return handle

        return APIRouter(route_class=QueuedRoute)

    async def read(self, work: Callable[[], T]) -> T:
        return await self.queue.read(work)

    async def run(self, work: Callable[[], Response], *, done: str) -> Response:
        return await self.queue.run(work, done=done)
