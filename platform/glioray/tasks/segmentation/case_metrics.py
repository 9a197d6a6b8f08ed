"""Judging a model on whole cases."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glioray.cases.labels import REGION_LABELS
from glioray.cases.load import Case, brain_mask
from glioray.config import REGIONS
from glioray.errors import CaseError
from glioray.metrics.lesionwise import lesionwise_scores
from glioray.metrics.surface import surface_metrics
from glioray.reports.intervals import bootstrap_interval
from glioray.tasks.segmentation.metrics import confusion, overlap_metrics, reported_regions
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.segmentation.slicewise import SliceSums, slice_sums

CaseFigures = dict[str, dict[str, float]]
"""Region -> dice, sensitivity, specificity, precision, iou, hd95_mm, surface_dice, lesion_dice,
lesion_hd95_mm, volume_ml, true_volume_ml, volume_error_ml."""


def evaluate_case(predictor: Predictor, case: Case) -> tuple[CaseFigures, SliceSums]:
    """What `case_figures` and `case_slice_sums` say of the model's prediction.

    Raises:
        CaseError: the case has no mask.
    """
    _mask_of(case)  # before the work of predicting
    prediction = predictor.predict(case)
    return case_figures(case, prediction), case_slice_sums(case, prediction)


def case_figures(case: Case, prediction: NDArray[np.uint8]) -> CaseFigures:
    """A case's figures by region; those of empty regions are defined where each is computed.

    Of a mask that tells the whole tumour alone, only that is judged.

    Args:
        case: with a mask.
        prediction: (X, Y, Z) internal labels.

    Raises:
        CaseError: the case has no mask.
    """
    mask = _mask_of(case)
    table = confusion(mask, prediction)
    voxel_ml = float(np.prod(case.spacing_mm)) / 1000
    figures = {}
    for name, labels in reported_regions([table], _known(case)).items():
        truth, found = np.isin(mask, labels), np.isin(prediction, labels)
        lesions = lesionwise_scores(truth, found, case.spacing_mm)
        volume_ml, true_volume_ml = found.sum() * voxel_ml, truth.sum() * voxel_ml
        figures[name] = {
            **overlap_metrics(table, labels),
            **surface_metrics(truth, found, case.spacing_mm),
            "lesion_dice": lesions.dice,
            "lesion_hd95_mm": lesions.hd95_mm,
            "volume_ml": float(volume_ml),
            "true_volume_ml": float(true_volume_ml),
            "volume_error_ml": float(volume_ml - true_volume_ml),
        }
    return figures


def case_slice_sums(case: Case, prediction: NDArray[np.uint8]) -> SliceSums:
    """The sums over the case's axial slices through the brain, for `slicewise_table`.

    Of a mask that tells the whole tumour alone, those of background and "wt".

    Raises:
        CaseError: the case has no mask.
    """
    mask = _mask_of(case)
    through_brain = brain_mask(case.images).any(axis=(0, 1))
    if set(REGIONS) <= set(_known(case)):
        return slice_sums(mask.T[through_brain], prediction.T[through_brain])
    truth, found = (np.isin(m, REGION_LABELS["wt"]).astype(np.uint8) for m in (mask, prediction))
    background, whole = list(slice_sums(truth.T[through_brain], found.T[through_brain]).values())[:2]
    return {"background": background, "wt": whole}


def _known(case: Case) -> tuple[str, ...]:
    """What of WT, TC and ET the case's mask tells."""
    return REGIONS if case.convention is None else case.convention.regions


def _mask_of(case: Case) -> NDArray[np.uint8]:
    if case.mask is None:
        raise CaseError(case.case_id, "", "it has no mask to judge by", "add the mask or leave the case out")
    return case.mask


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


def figure_intervals(
    cases: Mapping[str, CaseFigures], patients: Mapping[str, str]
) -> dict[str, dict[str, tuple[float, float]]]:
    """Region -> figure -> (low, high), the bootstrap 95 % interval of its mean over patients.

    A region that fewer than two patients report has none, and is left out.

    Args:
        cases: each case's figures.
        patients: whose case each is.
    """
    intervals = {}
    for name, figures in mean_figures(cases).items():
        reporting = [case_id for case_id in cases if name in cases[case_id]]
        owners = [patients[case_id] for case_id in reporting]
        if len(set(owners)) > 1:
            intervals[name] = {
                figure: bootstrap_interval([cases[case_id][name][figure] for case_id in reporting], owners)
                for figure in figures
            }
    return intervals


def figures_csv(cases: Mapping[str, CaseFigures], kind: str = "region") -> str:
    """A line a case and region, or what else the figures are of."""
    rows: Sequence[dict[str, Any]] = [
        {"case": case_id, kind: name, **figures}
        for case_id, regions in sorted(cases.items())
        for name, figures in regions.items()
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def mean_region_dice(cases: Mapping[str, Mapping[str, float]]) -> float:
    """The mean over cases of the mean Dice of WT, TC and ET, or of those that the case's mask tells.

    Args:
        cases: each case's Dice by region.
    """
    means = [np.mean([dice[name] for name in REGIONS if name in dice]) for dice in cases.values()]
    return float(np.mean(means))
