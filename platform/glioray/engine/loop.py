"""The training loop: when to step, validate, save and stop. What a step does is up to the learner."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch

from glioray.config import TrainConfig
from glioray.engine.checkpoint import Checkpoint, load_state, save_checkpoint
from glioray.engine.collectives import Ranks, barrier, from_first, gather
from glioray.engine.threads import ThreadChoice
from glioray.errors import DivergenceError
from glioray.progress import IN_LOG, log_progress
from glioray.slices.store import Batch
from glioray.storage import Storage

_log = logging.getLogger(__name__)
_LOG_EVERY_S = 10.0
_NUM_SHOWN = 4
"""Metrics of a validation that its line names, its first ones; the log has all."""

Report = Callable[[dict[str, float]], None]
"""Called by every rank, equally often: after each epoch that was validated and saved."""


class Learner(Protocol):
    """The object that the loop drives: the networks of a task, their optimisers and their validation.

    Attributes:
        stopped: the reason to end the run early, set by a validation and equal on all ranks; usually empty.
        tags: of the run in MLflow, as they are now.
    """

    @property
    def stopped(self) -> str: ...

    @property
    def tags(self) -> dict[str, str]: ...

    def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
        """Take one optimiser step and return this rank's metrics.

        Args:
            batch: this rank's part of the global batch.
            epoch: from 1.
            progress: of the run, in [0, 1].

        Returns: scalars by name. Keys may be absent on some steps.

        Raises:
            DivergenceError: a metric that all ranks share is not finite.
        """

    def validate(self) -> dict[str, float]:
        """Compute the validation metrics over all ranks, equal on each; empty without validation data."""

    def finish(self) -> dict[str, float]:
        """Do what remains after the last validation; the metrics returned replace its own, equal on each rank.

        Its time is not part of `train.minutes`.
        """

    def state(self) -> dict[str, Any]:
        """Return everything needed to resume: tensors and plain values."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Resume from the result of `state`."""

    def checkpoint(self, step: int, state: dict[str, Any], metrics: dict[str, float]) -> Checkpoint:
        """Pack the current model for inference, with the state to resume from."""


class Feed(Protocol):
    """The batches of one rank."""

    num_steps: int

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch; they depend on the epoch alone."""


def fit(
    learner: Learner, feed: Feed, config: TrainConfig, storage: Storage, ranks: Ranks, report: Report
) -> dict[str, float]:
    """Train until the epochs or the minutes are over, resuming from the storage's latest checkpoint.

    With `minutes`, the schedule follows the clock if time runs out before the epochs do. Steps, validation and saving
    all count, and the run measures how many threads a step should use. Without `minutes`, every step depends on its
    number alone: a resumed run equals an uninterrupted one bitwise.

    Returns: the metrics of the last epoch.

    Raises:
        DivergenceError: the loss or a gradient is no longer finite.
    """
    num_steps = config.max_epochs * feed.num_steps
    step = epoch = 0
    spent_s, validation_s, num_slices = 0.0, 0.0, 0
    metrics: dict[str, float] = {}
    saved = load_state(storage)
    if saved is not None:
        learner.load_state(saved["task"])
        step, epoch, spent_s = saved["step"], saved["epoch"], saved["spent_s"]
        num_slices, metrics = saved["num_slices"], saved["metrics"]
        validation_s = saved.get("validation_s", 0.0)
        _restore_rng(saved["rng"][ranks.rank] if ranks.rank < len(saved["rng"]) else saved["rng"][0])
        if ranks.is_first:
            _log.info("resuming after epoch %d, step %d", epoch, step)
    began = time.monotonic() - spent_s
    logged = time.monotonic()

    def progress() -> float:
        by_step = step / num_steps
        if config.minutes is None:
            return by_step
        # Reserve time for the last validation: as long as the previous one took.
        budget_s = 60 * config.minutes - min(validation_s, 30 * config.minutes)
        return max(by_step, from_first((time.monotonic() - began) / budget_s))

    threads = ThreadChoice(torch.get_num_threads()) if config.minutes is not None else None
    validated = done = progress()
    # At least one step, however short the time, so that there is a model. A run whose time was cut below what it has
    # already used takes one more, so that it is finished.
    while not learner.stopped and (done < 1 or metrics.get("progress", 0.0) < 1):
        epoch += 1
        epoch_began, rows = time.monotonic(), []
        if threads is not None:
            threads.start_epoch()
        for batch in feed.epoch(epoch):
            step_began = time.monotonic()
            rows.append(learner.train_step(batch, epoch, done))
            if threads is not None:
                threads.after_step(time.monotonic() - step_began)
            step += 1
            num_slices += config.batch_size
            done = progress()
            if ranks.is_first and time.monotonic() - logged > _LOG_EVERY_S:
                logged = time.monotonic()
                log_progress(_log, "training", done, began, f"{_epoch(epoch, config)}, {_format(rows[-1])}")
            if done >= 1:
                break
        seconds = time.monotonic() - epoch_began
        train = {f"train_{name}": value for name, value in _mean_over_ranks(rows).items()}
        train["slices_per_s"] = len(rows) * config.batch_size / seconds
        if done < 1 and int(done * config.num_validations) == int(validated * config.num_validations):
            continue
        validated, validation_began = done, time.monotonic()
        validation = learner.validate()
        metrics = {**train, **validation, "epoch": epoch, "step": step, "num_slices": num_slices}
        validation_s = time.monotonic() - validation_began
        done = progress()
        if done >= 1 and not learner.stopped:
            metrics |= learner.finish()
        metrics["progress"] = min(done, 1.0)
        metrics["minutes"] = (time.monotonic() - began) / 60
        rng = gather(_rng_state())
        if ranks.is_first:
            state = {
                "task": learner.state(),
                "step": step,
                "epoch": epoch,
                "spent_s": time.monotonic() - began,
                "validation_s": validation_s,
                "num_slices": num_slices,
                "metrics": metrics,
                "rng": rng,
            }
            save_checkpoint(storage, learner.checkpoint(step, state, metrics), config.num_kept)
            shown = _format(dict(list(validation.items())[:_NUM_SHOWN]))
            log_progress(_log, "training", done, began, f"{_epoch(epoch, config)} validated: {shown}")
            _log.info("%s: %s", _epoch(epoch, config), _format(metrics), extra=IN_LOG)
        barrier()  # no rank reports a checkpoint before it is written
        report(metrics)
    return metrics


def check_finite(name: str, value: float) -> float:
    """Return the value if it is finite.

    Raises:
        DivergenceError: names what diverged and what usually helps.
    """
    if not math.isfinite(value):
        raise DivergenceError(
            f"{name} became {value}: the run diverged; lower the learning rate or turn on grad_clip"
        )
    return value


def _mean_over_ranks(rows: list[dict[str, float]]) -> dict[str, float]:
    """Average each metric over the steps that have it, then over ranks, which have equally many slices."""
    names = dict.fromkeys(name for row in rows for name in row)
    means = {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
    tables = gather(means)
    return {name: float(np.mean([table[name] for table in tables])) for name in means}


def _rng_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_rng(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _epoch(epoch: int, config: TrainConfig) -> str:
    # Of a run that minutes end, nobody knows how many there will be.
    return f"epoch {epoch}" if config.minutes is not None else f"epoch {epoch} of {config.max_epochs}"


def _format(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
