"""The objective of searches and promotions: Dice of the regions that cases have, less false alarms where they have none.

Under BraTS' rule a region that a case lacks scores 1 if nothing is predicted and 0 otherwise. With few cases, a network
that never predicts a region then gains by each case without it. Here such a case has no Dice. What is predicted there
is a term of its own, and costs as much as the same voxels would cost beside a region of the usual size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from glioray.cases.labels import REGION_LABELS
from glioray.config import REGIONS
from glioray.metrics.overlap import Counts, region_counts
from glioray.reports.case_metrics import CaseMetrics


class Sizes(NamedTuple):
    """A region of one case in ml: in the truth, as predicted, and what both have in common."""

    true_ml: float
    predicted_ml: float
    common_ml: float


def region_sizes(counts: Counts, voxel_ml: float, known: Collection[str] = REGIONS) -> dict[str, Sizes]:
    """Measure the regions of a case.

    Args:
        counts: of the case.
        voxel_ml: volume of a voxel.
        known: which of WT, TC and ET its mask distinguishes.
    """
    sizes = {}
    for name, labels in REGION_LABELS.items():
        if name in known:
            tp, fp, fn, _ = region_counts(counts, labels)
            sizes[name] = Sizes((tp + fn) * voxel_ml, (tp + fp) * voxel_ml, tp * voxel_ml)
    return sizes


def sizes_of_metrics(metrics: CaseMetrics) -> dict[str, Sizes]:
    """Measure each of WT, TC and ET that a case's metrics (`case_metrics`) have."""
    sizes = {}
    for name in REGIONS:
        if name in metrics:
            true_ml, predicted_ml = metrics[name]["true_volume_ml"], metrics[name]["volume_ml"]
            sizes[name] = Sizes(true_ml, predicted_ml, metrics[name]["dice"] * (true_ml + predicted_ml) / 2)
    return sizes


def objective(cases: Sequence[Mapping[str, Sizes]]) -> dict[str, float]:
    """Compute `objective`, from -1 to 1, and its terms: `objective` is `present_dice` less `false_alarms`.

    `present_dice` is the mean over regions of the mean Dice over the cases that have the region. `false_alarms` is the
    mean over regions of the mean over cases of f / (2 V + f), where f is the predicted volume in a case without the
    region, and 0 elsewhere. V is the region's mean volume in the cases that have it (the whole tumour's, if none has).
    A prediction that is perfect but for f false ml beside V true ones loses the same Dice.

    Args:
        cases: each case's sizes of those of WT, TC and ET that its mask distinguishes.

    Returns: empty if no mask distinguishes a region.
    """
    dice, alarms = [], []
    usual = {
        name: _mean([case[name].true_ml for case in cases if name in case and case[name].true_ml])
        for name in REGIONS
    }
    for name in REGIONS:
        found = [case[name] for case in cases if name in case]
        there = [sizes for sizes in found if sizes.true_ml > 0]
        if there:
            dice.append(_mean([2 * s.common_ml / (s.true_ml + s.predicted_ml) for s in there]))
        if found:
            room = 2 * (usual[name] or usual["wt"])
            false = [sizes.predicted_ml for sizes in found if not sizes.true_ml and sizes.predicted_ml]
            alarms.append(sum(ml / (room + ml) for ml in false) / len(found))
    if not alarms:
        return {}
    present, false_alarms = _mean(dice), _mean(alarms)
    return {"objective": present - false_alarms, "present_dice": present, "false_alarms": false_alarms}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
