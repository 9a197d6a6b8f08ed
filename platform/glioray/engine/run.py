"""A whole run on one rank, from a plan to a checkpoint, tracked in MLflow, whatever the task.

The caller (a Ray Train worker, a Tune trial, a notebook) passes how cases reach this node's cache and where metrics
are reported; nothing here knows Ray.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glioray.cases.manifest import CaseEntry, Manifest
from glioray.config import PreprocessConfig
from glioray.engine.checkpoint import fetch_model, kept_folders, latest_folder
from glioray.engine.collectives import Ranks, barrier
from glioray.engine.loop import IsLeaving, Report, fit
from glioray.engine.package import SPEC_FILE
from glioray.engine.task import Prepared, Task
from glioray.engine.workers import Workers
from glioray.errors import CaseError, UsageError
from glioray.serialization import fingerprint, from_dict, to_dict
from glioray.slices.cache import CacheConfig
from glioray.storage import Storage, open_storage

if TYPE_CHECKING:
    from glioray.engine.on_mlflow.runs import Kind, RunLogger
    from glioray.engine.precision import Agree

_log = logging.getLogger(__name__)
CONFIG_FILE, HISTORY_FILE = "config.json", "history.json"

LEFT_OUT_TAG = "glioray.left_out"
"""Of a run in MLflow: the cases that it goes without since its latest start, or "none"."""

Fill = Callable[[str, Sequence[CaseEntry], PreprocessConfig, CacheConfig], Mapping[str, CaseError]]
"""Brings cases of a data URI into this node's slice cache, but those that can no longer be decoded, which it returns by
case id; see `engine.on_ray.placement.fill_cache`."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything a run needs to know; picklable, and without secrets.

    Attributes:
        task: what is trained.
        config: the resolved config of that task.
        manifest: the data, with the splits "train" and "val".
        storage: URI of this run, `<storage>/<run name>`.
        run_name: the name by which it is resumed.
        tracking_uri: MLflow's address.
        experiment: in MLflow.
        kind: of the MLflow run.
        parent_run_id: of the sweep or comparison that this run belongs to.
        tags: further tags of the MLflow run.
        cache: of slices, on each node.
        num_threads: torch's threads in this process; 0 keeps torch's default.
        log_model: whether to log the model to MLflow at the end; it is in the storage either way.
        save_minutes: between two saves of the training state.
        agree: gives the runs of a search or a comparison one precision, where `train.precision` is "auto".
        workers: what each worker asks of the cluster.
    """

    task: Task
    config: Any
    manifest: Manifest
    storage: str
    run_name: str
    tracking_uri: str
    experiment: str
    kind: Kind = "train"
    parent_run_id: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    cache: CacheConfig = field(default_factory=CacheConfig.from_environment)
    num_threads: int = 0
    log_model: bool = True
    save_minutes: float = 5.0
    agree: Agree | None = None
    workers: Workers = field(default_factory=Workers)


def train_run(
    plan: RunPlan,
    ranks: Ranks,
    fill: Fill,
    report: Report | None = None,
    is_leaving: IsLeaving = lambda: False,
) -> dict[str, object]:
    """Train, or resume, a run on this rank; the first rank tracks it in MLflow.

    Args:
        plan: the run.
        ranks: all ranks of the run, and which one this is.
        fill: brings cases into this node's slice cache.
        report: called with the metrics of each validation, on every rank.
        is_leaving: whether a node of the run is about to be taken away, as `engine.loop.fit` asks.

    Returns: on every rank `metrics` (of the last validation, `slices_per_s`, ...), where the run ended early `stopped`
    (why), and where it went without cases `left_out` (case id -> why it could not be decoded); on the first one also `run_id`, `run_url` (None where no server shows it) and `model`, the
    MLflow URI of the logged model (or the run's own URI where none is logged).

    Raises:
        UsageError: the run's name is taken by a run with other settings or other data.
        DataError: nothing to train on, too little to validate on, or too many cases that can no longer be decoded.
        DivergenceError: the loss or a gradient is no longer finite.
    """
    plan = plan.task.complete(plan)
    if plan.num_threads:
        torch.set_num_threads(plan.num_threads)
    device = torch.device(f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu")
    storage = open_storage(plan.storage)
    if ranks.is_first:
        claim_run(storage, plan)
    with ExitStack() as stack:
        logger = None
        if ranks.is_first:
            logger = _open_logger(plan)
            stack.enter_context(logger.system_metrics())
        try:
            prepared = plan.task.prepare(plan, ranks, fill, device)
            learner = prepared.learner
            if logger is not None:
                left_out = "; ".join(prepared.left_out.values()) or "none"
                logger.set_tags({**learner.tags, LEFT_OUT_TAG: left_out})
            tracked = _Tracked(prepared, logger, storage, report)
            metrics = fit(
                learner,
                prepared.feed,
                plan.config.train,
                storage,
                ranks,
                tracked,
                save_every_s=60 * plan.save_minutes,
                # A trial may be stopped, or another continue from its checkpoint, as soon as it has reported.
                report_saved=plan.kind == "trial",
                is_leaving=is_leaving,
            )
            barrier()
            result: dict[str, object] = {"metrics": metrics}
            if learner.stopped:
                result["stopped"] = learner.stopped
            if prepared.left_out:
                result["left_out"] = dict(prepared.left_out)
            if logger is not None:
                for name, image in tracked.latest.items():
                    logger.log_bytes(image, f"{name}.png")
                model = log_run_model(plan, storage, logger) if plan.log_model else plan.storage
                result |= {"run_id": logger.run_id, "run_url": logger.url, "model": model}
                logger.set_tags(learner.tags)
                if learner.stopped:
                    logger.set_tags({"glioray.stopped": f"{learner.stopped} at epoch {metrics['epoch']:.0f}"})
                    logger.finish("KILLED", learner.stopped)
                else:
                    logger.finish()
        except Exception as error:
            if logger is not None:
                logger.finish("FAILED", str(error) or type(error).__name__)
            raise
    return result


def claim_run(storage: Storage, plan: RunPlan) -> None:
    """Write the run's config to its storage, or check that the run stored there is this one.

    Raises:
        UsageError: as `check_claim`.
    """
    check_claim(storage, plan)
    if not storage.exists(CONFIG_FILE):
        text = json.dumps({"identity": _identity(plan), "config": to_dict(plan.config)}, indent=1)
        storage.write(CONFIG_FILE, text.encode())


def check_claim(storage: Storage, plan: RunPlan) -> None:
    """Check that a run stored there is this one.

    Raises:
        UsageError: a run of that name has other settings or other data.
    """
    if not storage.exists(CONFIG_FILE):
        return
    stored = json.loads(storage.read(CONFIG_FILE))
    there, here = stored["identity"], _identity(plan)
    if there.get("settings") != here["settings"]:
        # A setting that has been added since has its default.
        with contextlib.suppress(UsageError):
            there["settings"] = _settings_of(from_dict(type(plan.config), stored["config"]))
    changed = [name for name, value in here.items() if there.get(name) != value]
    if changed:
        raise UsageError(
            f"the run '{plan.run_name}' exists with other {' and other '.join(changed)}; choose another "
            "--run-name, or repeat its flags to resume it"
        )


def _identity(plan: RunPlan) -> dict[str, str]:
    return {"settings": _settings_of(plan.config), "data": plan.manifest.hash}


def _settings_of(config: Any) -> str:
    values = to_dict(config)
    # Length and world size may change on resume, and how many cases may be lost; model, loss and data may not.
    for name in ("max_epochs", "minutes", "num_workers", "max_lost_cases"):
        values["train"].pop(name, None)
    return fingerprint(values)


def _open_logger(plan: RunPlan) -> RunLogger:
    # MLflow takes a second and a half to import, and only the first of a run's ranks needs it.
    from glioray.engine.on_mlflow.runs import RunLogger

    logger = RunLogger.open_run(
        plan.experiment,
        plan.run_name,
        kind=plan.kind,
        parent_run_id=plan.parent_run_id,
        tags={"glioray.manifest_hash": plan.manifest.hash, "glioray.recipe": plan.config.recipe, **plan.tags},
        tracking_uri=plan.tracking_uri,
    )
    if plan.parent_run_id is None:
        log_page(logger)
    logger.log_data(plan.manifest)
    num = {f"num_{name}_cases": len(plan.manifest.select(name)) for name in ("train", "val")}
    logger.log_params({**to_dict(plan.config), "data": plan.manifest.data, "storage": plan.storage, **num})
    return logger


def log_page(logger: RunLogger) -> None:
    """Log where the run is to be seen, where a server shows it."""
    if logger.url is not None:
        _log.info("the run in MLflow: %s", logger.url)


class _Tracked:
    """Reports each validation to MLflow, on the first rank, and then to the caller.

    Attributes:
        latest: the figures of the latest validation, as PNG files; none before the first.
    """

    def __init__(
        self, prepared: Prepared, logger: RunLogger | None, storage: Storage, report: Report | None
    ) -> None:
        self.prepared, self.logger, self.storage, self.report = prepared, logger, storage, report
        self.history = load_history(storage) if logger is not None else []
        self.latest: Mapping[str, bytes] = {}

    def __call__(self, metrics: dict[str, float]) -> None:
        if self.logger is not None:
            epoch = int(metrics["epoch"])
            self.logger.log_metrics(metrics, step=epoch)
            self.history = [row for row in self.history if row["epoch"] < epoch] + [metrics]
            self.storage.write(HISTORY_FILE, json.dumps(self.history).encode())
            for path, figure in self.prepared.figures(self.history).items():
                self.logger.log_figure(figure, path)
            self.latest = {
                name: self.logger.log_image(figure, name, step=epoch)
                for name, figure in self.prepared.series().items()
            }
        if self.report is not None:
            self.report(metrics)


def load_history(storage: Storage) -> list[dict[str, float]]:
    """Load the metrics of each validation of a run so far, in order."""
    if not storage.exists(HISTORY_FILE):
        return []
    history: list[dict[str, float]] = json.loads(storage.read(HISTORY_FILE))
    return history


def log_run_model(plan: RunPlan, storage: Storage, logger: RunLogger) -> str:
    """Log the models of the checkpoints that the run kept with its MLflow run; returns the URI of the latest one.

    Raises:
        ModelError: the run has no checkpoint.
    """
    latest = latest_folder(storage)
    uri = ""
    folders: list[str | None] = [*kept_folders(storage)]
    for folder in folders or [None]:
        with tempfile.TemporaryDirectory() as local:
            package = fetch_model(storage, Path(local), folder)
            checkpoint = None if folder in (None, latest) else folder.rpartition("/")[2]
            uri = log_package(plan.task, logger, package, manifest=plan.manifest, checkpoint=checkpoint)
    return uri


def log_package(
    task: Task,
    logger: RunLogger,
    package: Path,
    *,
    manifest: Manifest | None = None,
    checkpoint: str | None = None,
) -> str:
    """Log a package with an MLflow run, beside an export of its network; returns its URI.

    Args:
        task: of the model.
        logger: the run.
        package: the model's folder.
        manifest: that it was trained and validated on, where one run did both.
        checkpoint: name of an earlier checkpoint, which is logged under it and without an export: that takes longer
            than all else. None for the run's model.
    """
    from glioray.engine.on_mlflow.card import model_card
    from glioray.engine.on_mlflow.datasets import validation_data
    from glioray.engine.on_mlflow.registry import log_model

    export = task.export(package)
    if checkpoint is None:
        for path, value in export.artifacts.items():
            logger.log_json(value, path)
    spec = task.parse_spec((package / SPEC_FILE).read_bytes())
    kept = task.search.kept_metrics
    metrics = {key: value for key, value in spec.metrics.items() if key.startswith(kept)}
    return log_model(
        logger,
        package,
        export.net if checkpoint is None or export.files is None else None,
        export.example,
        files=export.files,
        name=checkpoint or "model",
        kind=task.name,
        step=int(spec.metrics.get("epoch", 0)),
        metrics=metrics,
        dataset=None if manifest is None else validation_data(manifest),
        card=model_card(task, spec, export.cases, logger, manifest),
    )
