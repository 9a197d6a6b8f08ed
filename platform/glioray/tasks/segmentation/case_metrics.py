"""The metrics of whole cases."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from glioray.cases.labels import REGION_LABELS
from glioray.cases.load import Case, brain_mask
from glioray.config import REGIONS
from glioray.errors import CaseError
from glioray.metrics.lesionwise import lesionwise_scores
from glioray.metrics.overlap import overlap_metrics
from glioray.metrics.panoptic import brats2026_metrics
from glioray.metrics.surface import surface_metrics
from glioray.reports.case_metrics import CaseMetrics
from glioray.tasks.segmentation.metrics import confusion, reported_regions
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.segmentation.slicewise import SliceSums, slice_sums


def evaluate_case(
    predictor: Predictor, case: Case, *, rule: str = "brats2023", resample: bool = False
) -> tuple[CaseMetrics, SliceSums]:
    """`case_metrics` and `case_slice_sums` of the model's prediction.

    Raises:
        CaseError: the case has no mask.
    """
    _mask_of(case)  # before the work of predicting
    prediction = predictor.predict(case, resample=resample)
    return case_metrics(case, prediction, rule=rule), case_slice_sums(case, prediction)


def case_metrics(case: Case, prediction: NDArray[np.uint8], *, rule: str = "brats2023") -> CaseMetrics:
    """A case's metrics by region.

    They are dice, sensitivity, specificity, precision, iou, hd95_mm, surface_dice, lesion_dice, lesion_hd95_mm,
    volume_ml, true_volume_ml and volume_error_ml; those of empty regions are defined where each is computed. Of a
    mask that labels the whole tumour alone, only that is evaluated.

    Args:
        case: with a mask.
        prediction: (X, Y, Z) internal labels.
        rule: "brats2026" adds the metrics of `metrics.panoptic`; those of a region that is empty in both are absent.

    Raises:
        CaseError: the case has no mask.
    """
    mask = _mask_of(case)
    table = confusion(mask, prediction)
    metrics = {}
    for name, labels in reported_regions([table], _known(case)).items():
        truth, found = np.isin(mask, labels), np.isin(prediction, labels)
        lesions = lesionwise_scores(truth, found, case.spacing_mm)
        volume_ml, true_volume_ml = found.sum() * case.voxel_ml, truth.sum() * case.voxel_ml
        metrics[name] = {
            **overlap_metrics(table, labels),
            **surface_metrics(truth, found, case.spacing_mm),
            "lesion_dice": lesions.dice,
            "lesion_hd95_mm": lesions.hd95_mm,
            "volume_ml": float(volume_ml),
            "true_volume_ml": float(true_volume_ml),
            "volume_error_ml": float(volume_ml - true_volume_ml),
        }
        if rule == "brats2026":
            metrics[name] |= brats2026_metrics(truth, found, case.spacing_mm)
    return metrics


def case_slice_sums(case: Case, prediction: NDArray[np.uint8]) -> SliceSums:
    """The sums over the case's axial slices through the brain, for `slicewise_table`.

    Of a mask that does not define all regions, those of background and of the largest that it does, such as "wt".

    Raises:
        CaseError: the case has no mask.
    """
    mask = _mask_of(case)
    through_brain = brain_mask(case.images).any(axis=(0, 1))
    region = _known(case)[0]
    if set(REGIONS) <= set(_known(case)):
        return slice_sums(mask.T[through_brain], prediction.T[through_brain])
    truth, found = (np.isin(m, REGION_LABELS[region]).astype(np.uint8) for m in (mask, prediction))
    background, inside = list(slice_sums(truth.T[through_brain], found.T[through_brain]).values())[:2]
    return {"background": background, region: inside}


def _known(case: Case) -> tuple[str, ...]:
    """Which of WT, TC and ET the case's mask distinguishes."""
    return REGIONS if case.convention is None else case.convention.regions


def _mask_of(case: Case) -> NDArray[np.uint8]:
    if case.mask is None:
        raise CaseError(case.case_id, "", "it has no mask to judge by", "add the mask or leave the case out")
    return case.mask


def mean_region_dice(cases: Mapping[str, Mapping[str, float]]) -> float:
    """The mean over cases of the mean Dice of WT, TC and ET, or of those that the case's mask distinguishes.

    Args:
        cases: each case's Dice by region.
    """
    means = [np.mean([dice[name] for name in REGIONS if name in dice]) for dice in cases.values()]
    return float(np.mean(means))
