"""The networks by whose features a super-resolution run learns, and is judged."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from glioray.engine.package import WEIGHTS_FILE
from glioray.errors import UsageError
from glioray.losses.perceptual import PerceptualLoss, default_layers
from glioray.slices.preprocess import SliceStack
from glioray.tasks import open_labelling
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.extractors import Extractor, resolve_extractor, unet_extractor

_log = logging.getLogger(__name__)

_NUM_SLICES = 64
"""Training slices used to estimate each modality's mean and standard deviation."""


def loss_extractor(
    config: GanConfig, stacks: Sequence[SliceStack], tracking_uri: str | None = None
) -> Extractor | None:
    """The features of the perceptual loss; None where the config has no such loss, or none is to be had.

    "unet" is the encoder of the segmentation model that `loss.extractor_weights` names, and under "auto" that of
    `use.segmenter`, where there is nothing better and it sees the same modalities together.

    Raises:
        UsageError: the one that is asked for cannot be had.
        ModelError: the segmentation model cannot be read.
    """
    loss = config.loss
    if loss.perceptual_weight == 0 or config.pretrain.share == 1:
        return None
    if loss.extractor == "unet":
        if loss.extractor_weights is None:
            raise UsageError(
                "loss.extractor is 'unet' without a model; name one by loss.extractor_weights, such as "
                "models:/glioray-unet@champion"
            )
        return _encoder(loss.extractor_weights, config, stacks, tracking_uri)
    spare = None
    if loss.extractor == "auto" and config.channels == "joint" and config.use.segmenter is not None:
        try:
            spare = _encoder(config.use.segmenter, config, stacks, tracking_uri)
        except UsageError as error:
            _log.info("the segmenter's encoder is no extractor for this run: %s", error)
    return resolve_extractor(loss.extractor, weights=loss.extractor_weights, unet=spare)


def _encoder(
    uri: str, config: GanConfig, stacks: Sequence[SliceStack], tracking_uri: str | None
) -> Extractor:
    with tempfile.TemporaryDirectory() as folder:
        package = open_labelling(uri, Path(folder), tracking_uri=tracking_uri)
        net = package.task.export(package.folder).net
        sha256 = hashlib.sha256((package.folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    seen, own = package.spec.config.preprocess, config.preprocess
    if (
        config.channels != "joint"
        or seen.modalities != own.modalities
        or seen.num_channels != len(own.modalities)
    ):
        raise UsageError(
            f"the U-Net '{uri}' sees {seen.num_channels} channels ({', '.join(seen.modalities)}) but this run makes "
            f"{', '.join(own.modalities)}, channels {config.channels}; give --set channels=joint and the same "
            "modalities, or take another extractor"
        )
    mean, std = _intensities(stacks)
    try:
        return unet_extractor(net, sha256, source=uri, mean=mean, std=std)
    except ValueError as error:
        raise UsageError(f"'{uri}' is no extractor: {error}; name a model of the network unet") from error


def _intensities(stacks: Sequence[SliceStack]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each modality inside the brain, over some slices: what z-scores are of one case's."""
    some = [stack.images[len(stack.images) // 2] for stack in stacks[:: max(1, len(stacks) // _NUM_SLICES)]]
    images = np.stack(some).astype(np.float32)
    inside = (images > 0).any(axis=1)
    values = [images[:, channel][inside] for channel in range(images.shape[1])]
    return tuple(float(v.mean()) for v in values), tuple(float(v.std()) for v in values)


def build_perceptual(extractor: Extractor, config: GanConfig) -> PerceptualLoss:
    """The loss of features that the config asks for.

    Raises:
        UsageError: layers that the extractor has not.
    """
    layers = config.loss.layers or default_layers(extractor.name)
    try:
        loss = config.loss
        return PerceptualLoss(
            extractor.features, layers, criterion=loss.perceptual_distance, crop=loss.perceptual_crop
        )
    except ValueError as error:
        raise UsageError(f"{error}; see --set loss.layers") from error


def judge_extractor(config: GanConfig) -> Extractor | None:
    """The network that LPIPS is measured with: under "auto" another network than the loss's where there is one.

    Raises:
        UsageError: the one that is asked for, or the weights that are named, cannot be had.
    """
    rules = config.collapse
    if rules.judge != "auto":
        return resolve_extractor(rules.judge, weights=rules.judge_weights)
    names = ("vgg16", "alexnet") if config.loss.extractor == "alexnet" else ("alexnet", "vgg16")
    for name in names:
        try:
            return resolve_extractor(name, weights=rules.judge_weights)
        except UsageError as error:
            # Weights that were asked for and cannot be had are a mistake, not a lack.
            if name == names[-1] and rules.judge_weights is not None:
                raise
            reason = error
    _log.warning("no LPIPS: %s; quality is measured by HFEN instead", reason)
    return None


def described(extractor: Extractor) -> str:
    """Its name and the beginning of its hash, as models and runs state it."""
    return f"{extractor.name} {extractor.sha256[:12]}"
