"""A whole run on one rank, from a plan to a checkpoint, tracked, whatever it trains.

`segmentation_session` and `gan_session` say what. What calls this (a Ray Train worker, a Tune trial, a notebook) hands in how cases reach this node's cache
and whom to report to; nothing here knows Ray.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from glioray.cases.manifest import CaseEntry, Manifest
from glioray.config import PreprocessConfig
from glioray.engine.checkpoint import fetch_model
from glioray.engine.collectives import Ranks, barrier, gather, reduce_max
from glioray.engine.loop import Learner, Report, fit
from glioray.engine.on_mlflow.registry import log_model
from glioray.engine.on_mlflow.runs import Kind, RunLogger
from glioray.engine.package import SPEC_FILE
from glioray.engine.splits import FLATTERS, split_store
from glioray.errors import DataError, UsageError
from glioray.serialization import fingerprint, to_dict
from glioray.slices.cache import CacheConfig, SliceCache
from glioray.slices.preprocess import SliceStack
from glioray.slices.store import EpochSampler, SliceFeed, SliceStore
from glioray.storage import Storage, open_storage
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.package import read_package
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.export import log_superres_package
from glioray.tasks.superres.package import is_superres

_log = logging.getLogger(__name__)
CONFIG_FILE, HISTORY_FILE = "config.json", "history.json"

Fill = Callable[[str, Sequence[CaseEntry], PreprocessConfig, CacheConfig], None]
"""Brings cases of a data URI into this node's cache: see `slices.pipeline.fill_cache`."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything that a run needs to know, picklable and without secrets.

    Attributes:
        config: the resolved config, of a segmentation or of super-resolution.
        manifest: the data; its "train" and "val" are what is trained and validated on.
        storage: the run's own URI, `<storage>/<run name>`.
        run_name: and its name, by which it is resumed.
        tracking_uri: MLflow's address.
        experiment: in MLflow.
        kind: of the MLflow run.
        parent_run_id: the sweep's, for a trial.
        tags: further tags of the MLflow run.
        cache: of slices, on each node.
        num_threads: torch's threads in this process; 0 leaves torch's own choice.
        log_model: whether the model goes to MLflow at the end; it lies in the storage in any case.
    """

    config: RunConfig | GanConfig
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


Prepare = Callable[[torch.device], tuple[Learner, SliceFeed]]
"""Makes a rank's task and its batches, once the run is its own."""

Draw = Callable[[Sequence[dict[str, float]]], dict[str, Figure]]
"""The pictures of a validation by their paths in MLflow, from the figures of all so far."""


def train_tracked(
    plan: RunPlan, ranks: Ranks, prepare: Prepare, draw: Draw, report: Report | None
) -> dict[str, object]:
    """Run the loop on this rank, tracked in MLflow by the first one.

    Returns: on every rank `metrics` (figures of the last validation, `slices_per_s`, ...) and, where the run ended
    before its time, `stopped` (why); on the first one also `run_id` and `model`, the MLflow URI of the logged model
    (or the run's own URI where none is logged).
    """
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
            task, feed = prepare(device)
            if logger is not None:
                logger.set_tags(task.tags)
            metrics = fit(
                task, feed, plan.config.train, storage, ranks, _Tracked(draw, logger, storage, report)
            )
            barrier()
            result: dict[str, object] = {"metrics": metrics}
            if task.stopped:
                result["stopped"] = task.stopped
            if logger is not None:
                model = log_run_model(storage, logger) if plan.log_model else plan.storage
                result |= {"run_id": logger.run_id, "model": model}
                logger.set_tags(task.tags)
                if task.stopped:
                    logger.set_tags({"glioray.stopped": f"{task.stopped} at epoch {metrics['epoch']:.0f}"})
                    logger.finish("KILLED", task.stopped)
                else:
                    logger.finish()
        except Exception as error:
            if logger is not None:
                logger.finish("FAILED", str(error) or type(error).__name__)
            raise
    return result


