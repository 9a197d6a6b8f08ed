"""Check the bounds of the collapse score on one's own data."""

from __future__ import annotations

import dataclasses
import io
import logging
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from glioray.api.data import check_modalities, open_data
from glioray.api.places import data_uri, ready_out, storage_uri, use_tracking
from glioray.api.requests import CalibrateRequest
from glioray.api.verbs import as_verb
from glioray.config import with_settings
from glioray.engine.on_ray.connect import connect
from glioray.engine.on_ray.placement import fill_cache, prepare_case
from glioray.errors import ModelError, UsageError
from glioray.serialization import to_dict
from glioray.slices.cache import CacheConfig, SliceCache
from glioray.storage import join_uri, open_storage
from glioray.tasks import build_recipe, load_task, open_package
from glioray.tasks.superres.calibration import calibrate_panel
from glioray.tasks.superres.collapse_figures import calibration_markdown, planted_figure
from glioray.tasks.superres.panel import pick_panel
from glioray.tasks.superres.planted import advise
from glioray.tasks.superres.training import panel_cases

PAGE, PICTURE = "calibration.md", "planted_collapses.png"
_DEFAULT_RECIPE = "mri"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrateResult:
    """How healthy and planted outputs score.

    Attributes:
        rows: a row for each output: its name, score and whether it lies on the right side of its bound.
        wrong: names of the outputs that score on the wrong side.
        files: URIs of the page and its picture.
        answer: the JSON answer of the job.
    """

    rows: tuple[Any, ...] = field(repr=False)
    wrong: tuple[str, ...]
    files: tuple[str, ...]
    answer: dict[str, Any] = field(repr=False)

    @property
    def exit_code(self) -> int:
        """Of the job: 1 where an output scores on the wrong side."""
        return int(bool(self.wrong))


def preview(request: CalibrateRequest) -> dict[str, Any]:
    """The config whose bounds would be checked.

    Raises:
        UsageError, ModelError: as `calibrate`.
    """
    data_uri(request.data)
    return {"config": to_dict(_resolve(request)[0])}


@as_verb(CalibrateRequest)
def calibrate(request: CalibrateRequest) -> CalibrateResult:
    """Check on your own data that planted collapses score above their bounds and healthy images below.

    Uses the panel that a training would be evaluated on.

    Returns:
        CalibrateResult: the scores, and which are wrong.

    Raises:
        UsageError: a request that is not valid.
        DataError: the data give too few images.
        ModelError: not a super-resolution model.
    """
    data, storage = data_uri(request.data), storage_uri(request.storage)
    config, resolver = _resolve(request)
    out = open_storage(ready_out(request.out))
    connect()
    manifest = open_data(data, storage, seed=request.seed or 0, labels=request.labels)
    check_modalities(manifest, config)
    entries = panel_cases(manifest.select(request.split))
    cache, preprocess = CacheConfig.from_environment(), config.preprocess
    fill_cache(manifest.data, entries, preprocess, cache)
    stacks = [
        SliceCache(cache, preprocess).fill(entry, partial(prepare_case, manifest.data, entry, preprocess))[0]
        for entry in entries
    ]
    panel = pick_panel(stacks, {entry.case_id: entry.patient_id for entry in entries}, config)
    rows, images = calibrate_panel(panel, config, resolver)
    title = f"{len(panel)} images of {len(set(panel.patients))} patients in {data}"
    page = calibration_markdown(rows, config.collapse, title=title, picture=PICTURE)
    picture = io.BytesIO()
    figure = planted_figure(rows, images.hr, images.lr, images.outputs)
    figure.savefig(picture, format="png", dpi=90)
    out.write(PAGE, page.encode())
    out.write(PICTURE, picture.getvalue())
    wrong = [row for row in rows if not row.is_ok]
    for row in wrong:
        _log.warning("%s", advise(row, config.collapse))
    answer: dict[str, Any] = {
        "num_images": len(panel),
        "rows": [dataclasses.asdict(row) for row in rows],
        "wrong": [row.name for row in wrong],
        "files": [join_uri(out.uri, name) for name in (PAGE, PICTURE)],
    }
    return CalibrateResult(tuple(rows), tuple(answer["wrong"]), tuple(answer["files"]), answer)


def _resolve(request: CalibrateRequest) -> tuple[Any, Any]:
    """The config, and the model whose generators are further outputs, or None."""
    if request.model and request.recipe:
        raise UsageError("--model brings its own recipe; leave out --recipe")
    task, model = load_task("superres"), None
    if request.model:
        with use_tracking(storage_uri(request.storage)), tempfile.TemporaryDirectory() as folder:
            package = open_package(request.model, Path(folder))
            if package.task.name != task.name:
                raise ModelError(
                    f"the model {request.model} belongs to the task {package.task.name}; expected one of {task.name}"
                )
            model = task.load(package.folder)
    base = build_recipe(task, request.recipe or _DEFAULT_RECIPE) if model is None else model.spec.config
    return with_settings(base, request.set), model
