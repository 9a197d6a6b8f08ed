"""One rank's part of a segmentation run: its learner, its batches and the figures of its validations."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from glioray.cases.fingerprint import find_ranges
from glioray.cases.manifest import CaseEntry
from glioray.config import REGIONS
from glioray.engine.collectives import Ranks
from glioray.engine.evaluation import describe_training
from glioray.engine.feed import load_slices, median_spacing
from glioray.engine.run import Fill, RunPlan
from glioray.engine.splits import split_store
from glioray.engine.task import History, Prepared
from glioray.slices.preprocess import SliceStack
from glioray.slices.store import SliceFeed
from glioray.tasks.segmentation.balance import balance_classes
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.learner import SegmentationLearner
from glioray.tasks.segmentation.package import ModelSpec
from glioray.tasks.segmentation.slice_validation import HeldOutSlices

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def prepare_segmentation(
    plan: RunPlan,
    ranks: Ranks,
    fill: Fill,
    device: torch.device,
    make: type[SegmentationLearner] = SegmentationLearner,
) -> Prepared:
    """Build this rank's learner and batches; see `engine.task.Task.prepare`."""
    config = plan.config
    train, val = run_cases(plan)
    mine = val[ranks.rank :: ranks.world_size]
    feed, val_stacks, left_out = load_slices(plan, ranks, fill, device, train, mine)
    known = {entry.case_id: entry.labelled_regions for entry in plan.manifest.select("labelled")}
    judged: list[tuple[SliceStack, ...]] | HeldOutSlices = val_stacks
    if config.sample.slice_split is not None:
        judged = _held_out(feed, config, ranks)
    learner = make(config, _first_spec(plan), judged, ranks, device, known, plan.agree)

    # matplotlib is imported where something is drawn: half a second of each process, most of which draw nothing.
    def draw(history: History) -> dict[str, Figure]:
        from glioray.tasks.segmentation.figures import learning_curves

        return {"learning_curves.png": learning_curves(history)}

    def draw_overlays() -> dict[str, Figure]:
        pictures = learner.pictures
        if not pictures:
            return {}
        from glioray.tasks.segmentation.figures import overlay_figure

        overlays = overlay_figure(
            np.stack([p.image for p in pictures]),
            np.stack([p.truth for p in pictures]),
            np.stack([p.prediction for p in pictures]),
            [p.title for p in pictures],
        )
        return {"overlays": overlays}

    return Prepared(learner, feed, draw, draw_overlays, left_out)


def balanced(plan: RunPlan) -> RunPlan:
    """Return the plan with the class weights that `loss.balance` computes from its training cases.

    Raises:
        UsageError: the loss takes no class weights, or has others set.
    """
    train, _ = run_cases(plan)
    # Without cases there is nothing to count; loading them raises the error.
    if not train:
        return plan
    return replace(plan, config=balance_classes(plan.config, train, _out_channels(plan)))


def run_cases(plan: RunPlan) -> tuple[list[CaseEntry], list[CaseEntry]]:
    """Return the training and validation cases; with split slices, all cases are partly trained on."""
    train, val = (plan.manifest.select(name) for name in ("train", "val"))
    return (train, val) if plan.config.sample.slice_split is None else ([*train, *val], [])


def _out_channels(plan: RunPlan) -> int:
    """Count the output channels: regions, or background and labels (the cavity only if some training case has one)."""
    if plan.config.loss.target == "regions":
        return len(REGIONS)
    train, _ = run_cases(plan)
    return 4 + any(entry.label_voxels.get("rc", 0) for entry in train)


def _first_spec(plan: RunPlan) -> ModelSpec:
    train, val = run_cases(plan)
    config = plan.config
    # Patients used to fit thresholds must not evaluate the model.
    seen = [*train, *val] if config.postprocess.fit_thresholds else train
    return ModelSpec(
        config=config,
        out_channels=_out_channels(plan),
        spacing_mm=median_spacing(train),
        manifest_hash=plan.manifest.hash,
        **describe_training(seen),
        regions=tuple(name for name in REGIONS if any(name in entry.labelled_regions for entry in train)),
        train_ranges=find_ranges([entry.fingerprint for entry in train if entry.fingerprint]),
    )


def _held_out(feed: SliceFeed, config: RunConfig, ranks: Ranks) -> HeldOutSlices:
    """Return this rank's share of the validation slices, if slices are split."""
    _, held_out, _ = split_store(feed.store, config.sample, config.train.seed)
    return HeldOutSlices(feed.store, np.flatnonzero(held_out)[ranks.local_rank :: ranks.local_world_size])
