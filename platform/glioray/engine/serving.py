"""The contract between a task's routes and the endpoint that mounts them, and between the endpoint and its client.

Nothing here needs an HTTP library: routes are written with FastAPI in `tasks/<task>/routes.py`, and `serve/` mounts
them on Ray Serve.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from glioray.cases.nifti import Limits
from glioray.cases.zipped import read_zipped_case
from glioray.config import MODALITIES
from glioray.errors import UsageError

if TYPE_CHECKING:
    from fastapi import APIRouter, Response

    from glioray.cases.load import Case

NOTICE = "research use only, not for clinical decisions"
MODEL_HEADER, WARNING_HEADER = "X-Glioray-Model", "X-Glioray-Warning"

LIMITS = Limits(max_voxels=2**26, max_bytes=2**29)
"""Of a request's volumes: below those of jobs, so that strangers cannot fill a node's memory. A BraTS case has 9
million voxels."""

UPLOADS = (*MODALITIES, "image")
"""The files of a case in a form: one for each modality, or one for all."""

CASE_ZIP = "one zip of a case's folder instead, with files named as in a bucket: CASE_t1.nii.gz and so on"
"""The description of a form's field `case`; see `unzip_case`."""

JSON = "application/json"
FILES = ("application/gzip", "application/zip", "image/png")
"""Media types of the files that routes answer with."""

BINARY = {"type": "string", "format": "binary"}
"""The OpenAPI schema of a file."""

M = TypeVar("M")
T = TypeVar("T")


@dataclass(frozen=True)
class Served(Generic[M]):
    """A model in memory, and the version that it is."""

    version: str
    model: M


class Refusal(BaseModel):
    """Why a request was refused."""

    detail: str = Field(description="one sentence: what was found, what was expected, what to do")


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal} for status in (400, 408, 413, 415, 422, 429, 500, 503)
}
"""The `responses` that every route with a body may answer with, for OpenAPI."""


class Job(BaseModel):
    """A job over all cases of a folder or a bucket prefix, as far as it was when the endpoint was asked."""

    model_config = ConfigDict(frozen=True)

    id: str
    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    model: str = Field(description="the version that segments, as models:/NAME/VERSION")
    data: str
    out: str
    labels: str | None = None
    uncertainty: bool = False
    resample: bool = False
    num_cases: int | None = Field(None, description="null until they are listed")
    num_done: int = Field(0, description="cases that have their mask")
    failed: dict[str, str] = Field(
        default_factory=dict, description="case, or file that belongs to none -> why it has no mask"
    )
    error: str | None = Field(None, description="why the job failed")
    created_at: datetime
    updated_at: datetime

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Enhanced:
    """A case as a model improved it.

    Attributes:
        case: on its new grid.
        version: of the model.
        headers: of the answer: the version, and a warning where the case differs from the training.
    """

    case: Case
    version: str
    headers: dict[str, str]


class Enhancement(Protocol):
    """An improvement of cases that one task offers to the routes of others, before they work on them."""

    @property
    def fields(self) -> Callable[..., Any]:
        """A FastAPI dependency: form fields to options, an object whose attributes are None unless sent."""

    def begin(self, options: Any) -> Callable[[Case], Callable[[], Enhanced]]:
        """Take the model that is served now.

        The function that is returned checks a case, in `Endpoint.read`; the one that it returns runs in `Endpoint.run`.

        Raises:
            HTTPException: 503, no model is served.
        """


class Endpoint(Protocol):
    """One task's side of the endpoint.

    Attributes:
        enhancement: of a task whose output is "images"; None for the routes of such a task.
    """

    @property
    def enhancement(self) -> Enhancement | None: ...

    @property
    def served(self) -> Served[Any]:
        """The model that is served now.

        Raises:
            HTTPException: 503 with the reason, no model is served.
        """

    def make_router(self) -> APIRouter:
        """A router whose routes are refused without a model (503), without a free place in the queue (429), and where
        a form breaks the limits (408, 413), is damaged (400), is no form (415) or has other fields than the route's
        parameters (422)."""

    async def read(self, work: Callable[[], T]) -> T:
        """Run `work`, which reads and checks a request's input, without waiting for the work on other cases.

        Raises:
            HTTPException: as `run`.
        """

    async def run(self, work: Callable[[], Response], *, done: str) -> Response:
        """Run `work` on the replica's one worker thread, in the request's place of the queue.

        Errors of cases and models become a refusal of one sentence. Where the client leaves or time runs out, work that
        waits is not begun, and work that runs ends where it calls `glioray.cancellation.raise_if_cancelled`.

        Args:
            work: makes the answer.
            done: what happens to the case, in a message: "segmented".

        Raises:
            HTTPException: the refusal; 503 where time ran out.
        """


