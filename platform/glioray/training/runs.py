"""Whatever a plan is of, trained on this rank."""

from __future__ import annotations

from glioray.gan_config import GanConfig
from glioray.training.collectives import Ranks
from glioray.training.gan_session import train_gan
from glioray.training.loop import Report
from glioray.training.segmentation_session import train_segmentation
from glioray.training.session import Fill, RunPlan


def train_run(plan: RunPlan, ranks: Ranks, fill: Fill, report: Report | None = None) -> dict[str, object]:
    """`train_segmentation` or `train_gan`, as the plan's config asks for."""
    train = train_gan if isinstance(plan.config, GanConfig) else train_segmentation
    return train(plan, ranks, fill, report)
