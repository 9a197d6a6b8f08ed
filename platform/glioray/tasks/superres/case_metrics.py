"""A super-resolution model on one case: metrics of its images, and of what a frozen segmenter makes of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glioray.cases.labels import LABELS, REGION_LABELS
from glioray.cases.load import Case
from glioray.cases.nifti import make_header
from glioray.config import REGIONS
from glioray.engine.task import LabellingModel, LabellingSpec
from glioray.errors import CaseError, UsageError
from glioray.metrics.image import image_metrics
from glioray.metrics.overlap import confusion, overlap_metrics
from glioray.reports.case_metrics import CaseMetrics
from glioray.slices.preprocess import PLANE_AXES, SliceStack, preprocess
from glioray.slices.volumes import resample_labels
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.degrade import resize, upsample
from glioray.tasks.superres.lpips import Lpips
from glioray.tasks.superres.model import StackPair, SuperResolver
from glioray.tasks.superres.package import SuperResSpec

VIEWS = ("sr", "bicubic", "hr")
"""The images of a case that a segmenter labels: super-resolved, interpolated and real."""

_LPIPS_SLICES = 24
"""Slices of each modality, evenly spread: deep features cost a hundred times the other metrics."""
_MIN_BRAIN = 1e-4
"""Smallest intensity in the brain: 0 in all modalities is background, and the brain must be the same in all views."""


@dataclass(frozen=True, kw_only=True)
class CaseEvaluation:
    """The metrics of one case.

    Attributes:
        images: by modality, and "mean" over them: `metrics.image.image_metrics`.
        use: by region "dice_sr", "dice_bicubic", "dice_hr" and "gain" (of sr over bicubic); empty without a
            segmenter or a mask.
        shown: for each modality the most informative slice: "title", "lr", "bicubic", "sr", "hr", "figures".
    """

    images: CaseMetrics
    use: CaseMetrics
    shown: list[dict[str, Any]]


def evaluate_case(
    resolver: SuperResolver,
    case: Case,
    *,
    segmenter: LabellingModel | None = None,
    lpips: Lpips | None = None,
) -> CaseEvaluation:
    """Degrade a case as in training, super-resolve it, and compare the result with the case.

    A model of one channel is evaluated on those modalities of the case that it was trained on or the segmenter needs.

    Raises:
        CaseError: it lacks a modality, or holds no brain.
        ModelError: the segmenter was trained on voxels of another size.
        UsageError: as `check_segmenter`.
    """
    config = resolver.spec.config
    modalities: tuple[str, ...] = config.preprocess.modalities
    if config.channels == "each":
        wanted = {*modalities, *(() if segmenter is None else segmenter.spec.config.preprocess.modalities)}
        modalities = tuple(name for name in case.modalities if name in wanted)
        if not modalities:
            found = f"has {', '.join(case.modalities)}; expected any of {', '.join(sorted(wanted))}"
            raise CaseError(case.case_id, "", found, "leave the case out")
    # The plane that the model learned from first; its degradation is within slices.
    settings = config.preprocess.replace(modalities=modalities, planes=config.preprocess.planes[:1])
    (stack,) = preprocess(case, settings, whole=True)
    made = as_trained(stack, config)
    pair = resolver.stack(made)
    images = stack_metrics(made, pair, modalities, lpips)
    use: CaseMetrics = {}
    if segmenter is not None and stack.mask is not None:
        known = REGIONS if case.convention is None else case.convention.regions
        check_segmenter(segmenter.spec, resolver.spec)
        use = _by_region(_dice(segmenter, stack, pair, modalities, known))
    return CaseEvaluation(images=images, use=use, shown=_shown(made, pair, modalities, images))


def as_trained(stack: SliceStack, config: GanConfig) -> SliceStack:
    """The stack at the resolution that the model makes: itself, or whole slices resized as in training.

    The grid of resized slices, where `restore` puts them, is that of the stack's window.
    """
    if config.degrade.cut == "patch":
        return stack
    sides = [
        max(1, round(side * config.degrade.hr_size / size))
        for side, size in zip(stack.images.shape[2:], config.preprocess.size, strict=True)
    ]
    images = resize(torch.from_numpy(stack.images), (sides[0], sides[1])).numpy().astype(np.float16)
    shape, spacing = list(stack.shape), list(stack.spacing_mm)
    for axis, old, new in zip(PLANE_AXES[stack.plane][1:], stack.images.shape[2:], sides, strict=True):
        shape[axis], spacing[axis] = new, spacing[axis] * old / new
    mask = stack.mask
    return replace(
        stack,
        images=images,
        mask=None if mask is None else resample_labels(mask, images[:, 0].shape),
        origin=(stack.origin[0], 0, 0),
        shape=(shape[0], shape[1], shape[2]),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
    )


def stack_metrics(
    stack: SliceStack, pair: StackPair, modalities: tuple[str, ...], lpips: Lpips | None = None
) -> CaseMetrics:
    """By modality, and "mean" over them: `image_metrics` of a stack's slices.

    LPIPS, and `quality` with it, is a mean over some of the slices with brain, evenly spread.
    """
    size = (pair.lr.shape[-2], pair.lr.shape[-1])
    hr = torch.from_numpy(stack.images.astype(np.float32))
    metrics: CaseMetrics = {}
    for number, modality in enumerate(modalities):
        views = [images[:, number] for images in (pair.sr, hr, pair.bicubic)]
        found = image_metrics(views[0], views[1], views[2], lr_size=size)
        if lpips is not None:
            filled = torch.nonzero((views[1] > 0).flatten(1).any(1))[:, 0]
            picked = filled[torch.linspace(0, len(filled) - 1, min(_LPIPS_SLICES, len(filled))).long()]
            some = [images[picked] for images in views]
            deep = image_metrics(some[0], some[1], some[2], lr_size=size, lpips=lpips.foreground_and_whole)
            found |= {name: value for name, value in deep.items() if "lpips" in name or name == "quality"}
        metrics[modality] = found
    names = next(iter(metrics.values()))
    metrics["mean"] = {
        name: float(np.mean([metrics[modality][name] for modality in modalities])) for name in names
    }
    return metrics


def dice_by_use(
    resolver: SuperResolver,
    segmenter: LabellingModel,
    stacks: tuple[SliceStack, ...],
    *,
    known: Collection[str] = REGIONS,
) -> dict[str, dict[str, float]]:
    """View ("sr", "bicubic", "hr") -> region -> Dice of the segmenter's labels, in 3-D.

    The segmenter gets whole volumes in [0, 1], which it normalises itself, with the same brain in all three, so that
    they differ in intensities only; outside the stack's window they are background.

    Args:
        resolver: the model.
        segmenter: frozen.
        stacks: of one case with a mask, as the model's `preprocess` gives them; the first one is used.
        known: of WT, TC and ET, those that the mask labels.

    Raises:
        CaseError: the case has no mask.
        ModelError: the segmenter was trained on voxels of another size.
        UsageError: as `check_segmenter`.
    """
    check_segmenter(segmenter.spec, resolver.spec, own_stacks=True)
    config = resolver.spec.config
    pair = resolver.stack(as_trained(stacks[0], config))
    return _dice(segmenter, stacks[0], pair, config.preprocess.modalities, known)


def use_summary(dice: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`dice_sr`, `dice_bicubic`, `dice_hr` as means over regions, and the `gain` of the first over the second.

    `recovered` is that gain as a share of the Dice lost by low resolution, where more than 0.01 was lost.

    Args:
        dice: by view and region, as `dice_by_use` returns it, or its means over cases.
    """
    means = {f"dice_{view}": float(np.mean(list(dice[view].values()))) for view in VIEWS}
    means["gain"] = means["dice_sr"] - means["dice_bicubic"]
    lost = means["dice_hr"] - means["dice_bicubic"]
    return means | ({"recovered": means["gain"] / lost} if lost > 0.01 else {})


