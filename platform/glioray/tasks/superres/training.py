"""One rank's part of a super-resolution run: its learner, its batches, its panel and its figures."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from glioray.cases.manifest import CaseEntry
from glioray.engine.collectives import Ranks, gather
from glioray.engine.evaluation import describe_training, seen_patients
from glioray.engine.feed import load_slices, median_spacing
from glioray.engine.run import Fill, RunPlan
from glioray.engine.task import History, Prepared
from glioray.errors import DataError, ModelError
from glioray.metrics.image import psnr
from glioray.slices.preprocess import SliceStack
from glioray.tasks import open_labelling
from glioray.tasks.superres.case_metrics import check_segmenter, dice_by_use, use_summary
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.features import build_perceptual, described, judge_extractor, loss_extractor
from glioray.tasks.superres.learner import GanLearner, UseJudge
from glioray.tasks.superres.lpips import Lpips
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.package import SuperResSpec, read_superres
from glioray.tasks.superres.panel import PanelRow, pick_panel
from glioray.tasks.superres.panel_judge import PanelJudge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

_MAX_PANEL_CASES = 16
_NUM_PICTURES = 5


def prepare_gan(
    plan: RunPlan, ranks: Ranks, fill: Fill, device: torch.device, make: type[GanLearner] = GanLearner
) -> Prepared:
    """Build this rank's learner and batches; see `engine.task.Task.prepare`.

    Raises:
        UsageError: an extractor cannot be found.
        DataError: nothing to train on, or too little to score collapse by.
        ModelError: the model to start from, or the segmenter, cannot be used.
    """
    config: GanConfig = plan.config
    train, val = run_cases(plan)
    judged = panel_cases(val) if ranks.is_first else []
    used = val[ranks.rank :: ranks.world_size] if config.use.segmenter else []
    wanted = list({entry.case_id: entry for entry in [*judged, *used]}.values())
    feed, stacks, left_out = load_slices(plan, ranks, fill, device, train, wanted)
    by_case = {case[0].case_id: case for case in stacks}
    judged, used = ([entry for entry in part if entry.case_id in by_case] for part in (judged, used))
    extractor = loss_extractor(config, feed.store.stacks, plan.tracking_uri)
    perceptual = None
    extractors = {}
    if extractor is not None:
        perceptual = build_perceptual(extractor, config).to(device)
        extractors["loss"] = described(extractor)
    judge = None
    if ranks.is_first:
        judging = judge_extractor(config)
        lpips = None if judging is None else Lpips(judging).to(device)
        if judging is not None:
            extractors["judge"] = described(judging)
        patients = {entry.case_id: entry.patient_id for entry in val}
        panel = pick_panel([by_case[entry.case_id] for entry in judged], patients, config)
        judge = PanelJudge(panel, config, lpips)
        _log.info(
            "judged on %d images of %d patients; loss by %s, judged by %s", len(panel), len(set(panel.patients)),
            extractors.get("loss", "no extractor"), extractors.get("judge", "HFEN, as there is no extractor"),
        )  # fmt: skip
    source, trained_on = None, describe_training(train)
    patients_seen = set[str]()
    if config.pretrain.source is not None:
        source, known = _source(config, plan.tracking_uri)
        patients_seen = seen_patients(known, plan.manifest.select("val"))
        for name, before in (("train_patients", known.train_patients), ("train_images", known.train_images)):
            trained_on[name] = tuple(sorted({*trained_on[name], *before}))
    if patients_seen:
        _log.warning(
            "pretrain.source was trained on %d of the validation patients: what this run's figures say of them "
            "flatters; begin with a model of the same --fold", len(patients_seen),
        )  # fmt: skip
    spec = SuperResSpec(
        config=config,
        spacing_mm=median_spacing(train),
        manifest_hash=plan.manifest.hash,
        **trained_on,
        extractors=gather(extractors)[0],
    )
    judge_use = None
    if config.use.segmenter is not None:
        mine = [(by_case[entry.case_id], entry.labelled_regions) for entry in used]
        judge_use = _use_judge(config.use.segmenter, plan.tracking_uri, mine, spec, device)
    learner = make(
        config,
        spec,
        judge,
        ranks,
        device,
        perceptual=perceptual,
        source=source,
        judge_use=judge_use,
        agree=plan.agree,
    )

    # matplotlib is imported where something is drawn: half a second of each process, most of which draw nothing.
    def draw(history: History) -> dict[str, Figure]:
        from glioray.tasks.superres.figures import gan_curves

        return {"gan_curves.png": gan_curves(history)}

    def draw_panels() -> dict[str, Figure]:
        assert judge is not None, "the first rank judges"
        from glioray.tasks.superres.figures import panel_figure

        return {"panels": panel_figure(panel_rows(judge))}

    return Prepared(learner, feed, draw, draw_panels, left_out)


def run_cases(plan: RunPlan) -> tuple[list[CaseEntry], list[CaseEntry]]:
    """The training cases, and the validation cases of the panel, or all of them where a segmenter uses them.

    Raises:
        DataError: there is no validation case.
    """
    val = plan.manifest.select("val")
    panel = panel_cases(val)
    return plan.manifest.select("train"), val if plan.config.use.segmenter else panel


def panel_cases(val: Sequence[CaseEntry]) -> list[CaseEntry]:
    """Choose the validation cases for the panel: all, or an even selection of many.

    Raises:
        DataError: there are none.
    """
    if not val:
        raise DataError(
            "collapse is scored on validation cases but the split has none; choose another --fold"
        )
    step = -(-len(val) // _MAX_PANEL_CASES)
    return list(val[::step])


def panel_rows(judge: PanelJudge) -> list[PanelRow]:
    """Choose the panel images to draw, the same each time, spread over patients and modalities."""
    num, channels = judge.panel.hr.shape[:2]
    # An odd step, so that the images are not all of one modality.
    step = max(1, (num // _NUM_PICTURES) | 1)
    rows = []
    for number in range(0, num, step)[:_NUM_PICTURES]:
        channel = number % channels
        part = [
            images[number, channel].float() for images in (judge.lr, judge.bicubic, judge.sr, judge.panel.hr)
        ]
        # RAS+ indices grow to the front, top and right; figures start at the top, with the patient's right first.
        lr, bicubic, sr, hr = (image.flip(0, 1).numpy() for image in part)
        rows.append(PanelRow(judge.panel.titles[number], lr, bicubic, sr, hr, _row_figures(*part[1:])))
    return rows


def _row_figures(bicubic: Tensor, sr: Tensor, hr: Tensor) -> dict[str, float]:
    mask = (hr > 0)[None]
    return {
        f"{prefix}psnr": float(psnr(torch.nan_to_num(image)[None].clamp(0, 1), hr[None], mask))
        for prefix, image in (("", sr), ("bicubic_", bicubic))
    }


def _source(config: GanConfig, tracking_uri: str) -> tuple[dict[str, Tensor], SuperResSpec]:
    """Load the weights to start from, and the spec of their model."""
    from glioray.engine.on_mlflow.registry import fetch_package

    uri = config.pretrain.source
    assert uri is not None
    with tempfile.TemporaryDirectory() as folder:
        spec, nets = read_superres(fetch_package(uri, Path(folder), tracking_uri=tracking_uri))
    if "psnr" not in nets:
        raise ModelError(f"'{uri}' has no PSNR generator to start from; name a model with a pixel stage")
    for name in ("generator", "degrade", "channels"):
        found, wanted = getattr(spec.config, name), getattr(config, name)
        if found != wanted:
            raise ModelError(
                f"'{uri}' has the {name} {found} but this run wants {wanted}; start from a model of the same kind"
            )
    weights = {name: tensor.clone() for name, tensor in nets["psnr"].state_dict().items()}
    return weights, spec


def _use_judge(
    uri: str,
    tracking_uri: str,
    mine: Sequence[tuple[tuple[SliceStack, ...], tuple[str, ...]]],
    spec: SuperResSpec,
    device: torch.device,
) -> UseJudge:
    with tempfile.TemporaryDirectory() as folder:
        package = open_labelling(uri, Path(folder), tracking_uri=tracking_uri)
        segmenter = package.task.load(package.folder, str(device))
    # Fail now, rather than at the end of the run, where the segmenter is used.
    check_segmenter(segmenter.spec, spec, own_stacks=True)

    def judge(resolver: SuperResolver) -> dict[str, float]:
        parts = gather([dice_by_use(resolver, segmenter, stacks, known=known) for stacks, known in mine])
        cases = [use_summary(dice) for part in parts for dice in part]
        return {
            name: float(np.mean([case[name] for case in cases]))
            for name in ("dice_sr", "dice_bicubic", "dice_hr")
            if cases
        }

    return judge
