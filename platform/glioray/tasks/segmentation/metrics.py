"""Dice by tumour region, from tables of counts over the internal labels (see `metrics.overlap`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from glioray.cases.labels import LABELS, REGION_LABELS
from glioray.config import REGIONS
from glioray.metrics import overlap
from glioray.metrics.overlap import Counts, overlap_metrics


def confusion(truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> Counts:
    """Count voxels by true label (rows) and predicted label (columns) of two masks of equal shape: (5, 5)."""
    return overlap.confusion(truth, prediction, len(LABELS))


def reported_regions(
    tables: Iterable[Counts], known: Collection[str] = REGIONS
) -> dict[str, tuple[int, ...]]:
    """List the regions to report for these cases, with their labels: WT, TC, ET and the single labels.

    The resection cavity is reported only if a truth or a prediction contains it.

    Args:
        tables: of the cases.
        known: what of WT, TC and ET their masks tell (`LabelConvention.regions`). Of masks that do not tell all
            of them nothing else is reported: what such a mask leaves out would score as rightly empty.
    """
    if not set(REGIONS) <= set(known):
        return {name: labels for name, labels in REGION_LABELS.items() if name in known}
    regions = {**REGION_LABELS, "ncr": (1,), "ed": (2,)}
    if any(table[4].sum() + table[:, 4].sum() for table in tables):
        regions["rc"] = (4,)
    return regions


def dice_by_region(
    tables: Sequence[Counts], known: Sequence[Collection[str]] | None = None
) -> list[dict[str, float]]:
    """Each case's Dice by region, of the regions that its mask distinguishes.

    Args:
        tables: of the cases.
        known: for each case which of WT, TC and ET its mask distinguishes; everything by default.
    """
    pairs = list(zip(tables, known or [REGIONS] * len(tables), strict=True))
    telling_all = [table for table, regions in pairs if set(REGIONS) <= set(regions)]
    return [
        {
            name: overlap_metrics(table, labels)["dice"]
            for name, labels in reported_regions(telling_all, regions).items()
        }
        for table, regions in pairs
    ]


def mean_dice(tables: Sequence[Counts], known: Sequence[Collection[str]] | None = None) -> dict[str, float]:
    """Compute patient-level Dice: `dice_wt`, `dice_tc`, ... as means over cases, `dice_mean` over WT, TC and ET.

    Args:
        tables: of the cases.
        known: as for `dice_by_region`. A mean is over the cases that know the region; a region that none of
            them knows is left out, of `dice_mean` too.
    """
    cases = dice_by_region(tables, known)
    names = dict.fromkeys(name for case in cases for name in case)
    means = {name: float(np.mean([case[name] for case in cases if name in case])) for name in names}
    overall = float(np.mean([means[name] for name in REGIONS if name in means]))
    return {**{f"dice_{name}": mean for name, mean in means.items()}, "dice_mean": overall}
