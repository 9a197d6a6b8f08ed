"""Judging a model on whole cases."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glioray.cases.load import Case
from glioray.config import REGIONS
from glioray.errors import CaseError
from glioray.inference.predictor import Predictor
from glioray.metrics.segmentation import confusion, overlap_metrics, reported_regions
from glioray.metrics.surface import hd95_mm

CaseFigures = dict[str, dict[str, float]]
"""Region -> dice, sensitivity, specificity, precision, hd95_mm, volume_ml, true_volume_ml."""


def evaluate_case(predictor: Predictor, case: Case) -> CaseFigures:
    """A case's figures by region; those of empty regions are defined by `overlap_metrics` and `hd95_mm`.

    Raises:
        CaseError: the case has no mask.
    """
    if case.mask is None:
        raise CaseError(case.case_id, "", "it has no mask to judge by", "add the mask or leave the case out")
    prediction = predictor.predict(case)
    table = confusion(case.mask, prediction)
    voxel_ml = float(np.prod(case.spacing_mm)) / 1000
    figures = {}
    for name, labels in reported_regions([table]).items():
        truth, found = np.isin(case.mask, labels), np.isin(prediction, labels)
        figures[name] = {
            **overlap_metrics(table, labels),
            "hd95_mm": hd95_mm(truth, found, case.spacing_mm),
            "volume_ml": float(found.sum() * voxel_ml),
            "true_volume_ml": float(truth.sum() * voxel_ml),
        }
    return figures


def mean_figures(cases: Mapping[str, CaseFigures]) -> CaseFigures:
    """Region -> mean over the cases that report it."""
    regions = {name: list(figures) for case in cases.values() for name, figures in case.items()}
    return {
        name: {
            figure: float(np.mean([case[name][figure] for case in cases.values() if name in case]))
            for figure in figures
        }
        for name, figures in regions.items()
    }


def figures_csv(cases: Mapping[str, CaseFigures]) -> str:
    """A line a case and region."""
    rows: Sequence[dict[str, Any]] = [
        {"case": case_id, "region": name, **figures}
        for case_id, regions in sorted(cases.items())
        for name, figures in regions.items()
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def mean_region_dice(cases: Mapping[str, Mapping[str, float]]) -> float:
    """The mean over cases of the mean Dice of WT, TC and ET; `cases` gives each case's Dice by region."""
    return float(np.mean([[dice[name] for name in REGIONS] for dice in cases.values()]))
