"""Slices, rather than patients, dealt to training and validation over all ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from glioray.config import SampleConfig
from glioray.engine.collectives import gather
from glioray.slices.splits import deal_slices
from glioray.slices.store import SliceStore

FLATTERS = (
    "sample.slice_split deals slices and not patients: slices of the same tumour lie on both sides, so that the "
    "figures of this run flatter; on patients it has not seen they typically come out well below"
)


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
