"""What the endpoint is told at its start, and what it answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

NOTICE = "research use only, not for clinical decisions"


class Settings(BaseModel):
    """The endpoint's settings; the `args` of a Serve config, and the flags of `app.py`.

    Attributes:
        model: URI of what is served; an alias is followed when it moves.
        tracking_uri: the MLflow server; by default the replica's own MLFLOW_TRACKING_URI.
        poll_s: seconds between two looks at the alias.
        max_body_mb: largest request in MB (10^6 bytes).
        max_pending: segmentations that a replica holds at once, the running one among them; further ones get 429.
        timeout_s: seconds for a request's body to arrive, and again for its answer to be ready.
        replicas: processes that serve.
        cpus: what Ray reserves for a replica. Less than it uses: on two CPUs, training takes 1.5 and reading cases 0.25.
        gpus: GPUs of a replica; with 0 it computes on the CPU.
        num_threads: of torch in a replica; None for torch's own choice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "models:/glioray-unet@champion"
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
    def max_body_bytes(self) -> int:
        """`max_body_mb` in bytes."""
        return int(self.max_body_mb * 1e6)


class Refusal(BaseModel):
    """Why a request was not carried out."""

    detail: str = Field(description="one sentence: what was found, what was expected, what to do")


class Volumes(BaseModel):
    """A segmentation in figures."""

    model: str = Field(description="the version that segmented, as models:/NAME/VERSION")
    volumes_ml: dict[str, float] = Field(
        description="by region: wt, tc, et (nested) and ncr, ed; rc (resection cavity) where the model knows it; wt "
        "alone where it was trained on masks of nothing else"
    )
    voxels: dict[str, int] = Field(description="voxel counts by region")
    spacing_mm: tuple[float, float, float] = Field(description="voxel edges along X, Y, Z in RAS+ order")
    notice: str = NOTICE


class ModelAnswer(BaseModel):
    """A model that is served."""

    uri: str = Field(description="what the endpoint was told to serve")
    version: str = Field(description="what that stands for now, as models:/NAME/VERSION")
    recipe: str
    metrics: dict[str, float] = Field(description="of its last validation")
    modalities: tuple[str, ...] = Field(description="the files that it takes")
    spacing_mm: tuple[float, float, float] = Field(
        description="median of its training cases, along X, Y, Z in RAS+ order"
    )
    preprocessing: dict[str, Any]
    notice: str = NOTICE


class Models(BaseModel):
    """The models that are served; none where there is no champion."""

    models: list[ModelAnswer]


class Readiness(BaseModel):
    """Whether the endpoint can segment: "loading" ends by itself, "waiting" needs somebody to act."""

    state: Literal["ready", "loading", "waiting"]
    detail: str


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"
