"""A training run on the cluster: ranks placed, retried and joined by Ray Train."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from glioray.engine.collectives import Ranks
from glioray.engine.on_ray.gauges import train_measured
from glioray.engine.on_ray.placement import place_data
from glioray.engine.on_ray.resources import WorkerResources, wait_for_room, worker_resources
from glioray.engine.run import RunPlan
from glioray.errors import GliorayError, TrainingError
from glioray.progress import log_to_stderr
from glioray.storage import join_uri, open_storage

_log = logging.getLogger(__name__)

RESULT_FILE = "result.json"
_MAX_FAILURES = 2
_FAULTS_OF_CODE = (AssertionError, AttributeError, ImportError, NameError, NotImplementedError, TypeError)


def run_training(
    plan: RunPlan,
    *,
    resources: WorkerResources | None = None,
    callbacks: Sequence[Any] = (),
    to_report: Callable[[dict[str, float]], dict[str, Any]] = dict,
) -> dict[str, Any]:
    """Train on `plan.config.train.num_workers` ranks; dead workers restart from the newest saved state.

    Where the plan allows fewer ranks, as many as there is room for start, and Ray Train starts them anew, from that
    state, when nodes are lost or come. The cases are decoded before the ranks start. An error that would come again, such
    as one of the data or of a setting, ends the run at once.

    Args:
        plan: the run.
        resources: of each rank; by default what the plan asks for.
        callbacks: of Ray Train.
        to_report: maps the metrics of a validation to what Ray receives.

    Returns: the result of `engine.run.train_run` on the first rank.

    Raises:
        GliorayError: the error of a worker, there is no room for the ranks, or too many cases can no longer be decoded.
    """
    num_workers, asked = plan.config.train.num_workers, plan.workers
    resources = resources or worker_resources(num_workers, asked)
    fewest = num_workers if asked.fewest is None else asked.fewest
    place_data([plan], everywhere=False)
    # In dicts because mypy sees the signatures of older configs.
    quiet: dict[str, Any] = {"logging_config": ray.train.LoggingConfig(log_level="WARNING")}
    scaling: dict[str, Any] = {
        "num_workers": num_workers if fewest == num_workers else (fewest, num_workers),
        "label_selector": resources.labels or None,
    }
    storage = open_storage(plan.storage)
    storage.delete(RESULT_FILE)
    for failures in range(_MAX_FAILURES + 1):
        # Ray Train would wait for ever, and say nothing.
        wait_for_room(fewest, resources, asked.wait_minutes)
        # Ray Train itself would retry every error; a trainer of the same name resumes.
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"plan": plan, "num_threads": resources.num_threads, "to_report": to_report},
            scaling_config=ray.train.ScalingConfig(
                use_gpu=resources.num_gpus > 0,
                resources_per_worker=resources.resources(),
                **scaling,
            ),
            run_config=ray.train.RunConfig(
                name=Path(plan.storage).name,
                storage_path=join_uri(plan.storage, "ray"),
                callbacks=list(callbacks),
                **quiet,
            ),
        )
        try:
            trainer.fit()
            break
        except Exception as error:
            cause = _cause(error)
            if failures == _MAX_FAILURES or not cause.may_pass:
                raise cause from error
            _log.warning("%s; restarting from the latest checkpoint", cause)
    result: dict[str, Any] = json.loads(storage.read(RESULT_FILE))
    return result


def _train_worker(settings: dict[str, Any]) -> None:
    log_to_stderr(shown=settings["plan"].kind == "train")
    context = ray.train.get_context()
    ranks = Ranks(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        local_world_size=context.get_local_world_size(),
        node_rank=context.get_node_rank(),
    )
    plan: RunPlan = dataclasses.replace(settings["plan"], num_threads=settings["num_threads"])
    to_report = settings["to_report"]
    result = train_measured(plan, ranks, lambda metrics: ray.train.report(to_report(metrics)))
    if ranks.is_first:
        open_storage(plan.storage).write(RESULT_FILE, json.dumps(result).encode())


def _cause(error: BaseException) -> GliorayError:
    """Find the glioray error at the root of Ray's exception, or wrap Ray's message in one."""
    seen: list[BaseException] = [error]
    for item in seen:
        if isinstance(item, GliorayError):
            return item
        failures = getattr(item, "worker_failures", None) or {}
        linked = (
            item.__cause__,
            getattr(item, "cause", None),
            getattr(item, "_base_exc", None),
            *failures.values(),
        )
        seen += [e for e in linked if isinstance(e, BaseException) and e not in seen]
    root = seen[-1]
    reason = (str(root).strip() or type(root).__name__).splitlines()[-1]
    cause = TrainingError(f"training failed on a worker ({type(root).__name__}: {reason}); its log is above")
    cause.may_pass = not isinstance(root, _FAULTS_OF_CODE)
    return cause
