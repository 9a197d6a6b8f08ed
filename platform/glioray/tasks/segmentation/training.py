"""A whole run of a segmentation on one rank: what its task is made of, and the pictures of its validations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure

from glioray.cases.manifest import CaseEntry
from glioray.config import REGIONS
from glioray.engine.collectives import Ranks
from glioray.engine.loop import Learner, Report
from glioray.engine.run import Fill, RunPlan, load_slices, median_spacing, train_tracked
from glioray.engine.splits import split_store
from glioray.slices.preprocess import SliceStack
from glioray.slices.store import SliceFeed
from glioray.tasks.segmentation.balance import balance_classes
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.figures import learning_curves, overlay_figure
from glioray.tasks.segmentation.learner import SegmentationLearner
from glioray.tasks.segmentation.package import ModelSpec
from glioray.tasks.segmentation.slice_validation import HeldOutSlices


def train_segmentation(
    plan: RunPlan, ranks: Ranks, fill: Fill, report: Report | None = None
) -> dict[str, object]:
    """Train, or go on training, `plan`'s segmentation model on this rank; returns as `train_tracked`.

    Raises:
        UsageError: the run's name is taken by a run with other settings, or its loss has no class weights to
            balance.
        DataError: nothing to train on.
        DivergenceError: the run diverged.
    """
    plan = balanced(plan)
    tasks: list[SegmentationLearner] = []

    def prepare(device: torch.device) -> tuple[Learner, SliceFeed]:
        task, feed = prepare_segmentation(plan, ranks, fill, device)
        tasks.append(task)
        return task, feed

    def draw(history: Sequence[dict[str, float]]) -> dict[str, Figure]:
        figures = {"learning_curves.png": learning_curves(history)}
        if pictures := tasks[0].pictures:
            path = f"overlays/epoch_{int(history[-1]['epoch']):04d}.png"
            figures[path] = overlay_figure(
                np.stack([p.image for p in pictures]),
                np.stack([p.truth for p in pictures]),
                np.stack([p.prediction for p in pictures]),
                [p.title for p in pictures],
            )
        return figures

    return train_tracked(plan, ranks, prepare, draw, report)


def prepare_segmentation(
    plan: RunPlan,
    ranks: Ranks,
    fill: Fill,
    device: torch.device,
    make: type[SegmentationLearner] = SegmentationLearner,
) -> tuple[SegmentationLearner, SliceFeed]:
    """This rank's task and batches."""
    config = _segmentation(plan)
    train, val = _cases(plan)
    mine = val[ranks.rank :: ranks.world_size]
    feed, val_stacks = load_slices(plan, ranks, fill, device, train, mine)
    known = {entry.case_id: entry.known_regions for entry in plan.manifest.select("labelled")}
    judged: list[tuple[SliceStack, ...]] | HeldOutSlices = val_stacks
    if config.sample.slice_split is not None:
        judged = _held_out(feed, config, ranks)
    return make(config, _first_spec(plan), judged, ranks, device, known), feed


def balanced(plan: RunPlan) -> RunPlan:
    """The plan with the class weights that `loss.balance` makes of its training cases.

    Raises:
        UsageError: the loss has no class weights, or has been given others.
    """
    train, _ = _cases(plan)
    # Without cases there is nothing to count; loading them says so.
    if not train:
        return plan
    return replace(plan, config=balance_classes(_segmentation(plan), train, _out_channels(plan)))


def _segmentation(plan: RunPlan) -> RunConfig:
    assert isinstance(plan.config, RunConfig), "a plan of a segmentation"
    return plan.config


def _cases(plan: RunPlan) -> tuple[list[CaseEntry], list[CaseEntry]]:
    """The cases to train on and those to validate on; where slices are split, all are trained on, in part."""
    train, val = (plan.manifest.select(name) for name in ("train", "val"))
    return (train, val) if plan.config.sample.slice_split is None else ([*train, *val], [])


def _out_channels(plan: RunPlan) -> int:
    """Regions, or background and labels: the resection cavity only where the training cases have one."""
    if _segmentation(plan).loss.target == "regions":
        return len(REGIONS)
    train, _ = _cases(plan)
    return 4 + any(entry.label_voxels.get("rc", 0) for entry in train)


def _first_spec(plan: RunPlan) -> ModelSpec:
    train, val = _cases(plan)
    config = _segmentation(plan)
    # Nor may those judge a model whom its thresholds were fitted on.
    seen = [*train, *val] if config.postprocess.fit_thresholds else train
    return ModelSpec(
        config=config,
        out_channels=_out_channels(plan),
        spacing_mm=median_spacing(train),
        manifest_hash=plan.manifest.hash,
        train_patients=tuple(sorted({entry.patient_id for entry in seen})),
        regions=tuple(name for name in REGIONS if any(name in entry.known_regions for entry in train)),
    )


def _held_out(feed: SliceFeed, config: RunConfig, ranks: Ranks) -> HeldOutSlices:
    """This rank's share of the slices that are validated on, where slices are split."""
    _, held_out, _ = split_store(feed.store, config.sample, config.train.seed)
    return HeldOutSlices(feed.store, np.flatnonzero(held_out)[ranks.local_rank :: ranks.local_world_size])
