"""MLflow's registry calls here when an alias moves, so that replicas follow at once and not at their next look."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel

from glioray.engine.serving import REFUSALS
from glioray.errors import StorageError, UsageError
from glioray.storage import open_storage, split_uri
from serve.status import Status

_PATH = "/hooks/registry"
"""Not below /v1/, as MLflow sends a signature and no API key."""

_MAX_AGE_S = 300
_ANSWERS: dict[int | str, dict[str, Any]] = {
    401: REFUSALS[422],
    **{status: REFUSALS[status] for status in (408, 413, 503)},
}
_MIN_SECRET = 16


class Followed(BaseModel):
    """The aliases are being looked at."""

    status: str = "following"


def read_secret(uri: str) -> str:
    """The secret in a file, without spaces around it.

    Raises:
        UsageError: the file cannot be read, or holds no secret of 16 characters or more.
    """
    parent, name = split_uri(uri)
    try:
        secret = open_storage(parent).read(name).decode().strip()
    except (StorageError, UnicodeDecodeError) as error:
        raise UsageError(f"the file of the webhook's secret: {error}") from error
    if len(secret) < _MIN_SECRET:
        raise UsageError(
            f"{uri} holds a secret of {len(secret)} characters; expected {_MIN_SECRET} or more, those that MLflow's webhook "
            "was made with"
        )
    return secret


def make_webhook_router(secret: str, status: Status) -> APIRouter:
    """The route that MLflow's webhook for `model_version_alias` events calls.

    A call that is sent again does no more than another look at the registry.

    Args:
        secret: of the webhook.
        status: is asked to follow.
    """
    router = APIRouter()

    @router.post(_PATH, status_code=202, responses=_ANSWERS)
    async def follow_registry(request: Request) -> Followed:
        """Look at the aliases now; for MLflow's webhooks, which sign their calls."""
        body = await request.body()
        if not _is_signed(secret, request.headers.get, body, time.time()):
            raise HTTPException(
                401, "the call is not signed with this endpoint's secret, or older than five minutes"
            )
        await status.follow()
        return Followed()

    return router


def _is_signed(secret: str, header: Callable[[str, str], str], body: bytes, now: float) -> bool:
    """Whether MLflow signed a call lately: "v1," and base64 of the HMAC-SHA256 of delivery, time and body."""
    delivery, sent = header("X-MLflow-Delivery-Id", ""), header("X-MLflow-Timestamp", "")
    # Python refuses to read numbers of thousands of digits.
    if not re.fullmatch("[0-9]{1,12}", sent) or abs(now - int(sent)) > _MAX_AGE_S:
        return False
    signed = f"{delivery}.{sent}.".encode() + body
    expected = b"v1," + base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest())
    return hmac.compare_digest(expected, header("X-MLflow-Signature", "").encode())
