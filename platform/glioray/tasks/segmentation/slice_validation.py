"""Validation on slices of patients whose other slices are trained on, to reproduce studies that did so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from glioray.engine.precision import autocast
from glioray.slices.store import SliceStore
from glioray.tasks.segmentation.postprocess import decode_labels
from glioray.tasks.segmentation.predictor import Predictor


@dataclass(frozen=True)
class HeldOutSlices:
    """This rank's share of the validation slices: `indices` into `store`."""

    store: SliceStore
    indices: NDArray[np.int64]


def predict_slices(
    predictor: Predictor, held_out: HeldOutSlices
) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Yield (index, truth, prediction) of each slice, both (H, W) internal labels.

    Purely 2-D, as in those studies: without mirrored copies, other planes or the rules for whole cases.
    """
    config = predictor.spec.config
    for low in range(0, len(held_out.indices), predictor.batch_size):
        indices = held_out.indices[low : low + predictor.batch_size]
        batch = held_out.store.draw(indices)
        with torch.inference_mode(), autocast(predictor.device, predictor.precision):
            images = batch.to(predictor.device).images.contiguous(memory_format=torch.channels_last)
            logits = predictor.net(images).float()
        probs = logits.softmax(1) if config.loss.target == "classes" else logits.sigmoid()
        labels = decode_labels(
            probs.movedim(1, 0).cpu().numpy(), config.loss.target, config.postprocess.thresholds
        )
        yield from zip(indices.tolist(), batch.masks.numpy(), labels, strict=True)