def claim_run(storage: Storage, plan: RunPlan) -> None:
    """Leave the run's config in its storage, or check that the run there is this one.

    Raises:
        UsageError: a run of that name has other settings or other data.
    """
    config = to_dict(plan.config)
    # How long and on how many ranks may change when a run goes on; what is learned from what may not.
    for name in ("max_epochs", "minutes", "num_workers"):
        config["train"].pop(name)
    identity = {"settings": fingerprint(config), "data": plan.manifest.hash}
    if storage.exists(CONFIG_FILE):
        there = json.loads(storage.read(CONFIG_FILE))["identity"]
        changed = [name for name, value in identity.items() if there.get(name) != value]
        if changed:
            raise UsageError(
                f"the run '{plan.run_name}' is there already with other {' and other '.join(changed)}; choose "
                "another --run-name, or repeat its flags to go on with it"
            )
        return
    text = json.dumps({"identity": identity, "config": to_dict(plan.config)}, indent=1)
    storage.write(CONFIG_FILE, text.encode())


def _open_logger(plan: RunPlan) -> RunLogger:
    logger = RunLogger.open_run(
        plan.experiment,
        plan.run_name,
        kind=plan.kind,
        parent_run_id=plan.parent_run_id,
        tags={"glioray.manifest_hash": plan.manifest.hash, "glioray.recipe": plan.config.recipe, **plan.tags},
        tracking_uri=plan.tracking_uri,
    )
    num = {f"num_{name}_cases": len(plan.manifest.select(name)) for name in ("train", "val")}
    logger.log_params({**to_dict(plan.config), "data": plan.manifest.data, "storage": plan.storage, **num})
    return logger


def median_spacing(entries: Sequence[CaseEntry]) -> tuple[float, float, float]:
    """The median voxel size of some cases along X, Y, Z in mm."""
    x, y, z = np.median([entry.spacing_mm for entry in entries], axis=0).tolist()
    return x, y, z


def load_slices(
    plan: RunPlan,
    ranks: Ranks,
    fill: Fill,
    device: torch.device,
    train: Sequence[CaseEntry],
    mine: Sequence[CaseEntry],
) -> tuple[SliceFeed, list[tuple[SliceStack, ...]]]:
    """This rank's batches, and the stacks of the cases that it judges by, `mine`.

    Training cases are dealt to ranks, and the ranks of a node pool theirs: each node decodes and keeps its
    own part, once, and every rank draws from all of its node's slices.

    Raises:
        DataError: nothing to train on, or the cache cannot hold it.
    """
    if not train:
        raise DataError(
            "no labelled case is left to train on; check the report of jobs/prepare.py and the split"
        )
    node_ranks = [rank for node, rank in gather((ranks.node_rank, ranks.rank)) if node == ranks.node_rank]
    pool = [entry for number, entry in enumerate(train) if number % ranks.world_size in node_ranks]
    if not pool:
        raise DataError(
            f"{len(train)} training cases do not go round {ranks.world_size} workers; use fewer --workers"
        )
    config = plan.config
    preprocess = config.preprocess
    if ranks.world_size > 1:
        fill(plan.manifest.data, pool[ranks.local_rank :: ranks.local_world_size], preprocess, plan.cache)
        barrier()
    stacks = [_cached(plan, fill, entries) for entries in (pool, mine)]
    store = SliceStore([stack for case in stacks[0] for stack in case], preprocess)
    if ranks.local_rank == 0:
        warmed = store.warm(plan.cache.memory_bytes)
        _log.info(
            "%d slices of %d cases on this node, %.1f GB read ahead", len(store), len(pool), warmed / 1e9
        )
        _warn_of_cut_tumour(stacks[0], preprocess)
    node_batch = config.train.batch_size // ranks.world_size * ranks.local_world_size
    seed = config.train.seed + 1_000_003 * ranks.node_rank
    part = (ranks.local_rank, ranks.local_world_size)
    allowed: NDArray[np.bool_] | None = None
    if config.sample.slice_split is not None:
        allowed, _, _ = split_store(store, config.sample, config.train.seed)
        if ranks.is_first:
            _log.warning(FLATTERS)
    tumour_px, case_numbers = store.tumour_px(), store.case_numbers()
    sampler = EpochSampler(tumour_px, case_numbers, config.sample, node_batch, seed, allowed)
    num_steps = int(reduce_max(sampler.num_steps))
    return SliceFeed(store, sampler, part, num_steps, pin=device.type == "cuda"), stacks[1]