async def unzip_case(
    endpoint: Endpoint, zipped: bytes, *, beside: Collection[str], modalities: Collection[str]
) -> dict[str, bytes]:
    """The files of the zip that a form's field `case` holds, by the names of `UPLOADS`.

    Args:
        endpoint: reads it.
        zipped: the zip.
        beside: names of the form's other files.
        modalities: that the model takes; others are left out.

    Raises:
        UsageError: there are other files.
        HTTPException: 422 as `cases.zipped.read_zipped_case` refuses it; 503 where time ran out.
    """
    if beside:
        raise UsageError(f"both case and {', '.join(beside)} were sent; send the zip of the case alone")
    return await endpoint.read(
        lambda: read_zipped_case(zipped, name="case", modalities=modalities, limits=LIMITS)
    )


@dataclass(frozen=True)
class Routes:
    """The part of the endpoint that a task adds.

    Attributes:
        router: its routes.
        answer: type of `describe`'s answers, for OpenAPI.
        describe: the entry of a served model in /v1/models, from its URI and the model.
        enhancement: what it offers to the routes of other tasks.
    """

    router: APIRouter
    answer: type[BaseModel]
    describe: Callable[[str, Served[Any]], BaseModel]
    enhancement: Enhancement | None = None


def accepts_json(accept: str) -> bool:
    """Whether an `Accept` header names JSON, and prefers no file to it."""
    return prefers(accept, JSON, FILES)


def prefers(accept: str, kind: str, others: Sequence[str]) -> bool:
    """Whether an `Accept` header names a media type, and gives none of the others that could be sent a larger weight."""
    weights = _parse_accept(accept)
    own = weights.get(kind, 0.0)
    return own > 0 and own >= max(_weight(other, weights) for other in others)


def _parse_accept(accept: str) -> dict[str, float]:
    """Media range -> its weight, from 0 (not acceptable) to 1."""
    weights = {}
    for item in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        values = dict(parameter.partition("=")[::2] for parameter in parameters)
        try:
            weights[kind] = min(max(float(values.get("q", 1)), 0.0), 1.0)
        except ValueError:
            weights[kind] = 1.0
    return weights


def _weight(kind: str, weights: Mapping[str, float]) -> float:
    """The weight of a media type: that of the range which names it most closely."""
    ranges = (kind, f"{kind.partition('/')[0]}/*", "*/*")
    return next((weights[name] for name in ranges if name in weights), 0.0)


def warning_header(warning: str | None) -> dict[str, str]:
    """The header with a warning; none where there is nothing to warn of."""
    return {WARNING_HEADER: warning.encode("ascii", "replace").decode()} if warning else {}


def describe_uploads(modalities: Collection[str]) -> str:
    """Which files to send to a model of these modalities, in words."""
    names = [name for name in MODALITIES if name in modalities]
    files = f"send the file{'s' if len(names) > 1 else ''} {', '.join(names)}"
    return f"{files}, or one 4-D file image" if _takes_image(modalities) else files


def check_uploads(sent: Collection[str], modalities: Collection[str]) -> None:
    """Refuse files that are not one for each modality, or one image in place of all.

    Args:
        sent: names of `UPLOADS`.
        modalities: that the model takes together.

    Raises:
        UsageError: a file is missing or not taken.
    """
    wanted = [name for name in MODALITIES if name in modalities]
    expected = describe_uploads(modalities)
    for name in sent:
        if name not in wanted and not (name == "image" and _takes_image(modalities)):
            raise UsageError(f"the model does not take {name}; {expected}")
    check_one_kind(sent, expected)
    missing = [] if "image" in sent else [name for name in wanted if name not in sent]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UsageError(f"{', '.join(missing)} {verb} missing; {expected}")


def check_one_kind(sent: Collection[str], expected: str) -> None:
    """Refuse one image beside files of modalities.

    Raises:
        UsageError: both were sent.
    """
    others: Sequence[str] = [name for name in MODALITIES if name in sent]
    if "image" in sent and others:
        raise UsageError(f"both image and {', '.join(others)} were sent; {expected}, not both")


def _takes_image(modalities: Collection[str]) -> bool:
    """One 4-D file holds all four modalities."""
    return set(modalities) == set(MODALITIES)
