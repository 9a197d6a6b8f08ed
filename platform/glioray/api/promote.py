"""Make a model the champion."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glioray.api.data import open_data
from glioray.api.models import resolve_registered
from glioray.api.places import data_uri, storage_uri, use_tracking
from glioray.api.requests import PromoteRequest
from glioray.api.verbs import as_verb
from glioray.engine.on_mlflow.card import COMPARISON, comparison_text
from glioray.engine.on_mlflow.registry import add_to_card, champion, set_champion
from glioray.engine.on_ray.connect import connect
from glioray.engine.promotion import compare_to_champion
from glioray.tasks import open_package


@dataclass(frozen=True)
class PromoteResult:
    """Whether a candidate became champion.

    Attributes:
        candidate: `models:/NAME/VERSION`.
        champion: the one before, or None.
        is_promoted: whether the candidate is champion now.
        reason: a sentence.
        answer: the JSON answer of the job.
    """

    candidate: str
    champion: str | None
    is_promoted: bool
    reason: str
    answer: dict[str, Any] = field(repr=False)
    exit_code: int = 0


def preview(request: PromoteRequest) -> dict[str, Any]:
    """The decision that `promote` would make; the champion stays.

    Raises:
        UsageError, ModelError, DataError: as `promote`.
    """
    return _promote(request, decide_only=True).answer


@as_verb(PromoteRequest)
def promote(request: PromoteRequest) -> PromoteResult:
    """Make a model the champion of its name if it beats the present one on the same cases.

    With `data` both are evaluated now on cases that neither was trained on; without, the metrics of their last
    validations are compared, which must be of the same cases.

    Returns:
        PromoteResult: the decision and its reason.

    Raises:
        UsageError: a request that is not valid, or models that cannot be compared.
        ModelError: there is no such model, or the candidate must not be promoted.
        DataError: too few cases are left to evaluate on.
    """
    return _promote(request, decide_only=False)


def _promote(request: PromoteRequest, *, decide_only: bool) -> PromoteResult:
    storage = storage_uri(request.storage)
    with use_tracking(storage):
        name, version = resolve_registered(request.model, request.name)
        present = champion(name)
        candidate = f"models:/{name}/{version}"
        holder = None if present is None else f"models:/{name}/{present}"
        answer: dict[str, Any] = {"name": name, "candidate": candidate, "promoted": False, "champion": holder}
        if present == version:
            reason = "it is the champion already"
            return PromoteResult(candidate, holder, False, reason, {**answer, "reason": reason})
        with tempfile.TemporaryDirectory() as folder:
            uris = {"candidate": candidate} | ({} if holder is None else {"champion": holder})
            packages = {role: open_package(uri, Path(folder) / role) for role, uri in uris.items()}
            manifest = None
            if request.data:
                connect()
                manifest = open_data(data_uri(request.data), storage, labels=request.labels)
            outcome = compare_to_champion(packages, manifest)
        answer |= {**outcome.answer, "reason": outcome.reason}
        if not decide_only:
            add_to_card(name, version, COMPARISON, comparison_text(outcome, holder))
        if outcome.wins and not decide_only:
            set_champion(name, version)
            answer["promoted"] = True
    return PromoteResult(candidate, holder, answer["promoted"], outcome.reason, answer)
