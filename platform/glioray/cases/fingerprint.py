"""What a case's images look like whatever their scale: numbers by which a case that differs from others is noticed.

Raw intensities mean nothing across scanners. Each number here stays as it is when an image is multiplied by a positive
number or another is added to it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from glioray.cases.load import brain_mask

Fingerprint = dict[str, float]
"""Number by name: "brain_ml"; "median:T1", "grain:T1" and "slope:T1" of a modality; "corr:T1,T2" of a pair; "dark:T1,T2"
and "bright:T1,T2" of an ordered pair; see `measure_fingerprint`. A modality that is constant in the brain has none, and
a case with hardly any brain has nothing."""

Ranges = dict[str, tuple[float, float]]
"""The least and the greatest of each number over training cases."""

MIN_CASES = 8
"""Fewer cases keep no ranges: the span of n values leaves out one further value of 2 in n + 1."""

_STEP_MM = 3.0
_EXTREME = 0.05

MARGIN = 1.25
"""A number is flagged where it lies further outside its range than this many widths of the range."""

_SWAP_RATIO = 1.3
_LEAST_WIDTH = 0.25
_ALIKE = 0.95
_MAX_SENTENCES = 3


def measure_fingerprint(
    images: NDArray[np.generic], modalities: Sequence[str], spacing_mm: Sequence[float]
) -> Fingerprint:
    """The fingerprint of a case, over a sample of its brain's voxels, some 3 mm apart.

    - brain_ml: volume that is not background;
    - median:A in [0, 1]: where the median lies between the 5th and the 95th percentile;
    - grain:A: mean difference of neighbours along X, over that of voxels two apart: near 1 for noise, .5 for a ramp;
    - slope:A in [0, 1]: multiple correlation of ranks with the place along X, Y and Z;
    - corr:A,B in [-1, 1]: correlation of ranks;
    - dark:A,B and bright:A,B in [0, 1]: mean rank of A where B is darkest (5 % of voxels), where it is brightest.

    Args:
        images: (M, X, Y, Z), raw or scaled, as read.
        modalities: of the images.
        spacing_mm: along X, Y, Z.
    """
    brain = brain_mask(images)
    x, y, z = (max(1, round(_STEP_MM / mm)) for mm in spacing_mm)
    found = {"brain_ml": float(np.count_nonzero(brain)) * math.prod(spacing_mm) / 1000}
    # Whole lines along X: their neighbours tell the grain.
    lines = brain[:, ::y, ::z]
    inside = lines[::x]
    if np.count_nonzero(inside) < 2 / _EXTREME:
        return {}
    places = np.argwhere(inside).astype(np.float64)
    basis, _ = np.linalg.qr(places - places.mean(axis=0))
    triples = lines[:-2] & lines[1:-1] & lines[2:]
    ranks: dict[str, NDArray[np.float64]] = {}
    for modality, image in zip(modalities, images, strict=True):
        part = image[:, ::y, ::z].astype(np.float32)
        values = part[::x][inside]
        low, middle, high = (float(v) for v in np.percentile(values, (5, 50, 95)))
        if high <= low or not triples.any():
            continue
        ranks[modality] = _mean_ranks(values) / len(values)
        centred = ranks[modality] - ranks[modality].mean()
        found[f"median:{modality}"] = (middle - low) / (high - low)
        near, far = (
            np.abs(part[step:] - part[:-step])[: len(triples)][triples].mean(dtype=np.float64)
            for step in (1, 2)
        )
        found[f"grain:{modality}"] = float(near / far) if far else 1.0
        found[f"slope:{modality}"] = float(np.linalg.norm(basis.T @ centred) / np.linalg.norm(centred))
    for one, other in itertools.combinations(ranks, 2):
        found[f"corr:{one},{other}"] = float(np.corrcoef(ranks[one], ranks[other])[0, 1])
    for other, values in ranks.items():
        dark, bright = np.quantile(values, (_EXTREME, 1 - _EXTREME))
        for one in ranks:
            if one != other:
                found[f"dark:{one},{other}"] = float(ranks[one][values <= dark].mean())
                found[f"bright:{one},{other}"] = float(ranks[one][values >= bright].mean())
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def _mean_ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share their mean rank."""
    # As scipy.stats.rankdata, whose module takes most of a second to import, in every process that reads cases.
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]


def find_ranges(cases: Sequence[Mapping[str, float]]) -> Ranges:
    """The ranges over training cases of the numbers that all of them have; {} for fewer than `MIN_CASES`."""
    if len(cases) < MIN_CASES:
        return {}
    names = [name for name in cases[0] if all(name in case for case in cases)]
    return {name: (min(c[name] for c in cases), max(c[name] for c in cases)) for name in names}


def join_ranges(parts: Sequence[Ranges]) -> Ranges:
    """The ranges over the training cases of several models; of numbers that all of them know."""
    return {
        name: (min(part[name][0] for part in parts), max(part[name][1] for part in parts))
        for name in parts[0]
        if all(name in part for part in parts)
    }


