"""Whatever a plan is of, trained on this rank."""

from __future__ import annotations

from glioray.engine.collectives import Ranks
from glioray.engine.loop import Report
from glioray.engine.run import Fill, RunPlan
from glioray.tasks.segmentation.training import train_segmentation
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.training import train_gan


def train_run(plan: RunPlan, ranks: Ranks, fill: Fill, report: Report | None = None) -> dict[str, object]:
    """`train_segmentation` or `train_gan`, as the plan's config asks for."""
    train = train_gan if isinstance(plan.config, GanConfig) else train_segmentation
    return train(plan, ranks, fill, report)
