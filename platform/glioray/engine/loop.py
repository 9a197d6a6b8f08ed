"""The training loop: when to step, validate, save and stop. What a step does is up to the learner."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from glioray.config import TrainConfig
from glioray.engine.checkpoint import Checkpoint, Saver, load_state
from glioray.engine.collectives import Ranks, barrier, from_first, gather
from glioray.engine.threads import ThreadChoice
from glioray.errors import DivergenceError
from glioray.progress import IN_LOG, log_progress
from glioray.slices.store import Batch
from glioray.storage import Storage

_log = logging.getLogger(__name__)
T = TypeVar("T")
_LOG_EVERY_S = 10.0
CLOCKS = ("minutes", "slices_per_s", "step_s", "wait_s", "validation_s")
"""Metrics of a validation that depend on the machine; all others of a run that is repeated are equal."""
_NUM_SHOWN = 4
"""Metrics of a validation that its line names, its first ones; the log has all."""
# Clouds give half a minute to two minutes' notice.
_LOOK_S, _LEAVING_EVERY_S = 5.0, 10.0

Report = Callable[[dict[str, float]], None]
"""Called by every rank, equally often: after each epoch that was validated and saved."""

IsLeaving = Callable[[], bool]
"""Whether a node of the run is about to be taken away; called by every rank, equally often, and equal on all."""


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

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from a step on; each depends on the epoch and the step alone."""


def fit(
    learner: Learner,
    feed: Feed,
    config: TrainConfig,
    storage: Storage,
    ranks: Ranks,
    report: Report,
    *,
    save_every_s: float = 300.0,
    report_saved: bool = True,
    is_leaving: IsLeaving = lambda: False,
) -> dict[str, float]:
    """Train until the epochs or the minutes are over, resuming from the newest state in the storage.

    With `minutes`, the schedule follows the clock if time runs out before the epochs do. Steps, validation and what of
    saving is not done beside training all count, and the run measures how many threads a step should use. Without
    `minutes`, every step depends on its number alone: a resumed run equals an uninterrupted one bitwise.

    Args:
        learner: what is trained.
        feed: its batches.
        config: how long.
        storage: of the run.
        ranks: all ranks of the run, and which one this is.
        report: called after each validation.
        save_every_s: seconds between two saves of the training state, so that a run that dies loses no more.
        report_saved: whether a validation's checkpoint is in the storage before it is reported; else training goes on
            while it is written.
        is_leaving: asked every few seconds; where it says so, the state is saved every ten seconds from then on.

    Returns: the metrics of the last epoch.

    Raises:
        DivergenceError: the loss or a gradient is no longer finite.
        StorageError: a checkpoint cannot be written.
    """
    with closing(Saver(storage)) as saver:
        timer = _SaveTimer(save_every_s, is_leaving)
        return _fit(learner, feed, config, saver, ranks, report, timer, report_saved)


