"""What the endpoint is told at its start, and what it answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from glioray.cases.nifti import Limits

NOTICE = "research use only, not for clinical decisions"

MODEL_HEADER, SUPERRES_HEADER = "X-Glioray-Model", "X-Glioray-Superres-Model"
NOTICE_HEADER, WARNING_HEADER = "X-Glioray-Notice", "X-Glioray-Warning"

# Smaller than a job's: what a stranger sends shall not fill a node's memory. A BraTS case has 9 million voxels.
LIMITS = Limits(max_voxels=2**26, max_bytes=2**29)


class Settings(BaseModel):
    """The endpoint's settings; the `args` of a Serve config, and the flags of `app.py`.

    Attributes:
        model: URI of the segmentation model that is served; an alias is followed when it moves.
        superres: URI of the super-resolution model beside it; None for none. Where there is no such model, the
            endpoint is ready all the same, and only what needs it is refused.
        tracking_uri: the MLflow server; by default the replica's own MLFLOW_TRACKING_URI.
        poll_s: seconds between two looks at the alias.
        max_body_mb: largest request in MB (10^6 bytes).
        max_pending: cases that a replica holds at once, the running one among them; further ones get 429.
        timeout_s: seconds for a request's body to arrive, and again for its answer to be ready.
        replicas: processes that serve.
        cpus: what Ray reserves for a replica. Less than it uses: on two CPUs, training takes 1.5 and reading cases 0.25.
        gpus: GPUs of a replica; with 0 it computes on the CPU.
        num_threads: of torch in a replica; None for torch's own choice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "models:/glioray-unet@champion"
    superres: str | None = "models:/glioray-superres@champion"
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
    superres: str | None = Field(
        None,
        description="the version that made the case sharper before, where one did, as models:/NAME/VERSION",
    )
    volumes_ml: dict[str, float] = Field(
        description="by region: wt, tc, et (nested) and ncr, ed; rc (resection cavity) where the model knows it; wt "
        "alone where it was trained on masks of nothing else"
    )
    voxels: dict[str, int] = Field(description="voxel counts by region")
    spacing_mm: tuple[float, float, float] = Field(description="voxel edges along X, Y, Z in RAS+ order")
    notice: str = NOTICE


class Sharpened(BaseModel):
    """What super-resolution makes of an input, in figures."""

    model: str = Field(description="the version that makes it, as models:/NAME/VERSION")
    scale: tuple[float, float] = Field(description="pixels of the result for one of the input, along H and W")
    lr_size: tuple[int, int] = Field(description="H and W of the input's slices, in pixels")
    size: tuple[int, int] = Field(description="H and W of the result's")
    plane: str = Field(description="of the slices that are made sharper; of a PNG it says nothing")
    blend: float = Field(description="0 for the PSNR generator, 1 for the GAN one, or between them")
    fits: bool = Field(description="whether the input is what the model was trained to make sharper")
    warning: str | None = Field(description="why it does not fit, or null")
    notice: str = NOTICE


class ModelAnswer(BaseModel):
    """A segmentation model that is served."""

    task: Literal["segmentation"] = "segmentation"
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


class SuperResAnswer(BaseModel):
    """A super-resolution model that is served."""

    task: Literal["super-resolution"] = "super-resolution"
    uri: str = Field(description="what the endpoint was told to serve")
    version: str = Field(description="what that stands for now, as models:/NAME/VERSION")
    recipe: str
    metrics: dict[str, float] = Field(description="of its last validation")
    modalities: tuple[str, ...] = Field(description="that it was trained on")
    channels: Literal["each", "joint"] = Field(
        description="each: every modality is an image of its own, so any of them will do; joint: it takes all together"
    )
    scale: float = Field(description="pixels of the result for one of the input, along each axis of a slice")
    generators: tuple[str, ...] = Field(
        description="psnr and gan, which `blend` lies between; or one of them"
    )
    collapse: str = Field(description="of its last validation: healthy, collapsed or unjudged")
    spacing_mm: tuple[float, float, float] = Field(
        description="median of its training cases, the high resolution, along X, Y, Z in RAS+ order"
    )
    degradation: dict[str, Any] = Field(description="how low resolution was made for its training")
    preprocessing: dict[str, Any]
    notice: str = NOTICE


class Models(BaseModel):
    """The models that are served; none where there is no champion."""

    models: list[ModelAnswer | SuperResAnswer]


class Readiness(BaseModel):
    """Whether the endpoint can segment: "loading" ends by itself, "waiting" needs somebody to act."""

    state: Literal["ready", "loading", "waiting"]
    detail: str
    superres: str | None = Field(
        None, description="how super-resolution stands; left out where it is not asked for"
    )


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"
