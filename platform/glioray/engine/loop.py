"""The one visible loop. What a step does is the learner's business; when, how long and from where is here."""

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
from glioray.slices.store import Batch
from glioray.storage import Storage

_log = logging.getLogger(__name__)
_SAY_EVERY_S = 10.0

Report = Callable[[dict[str, float]], None]
"""Called by every rank, equally often: after each epoch that was validated and saved."""


class Learner(Protocol):
    """What the loop drives: one network and its optimiser, or two of each.

    Attributes:
        stopped: why the run is to end before its time, alike on each rank, from a validation on; empty as a rule.
        tags: what the run is to be found by, as it stands now.
    """

    @property
    def stopped(self) -> str: ...

    @property
    def tags(self) -> dict[str, str]: ...

    def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
        """One step at `progress` in [0, 1] of the run; this rank's figures, of which not each step has all.

        Raises:
            DivergenceError: a figure that all ranks share is not finite.
        """

    def validate(self) -> dict[str, float]:
        """Figures over all ranks, alike on each; empty where there is nothing to validate on."""

    def finish(self) -> dict[str, float]:
        """What is left to do after the last validation; figures, alike on each rank, in place of that one's.

        The time that this takes comes on top of a run's minutes.
        """

    def state(self) -> dict[str, Any]:
        """All that training goes on from: tensors and plain values."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""

    def checkpoint(self, step: int, state: dict[str, Any], metrics: dict[str, float]) -> Checkpoint:
        """The present model for inference, with its description."""


class Feed(Protocol):
    """Batches of this rank."""

    num_steps: int

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch: a function of the epoch alone."""


def fit(
    learner: Learner, feed: Feed, config: TrainConfig, storage: Storage, ranks: Ranks, report: Report
) -> dict[str, float]:
    """Train until the epochs or the minutes are over; goes on from the storage's latest checkpoint.

    With `minutes`, the schedule follows the clock where that ends first, and all that happens in here counts:
    steps, validation and saving. Such a run also tries how many threads a step should use. Without, every step is a function of its number: a resumed run equals an
    uninterrupted one.

    Returns: the figures of the last epoch.

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
            _log.info("going on after epoch %d, step %d", epoch, step)
    began = time.monotonic() - spent_s
    said = time.monotonic()

    def progress() -> float:
        by_step = step / num_steps
        if config.minutes is None:
            return by_step
        # Time is kept for the last validation, as long as the one before took.
        budget_s = 60 * config.minutes - min(validation_s, 30 * config.minutes)
        return max(by_step, from_first((time.monotonic() - began) / budget_s))

    threads = ThreadChoice(torch.get_num_threads()) if config.minutes is not None else None
    judged = done = progress()
    # However short the time: one step, so that there is a model, and one more where a run was cut shorter after it
    # was saved, so that it is finished.
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
            if ranks.is_first and time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                _say(epoch, config, len(rows), feed.num_steps, rows[-1], said - began, done)
            if done >= 1:
                break
        seconds = time.monotonic() - epoch_began
        train = {f"train_{name}": value for name, value in _mean_over_ranks(rows).items()}
        train["slices_per_s"] = len(rows) * config.batch_size / seconds
        if done < 1 and int(done * config.num_validations) == int(judged * config.num_validations):
            continue
        judged, validation_began = done, time.monotonic()
        metrics = {**train, **learner.validate(), "epoch": epoch, "step": step, "num_slices": num_slices}
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
            _log.info("epoch %d/%d: %s", epoch, config.max_epochs, _shown(metrics))
        barrier()  # no rank reports a checkpoint that is not there yet
        report(metrics)
    return metrics


def check_finite(name: str, value: float) -> float:
    """The value, if it is finite.

    Raises:
        DivergenceError: it is not; says what diverged and what usually helps.
    """
    if not math.isfinite(value):
        raise DivergenceError(
            f"{name} became {value}: the run diverged; lower the learning rate or turn on grad_clip"
        )
    return value


def _mean_over_ranks(rows: list[dict[str, float]]) -> dict[str, float]:
    """Each figure's mean over ranks and the steps that have it; ranks have equally many of equally many slices."""
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


def _say(
    epoch: int,
    config: TrainConfig,
    row: int,
    num_rows: int,
    figures: dict[str, float],
    spent_s: float,
    done: float,
) -> None:
    left = spent_s * (1 - done) / max(done, 1e-6) / 60
    _log.info(
        "epoch %d/%d, step %d/%d, %s; %.0f %% done, %.1f minutes left",
        epoch, config.max_epochs, row, num_rows, _shown(figures), 100 * done, left,
    )  # fmt: skip


def _shown(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