def _cached(plan: RunPlan, fill: Fill, entries: Sequence[CaseEntry]) -> list[tuple[SliceStack, ...]]:
    preprocess = plan.config.preprocess
    fill(plan.manifest.data, entries, preprocess, plan.cache)
    cache = SliceCache(plan.cache, preprocess)
    found = [cache.get(entry) for entry in entries]
    if any(stack is None for stack in found):
        raise DataError(
            f"the slice cache '{plan.cache.folder}' cannot hold this run's cases at once; raise "
            "GLIORAY_CACHE_DISK_GB or point GLIORAY_CACHE at a larger disk"
        )
    return [stack for stack in found if stack is not None]


def _warn_of_cut_tumour(cases: Sequence[tuple[SliceStack, ...]], preprocess: PreprocessConfig) -> None:
    """Say what of the tumours lies outside the slices' window: it is not learned from."""
    whole = [sum(stacks[0].label_voxels[1:]) for stacks in cases]
    inside = [int(np.count_nonzero(stacks[0].mask)) for stacks in cases if stacks[0].mask is not None]
    num_cut = sum(a > b for a, b in zip(whole, inside, strict=True))
    if num_cut:
        _log.warning(
            "%d of %d cases have tumour outside the window of %d x %d pixels, %.1f %% of all of it; raise preprocess.size",
            num_cut, len(cases), *preprocess.size, 100 * (1 - sum(inside) / sum(whole)),
        )  # fmt: skip


class _Tracked:
    """Reports to MLflow, on the first rank, and then to whoever else listens."""

    def __init__(self, draw: Draw, logger: RunLogger | None, storage: Storage, report: Report | None) -> None:
        self.draw, self.logger, self.storage, self.report = draw, logger, storage, report
        self.history = load_history(storage) if logger is not None else []

    def __call__(self, metrics: dict[str, float]) -> None:
        if self.logger is not None:
            epoch = int(metrics["epoch"])
            self.logger.log_metrics(metrics, step=epoch)
            self.history = [row for row in self.history if row["epoch"] < epoch] + [metrics]
            self.storage.write(HISTORY_FILE, json.dumps(self.history).encode())
            for path, figure in self.draw(self.history).items():
                self.logger.log_figure(figure, path)
        if self.report is not None:
            self.report(metrics)


def load_history(storage: Storage) -> list[dict[str, float]]:
    """The figures of each validation of a run so far, in order."""
    if not storage.exists(HISTORY_FILE):
        return []
    history: list[dict[str, float]] = json.loads(storage.read(HISTORY_FILE))
    return history


def log_run_model(storage: Storage, logger: RunLogger) -> str:
    """Log the model of the run's latest checkpoint with its MLflow run; its URI."""
    with tempfile.TemporaryDirectory() as folder:
        return log_package(logger, fetch_model(storage, Path(folder)))


def log_package(logger: RunLogger, package: Path) -> str:
    """Log the model of a package's folder, of either kind, with an MLflow run; its URI."""
    if is_superres((package / SPEC_FILE).read_bytes()):
        return log_superres_package(logger, package)
    spec, net = read_package(package)
    # Of the slices' own size: an export keeps as guards what the network makes of the example's, whether it is padded,
    # say, so that one made of smaller images may refuse the very slices that the model is for.
    preprocess = spec.config.preprocess
    example = torch.zeros(1, preprocess.num_channels, *preprocess.size)
    logger.log_json(spec.val_cases, "validation_cases.json")
    return log_model(logger, package, net, example)
