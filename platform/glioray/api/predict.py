"""Predict every case of a data set."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glioray.api.data import find_cases
from glioray.api.models import resolve_model
from glioray.api.places import data_uri, out_uri, ready_out, storage_uri, use_tracking
from glioray.api.requests import PredictRequest
from glioray.api.verbs import as_verb
from glioray.cases.manifest import declare_conventions
from glioray.engine.on_ray.connect import check_shared, connect
from glioray.engine.task import ModelPackage
from glioray.serialization import to_dict
from glioray.storage import open_storage
from glioray.tasks import open_labelling

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictResult:
    """Masks of a data set.

    Attributes:
        model_uri: the model; a registered model's version rather than its alias.
        masks: case id -> URI of its mask, also of those that were there.
        failed: case id -> why it has no mask.
    """

    model_uri: str
    masks: dict[str, str]
    failed: dict[str, str]

    @property
    def answer(self) -> dict[str, Any]:
        """The JSON answer of the job."""
        return {"model": self.model_uri, "masks": self.masks, "failed": self.failed}

    @property
    def exit_code(self) -> int:
        """Of the job: 1 where a case failed."""
        return int(bool(self.failed))


def preview(request: PredictRequest) -> dict[str, Any]:
    """The model's version and config, and the number of cases; reads no image.

    Raises:
        UsageError, DataError, ModelError: as `predict`.
    """
    data, _, _ = _places(request)
    cases = find_cases(data, labels=request.labels)[1]
    with _opened(request) as package:
        return {"config": to_dict(package.spec.config), "model": package.uri, "num_cases": len(cases)}


@as_verb(PredictRequest)
def predict(request: PredictRequest) -> PredictResult:
    """Write a mask for every case of a data set, on the case's own grid and in its own label convention.

    Cases whose masks are there, made by this model of the same files with the same options, are not done again. For a case
    in memory, see `LoadedModel.predict`.

    Returns:
        PredictResult: the URIs of the masks, and why the other cases have none.

    Raises:
        UsageError: a request that is not valid, or masks that several label conventions fit.
        ModelError: there is no such model, or it makes no masks.
        DataError: there is no case.
    """
    data, _, _ = _places(request)
    out = ready_out(request.out)
    data, cases, problems = find_cases(data, labels=request.labels)
    if request.labels is None:
        cases = declare_conventions(open_storage(data), cases)
    with _opened(request) as package:
        for problem in problems:
            _log.warning("left out: %s", problem)
        connect()
        check_shared(out, "--out")
        masks, failed = package.task.predict(
            package,
            data,
            cases,
            out,
            labels=request.labels,
            with_uncertainty=request.uncertainty,
            resample=request.resample,
        )
    failed |= {p.case_id or p.file: str(p) for p in problems if p.case_id not in masks}
    return PredictResult(package.uri, masks, failed)


def _places(request: PredictRequest) -> tuple[str, str, str]:
    return data_uri(request.data), out_uri(request.out), storage_uri(request.storage)


@contextmanager
def _opened(request: PredictRequest) -> Iterator[ModelPackage]:
    with use_tracking(storage_uri(request.storage)), tempfile.TemporaryDirectory() as folder:
        yield open_labelling(resolve_model(request.model), Path(folder))