def check_segmenter(segmenter: LabellingSpec, spec: SuperResSpec, *, own_stacks: bool = False) -> None:
    """Refuse a segmenter that cannot label what the model makes.

    Args:
        segmenter: of the segmenter.
        spec: of the super-resolution model.
        own_stacks: it will label stacks as the model's `preprocess` makes them, which have the model's modalities
            only; of a whole case a model of one channel makes every modality.

    Raises:
        UsageError: it takes other intensities than z-scores, or a modality that is not made.
    """
    wanted = segmenter.config.preprocess
    if wanted.normalize != "zscore":
        raise UsageError(
            f"the segmenter normalises by '{wanted.normalize}' and cannot see intensities from 0 to 1; name one that "
            "z-scores"
        )
    own = spec.config
    missing = sorted(set(wanted.modalities) - set(own.preprocess.modalities))
    if missing and (own_stacks or own.channels == "joint"):
        raise UsageError(
            f"the segmenter wants {', '.join(wanted.modalities)} but the super-resolution model makes "
            f"{', '.join(own.preprocess.modalities)}, no {missing[0]}; name another segmenter"
        )


def _dice(
    segmenter: LabellingModel,
    stack: SliceStack,
    pair: StackPair,
    modalities: tuple[str, ...],
    known: Collection[str],
) -> dict[str, dict[str, float]]:
    if stack.mask is None:
        raise CaseError(stack.case_id, "", "it has no mask to judge by", "add the mask or leave the case out")
    hr = stack.images.astype(np.float32)
    truth = stack.restore(stack.mask)
    regions = [name for name in REGIONS if name in known and name in segmenter.spec.regions]
    # Resized whole slices go back to the pixels that the segmenter was trained on.
    size = (hr.shape[-2], hr.shape[-1])
    sr, bicubic = (v if v.shape[-2:] == size else upsample(v, size) for v in (pair.sr, pair.bicubic))
    views = {"sr": sr.numpy(), "bicubic": bicubic.numpy(), "hr": hr}
    brain = (hr > 0).any(axis=1, keepdims=True)
    dice = {}
    for view, images in views.items():
        values = np.where(brain, np.clip(np.nan_to_num(images), _MIN_BRAIN, 1), 0).astype(np.float32)
        prediction = segmenter.predict(_as_case(stack, values, modalities))
        table = confusion(truth, prediction, len(LABELS))
        dice[view] = {name: overlap_metrics(table, REGION_LABELS[name])["dice"] for name in regions}
    return dice


