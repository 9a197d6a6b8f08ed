"""The state of the models that an endpoint serves, wherever they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from glioray.engine.serving import Routes
from serve.watch import ModelWatch


@dataclass(frozen=True)
class ModelState:
    """The state of one task's model.

    Attributes:
        state: "ready" where requests are answered; "loading" ends by itself, "waiting" when a model is promoted.
        detail: the served version, or why there is none, in a sentence for clients.
        entry: of /v1/models; None without a model.
    """

    state: Literal["ready", "loading", "waiting"]
    detail: str
    entry: dict[str, Any] | None = None


class Status(Protocol):
    """Says how the models stand."""

    async def states(self) -> Mapping[str, ModelState]:
        """The states, by the name of the task; the first task's makes the endpoint ready."""

    async def follow(self) -> None:
        """Look for other versions now, and not at the next look."""


class LocalStatus:
    """Of models in this process."""

    def __init__(self, watches: Mapping[str, ModelWatch[Any]], routes: Mapping[str, Routes]) -> None:
        self.watches, self.routes = watches, routes

    async def states(self) -> Mapping[str, ModelState]:
        return {name: state_of(watch, self.routes[name]) for name, watch in self.watches.items()}

    async def follow(self) -> None:
        for watch in self.watches.values():
            watch.follow()


def state_of(watch: ModelWatch[Any], routes: Routes) -> ModelState:
    """The state of a watched model of this process."""
    served = watch.served
    entry = None if served is None else routes.describe(watch.uri, served).model_dump(mode="json")
    return ModelState(watch.state, watch.status, entry)