def _fit(
    learner: Learner,
    feed: Feed,
    config: TrainConfig,
    saver: Saver,
    ranks: Ranks,
    report: Report,
    timer: _SaveTimer,
    report_saved: bool,
) -> dict[str, float]:
    num_steps = config.max_epochs * feed.num_steps
    step = epoch = 0
    spent_s, validation_s, num_slices = 0.0, 0.0, 0
    metrics: dict[str, float] = {}
    rows: list[dict[str, float]] = []
    saved = load_state(saver.storage)
    if saved is not None:
        learner.load_state(saved["task"])
        step, epoch, spent_s = saved["step"], saved["epoch"], saved["spent_s"]
        num_slices, metrics = saved["num_slices"], saved["metrics"]
        validation_s = saved.get("validation_s", 0.0)
        _restore_rng(_of_rank(saved["rng"], ranks))
        if "rows" in saved:
            rows = _of_rank(saved["rows"], ranks)
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

    def state() -> dict[str, Any] | None:
        """The first rank's state to resume from, with what only the other ranks know; None on these."""
        rng = gather(_rng_state())
        if not ranks.is_first:
            return None
        return {
            "task": learner.state(),
            "step": step,
            "epoch": epoch,
            "spent_s": time.monotonic() - began,
            "validation_s": validation_s,
            "num_slices": num_slices,
            "metrics": metrics,
            "rng": rng,
        }

    def save_if_due(num_epochs: int) -> None:
        """Save the state to resume from, between checkpoints: after so many whole epochs, and the steps in `rows`."""
        if not timer.is_due(step, saver):
            return
        own, all_rows = state(), gather(rows)
        if own is not None:
            saver.save_progress(step, own | {"epoch": num_epochs, "rows": all_rows})
        timer.restart(step)

    threads = ThreadChoice(torch.get_num_threads()) if config.minutes is not None else None
    validated = done = progress()
    if saved is not None and "rows" in saved:
        validated = metrics.get("progress", 0.0)
    timer.restart(step)
    # At least one step, however short the time, so that there is a model. A run whose time was cut below what it has
    # already used takes one more, so that it is finished.
    while not learner.stopped and (done < 1 or metrics.get("progress", 0.0) < 1):
        epoch += 1
        epoch_began, num_before = time.monotonic(), len(rows)
        ready, wait_s, step_s = epoch_began, 0.0, 0.0
        if threads is not None:
            threads.start_epoch()
        for batch in feed.epoch(epoch, num_before):
            step_began = time.monotonic()
            wait_s += step_began - ready
            rows.append(learner.train_step(batch, epoch, done))
            this_s = time.monotonic() - step_began
            step_s += this_s
            if threads is not None:
                threads.after_step(this_s)
            step += 1
            num_slices += config.batch_size
            done = progress()
            if ranks.is_first and time.monotonic() - logged > _LOG_EVERY_S:
                logged = time.monotonic()
                log_progress(_log, "training", done, began, f"{_epoch(epoch, config)}, {_format(rows[-1])}")
            if done >= 1:
                break
            if len(rows) < feed.num_steps:
                save_if_due(epoch - 1)
            ready = time.monotonic()
        seconds, num_taken = time.monotonic() - epoch_began, len(rows) - num_before
        train = {f"train_{name}": value for name, value in _mean_over_ranks(rows).items()}
        train["slices_per_s"] = num_taken * config.batch_size / seconds
        # On other nodes than before, an epoch may have no step left.
        train["step_s"], train["wait_s"] = step_s / max(num_taken, 1), wait_s / max(num_taken, 1)
        rows = []
        if done < 1 and int(done * config.num_validations) == int(validated * config.num_validations):
            save_if_due(epoch)
            continue
        validated, validation_began = done, time.monotonic()
        validation = learner.validate()
        metrics = {**train, **validation, "epoch": epoch, "step": step, "num_slices": num_slices}
        metrics["validation_s"] = validation_s = time.monotonic() - validation_began
        done = progress()
        if done >= 1 and not learner.stopped:
            metrics |= learner.finish()
        metrics["progress"] = min(done, 1.0)
        metrics["minutes"] = (time.monotonic() - began) / 60
        own = state()
        if own is not None:
            saver.save_checkpoint(learner.checkpoint(step, own, metrics), config.num_kept)
            shown = _format(dict(list(validation.items())[:_NUM_SHOWN]))
            log_progress(_log, "training", done, began, f"{_epoch(epoch, config)} validated: {shown}")
            _log.info("%s: %s", _epoch(epoch, config), _format(metrics), extra=IN_LOG)
        timer.restart(step)
        if report_saved:
            saver.wait()
            barrier()
        report(metrics)
    saver.wait()
    return metrics


class _SaveTimer:
    """Decides, alike on all ranks, at which steps a run saves its state between checkpoints.

    The first rank's clock counts. The ranks agree on the step at which they next look at it, halfway to where the next
    save is expected or some seconds ahead, so that at most steps they ask nobody.
    """

    def __init__(self, every_s: float, is_leaving: IsLeaving) -> None:
        self.every_s, self.is_leaving = every_s, is_leaving
        self.leaves, self.next_ask = False, 0
        self.restart(0)

    def restart(self, step: int) -> None:
        """A save has begun after this step."""
        self.began, self.began_step, self.next_look = time.monotonic(), step, step + 1

    def is_due(self, step: int, saver: Saver) -> bool:
        """Whether to save after this step; not while the last save is still being written."""
        if step < self.next_look:
            return False
        # Negative while the first rank still writes.
        passed_s = from_first(max(time.monotonic() - self.began, 1e-9) * (-1 if saver.is_busy else 1))
        is_busy, passed_s = passed_s < 0, abs(passed_s)
        steps_per_s = (step - self.began_step) / passed_s
        num_ahead = math.ceil(_LOOK_S * steps_per_s)
        if not self.leaves and step >= self.next_ask:
            self.next_ask = step + num_ahead
            self._ask()
        every_s = min(self.every_s, _LEAVING_EVERY_S) if self.leaves else self.every_s
        steps_left = (every_s - passed_s) * steps_per_s
        self.next_look = step + max(1, min(math.ceil(steps_left / 2), num_ahead))
        return steps_left <= 0 and not is_busy

    def _ask(self) -> None:
        self.leaves = self.is_leaving()
        if self.leaves:
            _log.warning(
                "a node of this run is about to be taken away: its state is saved every %g s",
                _LEAVING_EVERY_S,
            )


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


def _of_rank(values: Sequence[T], ranks: Ranks) -> T:
    """A rank's own value, or the first one's for a rank that the saved run did not have."""
    return values[ranks.rank] if ranks.rank < len(values) else values[0]


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