def _as_case(stack: SliceStack, images: NDArray[np.float32], modalities: tuple[str, ...]) -> Case:
    """A case of slices, (S, M, H, W), on the grid that they were cut from."""
    affine = np.diag([*stack.spacing_mm, 1.0])
    return Case(
        case_id=stack.case_id,
        images=stack.restore(np.moveaxis(images, 1, 0)),
        mask=None,
        affine=affine,
        spacing_mm=stack.spacing_mm,
        reference=make_header(stack.shape, np.dtype(np.float32), affine, name=stack.case_id),
        convention=None,
        modalities=modalities,
    )


def _by_region(dice: Mapping[str, Mapping[str, float]]) -> CaseMetrics:
    return {
        region: {
            **{f"dice_{view}": dice[view][region] for view in VIEWS},
            "gain": dice["sr"][region] - dice["bicubic"][region],
        }
        for region in dice["hr"]
    }


def _shown(
    stack: SliceStack, pair: StackPair, modalities: tuple[str, ...], metrics: CaseMetrics
) -> list[dict[str, Any]]:
    """The slice with most tumour, or most brain, in each modality."""
    filled = (stack.images > 0).any(axis=1) if stack.mask is None or not stack.mask.any() else stack.mask > 0
    number = int(np.count_nonzero(filled, axis=(1, 2)).argmax())
    names = ("psnr", "lpips", "bicubic_psnr", "bicubic_lpips")
    return [
        {
            "title": f"{stack.case_id} {modality}, {stack.plane} {stack.origin[0] + number}",
            "lr": pair.lr[number, channel].flip(0, 1).numpy(),
            "bicubic": pair.bicubic[number, channel].flip(0, 1).numpy(),
            "sr": pair.sr[number, channel].flip(0, 1).numpy(),
            "hr": stack.images[number, channel].astype(np.float32)[::-1, ::-1],
            "figures": {name: metrics[modality][name] for name in names if name in metrics[modality]},
        }
        for channel, modality in enumerate(modalities)
    ]
