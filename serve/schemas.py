"""The endpoint's settings, and its answers about itself."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

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
        replicas: processes of the first model, which segments, at least; those of other models end after ten minutes
            without a request, and start with the next one.
        max_replicas: processes of a model at most, as many as its queue asks for.
        target_pending: cases of a replica, in work and waiting, beyond which a further replica starts.
        cpus: CPUs of a replica, and threads of torch in it.
        gpus: GPUs of a replica; with 0 it computes on the CPU.
        api_keys: the file of the hashes of API keys that `keys.py` makes: a path on the gateway's node, or `s3://`.
        webhook_secret: the file of the secret that MLflow's webhook signs its calls with; None for no webhook.
        no_keys: answer everybody who reaches the endpoint, where there are no `api_keys`.
        job_roots: absolute folders and `s3://` prefixes that jobs may read and write below; without any there are no jobs.
        max_jobs: that run at once.
        allowed_origins: of pages from elsewhere whose scripts may use the endpoint, such as https://viewer.example.org.
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
    max_replicas: int = Field(1, ge=1)
    target_pending: float = Field(2.0, gt=0)
    cpus: float = Field(1.0, gt=0)
    gpus: float = Field(0.0, ge=0)
    api_keys: str | None = None
    webhook_secret: str | None = None
    no_keys: bool = False
    allowed_origins: tuple[str, ...] = ()
    job_roots: tuple[str, ...] = ()
    max_jobs: int = Field(2, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _at_least_replicas(cls, values: Any) -> Any:
        """Where only `replicas` is given, it is also the most."""
        if isinstance(values, dict) and "max_replicas" not in values and "replicas" in values:
            return {**values, "max_replicas": values["replicas"]}
        return values

    @model_validator(mode="after")
    def _check_replicas(self) -> Settings:
        if self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}; expected at least replicas, {self.replicas}"
            )
        return self

    @field_validator("allowed_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(r"https?://[\w.-]+(:\d+)?", origin):
                raise ValueError(f"'{origin}' is no origin; expected one such as https://viewer.example.org")
        return origins

    @property
    def num_threads(self) -> int:
        """Threads of torch in a replica."""
        return max(1, int(self.cpus))

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
