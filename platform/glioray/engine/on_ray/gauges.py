"""What a training measures, for Prometheus: Ray's agent on each node offers it under names with `ray_` before."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from glioray.engine.collectives import Ranks
from glioray.engine.loop import IsLeaving, Report
from glioray.engine.on_ray.placement import fill_cache
from glioray.engine.run import RunPlan, train_run

_TAGS = ("task", "run")
_GAUGES = {
    "progress": ("glioray_train_progress", "of the run, 0 to 1"),
    "slices_per_s": ("glioray_train_slices_per_second", "slices of all ranks a second, in the last epoch"),
    "step_s": ("glioray_train_step_seconds", "seconds of a step, a mean over the last epoch"),
    "wait_s": (
        "glioray_train_wait_seconds",
        "seconds that a step waited for its batch, a mean over the last epoch",
    ),
    "validation_s": ("glioray_train_validation_seconds", "seconds of the last validation"),
}
"""Metrics of a validation (`engine.loop.fit`) -> name and description of their gauge."""


def count_end(task: str, state: str, reason: str = "") -> None:
    """Count a run that ended.

    Args:
        task: of the run.
        state: "complete", "stopped" or "failed".
        reason: why, in a word or two: what stands before the first colon.
    """
    ended = Counter("glioray_train_runs", "runs that ended", ("task", "state", "reason"))
    ended.inc(1, {"task": task, "state": state, "reason": reason.partition(":")[0]})


class RunGauges:
    """The gauges of one run."""

    def __init__(self, task: str, run: str) -> None:
        self.tags = {"task": task, "run": run}
        self.gauges = {key: Gauge(name, text, _TAGS) for key, (name, text) in _GAUGES.items()}

    def set(self, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a validation; gauges without one keep their value."""
        for key, gauge in self.gauges.items():
            if key in metrics:
                gauge.set(metrics[key], self.tags)


def train_measured(
    plan: RunPlan, ranks: Ranks, report: Report | None = None, is_leaving: IsLeaving = lambda: False
) -> dict[str, object]:
    """Train a run as `train_run` does, with cases brought by Ray; its first rank also sets the gauges."""
    if not ranks.is_first:
        return train_run(plan, ranks, fill_cache, report, is_leaving)
    gauges = RunGauges(plan.task.name, plan.run_name)

    def both(metrics: dict[str, float]) -> None:
        gauges.set(metrics)
        if report is not None:
            report(metrics)

    try:
        result = train_run(plan, ranks, fill_cache, both, is_leaving)
    except Exception as error:
        count_end(plan.task.name, "failed", type(error).__name__)
        raise
    stopped = str(result.get("stopped", ""))
    count_end(plan.task.name, "stopped" if stopped else "complete", stopped)
    return result
