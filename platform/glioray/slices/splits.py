"""Splits of slices into training, validation and test, regardless of patients.

Many studies on 2-D slices split their data so; this is for reproducing them. Slices of one patient in several
parts inflate scores: `cases.splits` keeps patients whole.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from glioray.config import SampleConfig

Flags = NDArray[np.bool_]


def split_slices(
    num_slices: int, shares: tuple[float, float, float], seed: int
) -> tuple[Flags, Flags, Flags]:
    """(train, val, test) flags, each (num_slices,), by a seeded permutation.

    Every slice is in exactly one part.

    Args:
        num_slices: slices in all.
        shares: the fraction of each part; sizes are exact to one slice.
        seed: of the permutation.
    """
    order = np.random.default_rng(seed).permutation(num_slices)
    first, second = (round(share * num_slices) for share in (shares[0], shares[0] + shares[1]))
    parts = np.zeros((3, num_slices), bool)
    for part, places in zip(parts, (order[:first], order[first:second], order[second:]), strict=True):
        part[places] = True
    return parts[0], parts[1], parts[2]


def deal_slices(tumour_px: NDArray[np.int64], config: SampleConfig, seed: int) -> tuple[Flags, Flags, Flags]:
    """(train, val, test) flags of all slices of a data set, each (num_slices,).

    Slices with tumour and slices without are split separately; slices that `usable_slices` excludes are in no
    part.

    Args:
        tumour_px: (num_slices,), the number of tumour pixels in each slice.
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
    """Indices of slices with enough tumour, and of the slices without any that are kept.

    The latter are evenly spaced; `config.empty_share` is their fraction.
    """
    empty = np.flatnonzero(tumour_px == 0)
    places = np.linspace(0, len(empty) - 1, round(len(empty) * config.empty_share)).astype(int)
    return np.flatnonzero(tumour_px >= max(config.min_tumour_px, 1)), empty[np.unique(places)]
