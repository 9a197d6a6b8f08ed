"""Slices, rather than patients, dealt to training and validation over all ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from glioray.config import SampleConfig
from glioray.engine.collectives import gather
from glioray.slices.splits import deal_slices
from glioray.slices.store import SliceStore

INFLATED = (
    "sample.slice_split deals slices, not patients: slices of one tumour are on both sides, which inflates this run's "
    "scores; expect clearly lower ones on new patients"
)


def split_store(store: SliceStore, config: SampleConfig, seed: int) -> NDArray[np.bool_]:
    """Return which of the store's slices are for training, validation and test: (3, len(store)).

    The slices of all ranks are dealt together, so that a slice's part does not depend on its node.
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
