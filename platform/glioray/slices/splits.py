"""Slices dealt to training, validation and test, whoever's they are.

It is how many studies on 2-D slices split their data, kept to repeat them. Patients are what a model must not
have seen: see `cases.splits`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from glioray.config import SampleConfig

Flags = NDArray[np.bool_]


def split_slices(
    num_slices: int, shares: tuple[float, float, float], seed: int
) -> tuple[Flags, Flags, Flags]:
    """(train, val, test) flags, each (num_slices,), by a seeded permutation: every slice is in exactly one.

    Each part's size is its share, to one slice.
    """
    order = np.random.default_rng(seed).permutation(num_slices)
    first, second = (round(share * num_slices) for share in (shares[0], shares[0] + shares[1]))
    parts = np.zeros((3, num_slices), bool)
    for part, places in zip(parts, (order[:first], order[first:second], order[second:]), strict=True):
        part[places] = True
    return parts[0], parts[1], parts[2]


def deal_slices(tumour_px: NDArray[np.int64], config: SampleConfig, seed: int) -> tuple[Flags, Flags, Flags]:
    """(train, val, test) flags of a whole data set's slices by `config.slice_split`, each (num_slices,).

    Slices with tumour and those without, by `config.empty_share`, are dealt each among themselves; what
    `usable_slices` leaves out is in no part.

    Args:
        tumour_px: (num_slices,) pixels of tumour of each slice.
        config: with a `slice_split`.
        seed: of both permutations.
    """
    assert config.slice_split is not None
    parts = np.zeros((3, len(tumour_px)), bool)
    for places in usable_slices(tumour_px, config):
        parts[:, places] = split_slices(len(places), config.slice_split, seed)
    return parts[0], parts[1], parts[2]


def usable_slices(
    tumour_px: NDArray[np.int64], config: SampleConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the slices with enough tumour and of those without any that are kept, evenly spaced."""
    empty = np.flatnonzero(tumour_px == 0)
    places = np.linspace(0, len(empty) - 1, round(len(empty) * config.empty_share)).astype(int)
    return np.flatnonzero(tumour_px >= max(config.min_tumour_px, 1)), empty[np.unique(places)]
