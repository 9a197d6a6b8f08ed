"""Validation on slices of patients whose other slices are trained on, to repeat studies that did so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from glioray.config import SampleConfig
from glioray.inference.postprocess import decode_labels
from glioray.inference.predictor import Predictor, autocast
from glioray.slices.splits import deal_slices
from glioray.slices.store import SliceStore
from glioray.training.collectives import gather

FLATTERS = (
    "sample.slice_split deals slices and not patients: slices of the same tumour lie on both sides, so that the "
    "figures of this run flatter; on patients it has not seen they typically come out well below"
)


@dataclass(frozen=True)
class HeldOutSlices:
    """This rank's share of the slices that are validated on: `indices` into `store`."""

    store: SliceStore
    indices: NDArray[np.int64]


def split_store(store: SliceStore, config: SampleConfig, seed: int) -> NDArray[np.bool_]:
    """(3, len(store)) which of the store's slices are for training, for validation and for test.

    All ranks' slices are dealt together, so that a slice's part does not depend on where it lies.
    """
    ends = np.cumsum([len(stack.images) for stack in store.stacks])[:-1]
    names = [(stack.case_id, stack.plane) for stack in store.stacks]
    mine = dict(zip(names, np.split(store.tumour_px(), ends), strict=True))
    counts = {name: tumour_px for found in gather(mine) for name, tumour_px in found.items()}
    order = sorted(counts)
    flags = np.stack(deal_slices(np.concatenate([counts[name] for name in order]), config, seed))
    ends = np.cumsum([len(counts[name]) for name in order])[:-1]
    parts = dict(zip(order, np.split(flags, ends, axis=1), strict=True))
    return np.concatenate([parts[name] for name in names], axis=1)


def predict_slices(
    predictor: Predictor, held_out: HeldOutSlices
) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Each slice's (index, truth, prediction), both (H, W) internal labels.

    In 2-D alone, as those studies have it: without mirrored copies, other planes and the rules for whole cases.
    """
    config = predictor.spec.config
    for low in range(0, len(held_out.indices), predictor.batch_size):
        indices = held_out.indices[low : low + predictor.batch_size]
        batch = held_out.store.draw(indices)
        with torch.inference_mode(), autocast(predictor.device, config.train.precision):
            images = batch.to(predictor.device).images.contiguous(memory_format=torch.channels_last)
            logits = predictor.net(images).float()
        probs = logits.softmax(1) if config.loss.target == "classes" else logits.sigmoid()
        labels = decode_labels(
            probs.movedim(1, 0).cpu().numpy(), config.loss.target, config.postprocess.thresholds
        )
        yield from zip(indices.tolist(), batch.masks.numpy(), labels, strict=True)
