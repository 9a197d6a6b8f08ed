"""The endpoint's settings, and its answers about itself."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

NOTICE_HEADER = "X-Glioray-Notice"


class Settings(BaseModel):
    """The endpoint's settings; the `args` of a Serve config, and the flags of `app.py`.

    Attributes:
        model: URI of the segmentation model that is served; an alias is followed when it moves.
        superres: URI of the super-resolution model beside it; None for none. Without such a model the endpoint is
            ready all the same, and only requests that need it are refused.
        models: URIs of models of further tasks, by the task's name.
        tracking_uri: the MLflow server; by default the replica's own MLFLOW_TRACKING_URI.
        poll_s: seconds between two looks at each alias.
        max_body_mb: largest request in MB (10^6 bytes).
        max_pending: cases that a replica holds at once, the running one among them; further ones get 429.
        timeout_s: seconds for a request's body to arrive, and again for its answer to be ready.
        replicas: processes that serve.
        cpus: CPUs that Ray reserves for a replica; fewer than it uses, so that training fits beside it on two CPUs.
        gpus: GPUs of a replica; with 0 it computes on the CPU.
        num_threads: of torch in a replica; None for torch's own choice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "models:/glioray-unet@champion"
    superres: str | None = "models:/glioray-superres@champion"
    models: dict[str, str] = Field(default_factory=dict)
    tracking_uri: str | None = None
    poll_s: float = Field(15.0, gt=0)
    max_body_mb: float = Field(400.0, gt=0)
    max_pending: int = Field(4, ge=1)
    timeout_s: float = Field(300.0, gt=0)
    replicas: int = Field(1, ge=1)
    cpus: float = Field(0.25, ge=0)
    gpus: float = Field(0.0, ge=0)
    num_threads: int | None = Field(None, ge=1)

    @property
    def uris(self) -> dict[str, str]:
        """The URI of each task's model, by the task's name."""
        uris = {"segmentation": self.model, "superres": self.superres, **self.models}
        return {task: uri for task, uri in uris.items() if uri is not None}

    @property
    def max_body_bytes(self) -> int:
        """`max_body_mb` in bytes."""
        return int(self.max_body_mb * 1e6)


class Readiness(BaseModel):
    """Whether the endpoint can segment: "loading" ends by itself, "waiting" until a model is promoted."""

    state: Literal["ready", "loading", "waiting"]
    detail: str


class RouteSummary(BaseModel):
    """A route in a line."""

    method: str
    path: str
    summary: str


class Index(BaseModel):
    """An endpoint's version, models and routes."""

    service: str
    notice: str
    routes: list[RouteSummary]
    openapi: str = Field(description="path of the description of all routes, fields and answers")


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"