def describe_differences(
    found: Mapping[str, float], ranges: Ranges, modalities: Sequence[str], *, with_grain: bool = True
) -> list[str]:
    """How a case differs from the training cases, each in a sentence; at most `_MAX_SENTENCES`, the clearest first.

    Args:
        found: `measure_fingerprint` of the case.
        ranges: of the training cases; {} gives no sentence.
        modalities: of the case.
        with_grain: compare the grain too, which depends on the voxel size.
    """
    if not found:
        return []
    flags = [
        f"{_title(m)} has one value all over the brain"
        for m in modalities
        if f"median:{m}" in ranges and f"median:{m}" not in found
    ]
    excess = {
        name: _excess(name, found[name], bounds)
        for name, bounds in ranges.items()
        if name in found and (with_grain or not name.startswith("grain:"))
    }
    worst = sorted((name for name in excess if excess[name] > MARGIN), key=lambda name: -excess[name])
    # An image in two places makes others look swapped.
    if not any(name.startswith("corr:") and found[name] > _ALIKE for name in worst):
        flags += _describe_swap(found, ranges, [m for m in modalities if f"median:{m}" in found])
    flags += [_describe(name, found[name], ranges[name]) for name in worst]
    return flags[:_MAX_SENTENCES]


def _describe_swap(found: Mapping[str, float], ranges: Ranges, modalities: Sequence[str]) -> list[str]:
    as_sent = _distance(found, ranges, {})
    swapped = {
        (one, other): _distance(found, ranges, {one: other, other: one})
        for one, other in itertools.combinations(modalities, 2)
    }
    if not swapped:
        return []
    best = min(swapped, key=lambda pair: swapped[pair])
    if as_sent <= _SWAP_RATIO * swapped[best]:
        return []
    one, other = map(_title, best)
    return [
        f"{one} looks like the {other} of the training cases and {other} like their {one}: are the two swapped?"
    ]


def _describe(name: str, value: float, bounds: tuple[float, float]) -> str:
    kind, _, of = name.partition(":")
    one, _, other = (_title(m) for m in of.partition(","))
    low, high = bounds
    more = value > high
    if kind == "brain_ml":
        return f"{value:.0f} ml are not background; the training cases have {low:.0f} to {high:.0f} ml"
    if kind == "median":
        found = (
            f"most of the brain is {'bright' if more else 'dark'} in {one}, more than in the training cases"
        )
        return f"{found} (median at {value:.0%} of its range; theirs at {low:.0%} to {high:.0%}): is it inverted?"
    if kind == "grain":
        found = f"{one} is {'noisier' if more else 'smoother'} than in the training cases"
        return f"{found} (neighbours differ {value:.2f} times as much as voxels two apart; theirs {low:.2f} to {high:.2f})"
    if kind == "slope":
        found = f"{one} grows {'' if more else 'less '}brighter towards one side of the brain"
        return f"{found} (correlation {value:.2f} with the place; the training cases have {low:.2f} to {high:.2f})"
    if kind == "corr":
        found = f"{one} is {'brighter' if value > 0 else 'darker'} where {other} is brighter (correlation {value:.2f})"
        asked = (
            "was one sent twice?"
            if value > 0.95
            else "are two modalities swapped, or is one of another kind?"
        )
        return f"{found}, the training cases have {low:.2f} to {high:.2f}: {asked}"
    where = f"where {other} is {'darkest' if kind == 'dark' else 'brightest'}"
    found = f"{where}, {one} is brighter than {value:.0%} of the brain"
    return f"{found}, in the training cases than {low:.0%} to {high:.0%}: are two modalities swapped?"


def _title(modality: str) -> str:
    return modality.upper().replace("T1C", "T1c")


def _excess(name: str, value: float, bounds: tuple[float, float]) -> float:
    """How far a value lies outside its range, in widths of the range; 0 within.

    On a scale where each kind of number is unbounded, so that no range reaches the end of what is possible.
    """
    low, high, value = (_unbounded(name, v) for v in (*bounds, value))
    return max(low - value, value - high, 0.0) / max(high - low, _LEAST_WIDTH)


def _distance(found: Mapping[str, float], ranges: Ranges, names: Mapping[str, str]) -> float:
    """Root mean square distance from the middles of the ranges, in half widths, with modalities taken for others.

    Over the numbers of pairs, which tell modalities apart.

    Args:
        found: of the case.
        ranges: of the training cases.
        names: modality -> whose images stand for it.
    """
    total = []
    for name, bounds in ranges.items():
        kind, _, of = name.partition(":")
        if "," not in of:
            continue
        one, other = (names.get(m, m) for m in of.split(","))
        value = found.get(
            f"{kind}:{one},{other}", found.get(f"{kind}:{other},{one}") if kind == "corr" else None
        )
        if value is None:
            continue
        low, high, at = (_unbounded(name, v) for v in (*bounds, value))
        total.append(((at - (low + high) / 2) / (max(high - low, _LEAST_WIDTH) / 2)) ** 2)
    return math.sqrt(sum(total) / len(total)) if total else 0.0


def _unbounded(name: str, value: float) -> float:
    kind = name.partition(":")[0]
    if kind == "brain_ml":
        return math.log(max(value, 1e-4))
    if kind in ("corr", "slope"):
        return math.atanh(min(max(value, -0.9999), 0.9999))
    share = min(max(2 * value - 1 if kind == "grain" else value, 0.001), 0.999)
    return math.log(share / (1 - share))
