"""Check a data set and write its manifest."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from glioray.api.places import data_uri, ready_out, storage_uri, use_tracking
from glioray.api.requests import PrepareRequest
from glioray.api.verbs import as_verb
from glioray.cases.casefiles import CaseFiles, Problem
from glioray.cases.layouts import RECOGNISED, discover_cases
from glioray.cases.manifest import MANIFEST, Manifest, build_manifest
from glioray.config import PreprocessConfig, with_settings
from glioray.engine.on_mlflow.client import connect as connect_tracking
from glioray.engine.on_mlflow.data_report import publish_report
from glioray.engine.on_ray.connect import connect
from glioray.engine.on_ray.data import describe_cases
from glioray.errors import DataError, UsageError
from glioray.progress import IN_LOG
from glioray.reports.data_figures import choose_pictured
from glioray.storage import join_uri, open_storage
from glioray.tasks import build_recipe, find_recipe

_log = logging.getLogger(__name__)
_DEFAULT_RECIPE = "unet_small"
_NUM_SHOWN = 20
"""Problems that are shown one by one."""


@dataclass(frozen=True)
class PrepareResult:
    """A manifest that was written.

    Attributes:
        uri: of the manifest; `data` of the other verbs.
        manifest: the cases, their splits and folds.
        problems: a sentence for each case that was left out.
        answer: the JSON answer of the job.
    """

    uri: str
    manifest: Manifest = field(repr=False)
    problems: tuple[str, ...]
    answer: dict[str, Any] = field(repr=False)

    @property
    def exit_code(self) -> int:
        """Of the job: 1 where a case was left out."""
        return int(bool(self.problems) or not self.manifest.cases)


def preview(request: PrepareRequest) -> dict[str, Any]:
    """The number of cases, and problems with their names; reads no image.

    Raises:
        UsageError, DataError: as `prepare`.
    """
    _, cases, problems, _ = _find(request)
    return {"num_cases": len(cases), "problems": [str(problem) for problem in problems]}


@as_verb(PrepareRequest)
def prepare(request: PrepareRequest) -> PrepareResult:
    """Check every case of a data set and write a manifest: checksums, patient-level splits, label statistics.

    Good cases are used; bad ones are logged and listed.

    Returns:
        PrepareResult: the manifest and its URI.

    Raises:
        UsageError: a request that is not valid, or masks that several label conventions fit.
        DataError: there is no case.
        StorageError: the data or the place for results cannot be reached.
    """
    data_uri(request.data)
    out, storage = ready_out(request.out), storage_uri(request.storage)
    data, cases, problems, shown = _find(request)
    if not request.report:
        return _prepare(request, data, cases, problems, shown, out)
    with use_tracking(storage) as tracking_uri:
        connect_tracking(tracking_uri)  # Fail now rather than after hours of reading.
        return _prepare(request, data, cases, problems, shown, out)


def _find(request: PrepareRequest) -> tuple[str, list[CaseFiles], list[Problem], PreprocessConfig | None]:
    shown = shown_preprocessing(request)
    data = data_uri(request.data)
    cases, problems = discover_cases(open_storage(data), labels=request.labels)
    if not cases and not problems:
        raise DataError(f"'{data}' holds no case; {RECOGNISED}")
    return data, cases, problems, shown


def shown_preprocessing(request: PrepareRequest) -> PreprocessConfig | None:
    """The preprocessing that the report shows; None where no recipe and no setting is given.

    Raises:
        UsageError: a recipe or a setting that is not valid, or one without a report.
    """
    if not request.recipe and not request.set:
        return None
    if not request.report:
        raise UsageError("--recipe and --set choose the preprocessing that --report shows; give --report too")
    recipe = request.recipe or _DEFAULT_RECIPE
    config = with_settings(build_recipe(find_recipe(recipe), recipe), request.set)
    shown: PreprocessConfig = config.preprocess
    return shown


def _prepare(
    request: PrepareRequest,
    data: str,
    cases: list[CaseFiles],
    problems: list[Problem],
    shown: PreprocessConfig | None,
    out: str,
) -> PrepareResult:
    connect()
    pictured = choose_pictured([files.case_id for files in cases]) if request.report else None
    examined = list(describe_cases(data, cases, pictured, is_stated=request.labels is not None))
    manifest = build_manifest(
        open_storage(data).uri,
        [(None, problems), *((entry, found) for entry, found, _ in examined)],
        seed=request.seed or 0,
        ratios=request.ratios,
        num_folds=request.folds,
        shuffle=request.shuffle,
    )
    manifest.save(open_storage(out))
    _log_manifest(manifest)
    answer: dict[str, Any] = {
        "manifest": join_uri(out, MANIFEST),
        "num_cases": len(manifest.cases),
        "problems": [str(problem) for problem in manifest.problems],
        "notes": manifest.notes,
        "hash": manifest.hash,
        "splits": {name: len(ids) for name, ids in manifest.splits.items()},
    }
    if request.report:
        statistics = [case for _, _, case in examined if case is not None]
        answer |= publish_report(manifest, statistics, out, request.experiment, shown)
    return PrepareResult(answer["manifest"], manifest, tuple(answer["problems"]), answer)


def _log_manifest(manifest: Manifest) -> None:
    """Log a line a problem, a line a case, then counts and what the files do not tell."""
    for number, problem in enumerate(manifest.problems):
        _log.warning("problem: %s", problem, extra=IN_LOG if number >= _NUM_SHOWN else None)
    if len(manifest.problems) > _NUM_SHOWN:
        _log.warning("and %d problems more, in the answer", len(manifest.problems) - _NUM_SHOWN)
    for entry in manifest.cases:
        labels = ", ".join(f"{name} {count}" for name, count in entry.label_voxels.items()) or "no mask"
        size = " x ".join(str(n) for n in entry.shape)
        spacing = " x ".join(f"{mm:g}" for mm in entry.spacing_mm)
        _log.info(
            "%s: %s at %s mm, %s: %s", entry.case_id, size, spacing, entry.convention or "unlabelled", labels,
            extra=IN_LOG,
        )  # fmt: skip
    _log.info("cases: %s", ", ".join(f"{name} {len(ids)}" for name, ids in manifest.splits.items()))
    for note in manifest.notes:
        _log.warning("note: %s", note)
