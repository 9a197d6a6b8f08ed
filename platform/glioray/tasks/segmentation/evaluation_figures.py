"""The best, the median and the worst case of an evaluation, as a figure."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from glioray.cases.load import Case
from glioray.reports.case_metrics import CaseMetrics
from glioray.reports.images import grey_image
from glioray.tasks.segmentation.case_metrics import mean_region_dice
from glioray.tasks.segmentation.figures import overlay_figure

_SHOWN = "flair"


def sketch_case(case: Case, prediction: NDArray[np.uint8]) -> dict[str, Any]:
    """The axial slice with the most tumour, small enough to travel as JSON; predicted tumour where there is no true one.

    Args:
        case: with a mask.
        prediction: (X, Y, Z) internal labels.

    Returns: "png" (base64; its channels are the image, the truth and the prediction), "z" and "modality".
    """
    assert case.mask is not None
    # A poor model may find most tumour where there is no brain.
    labels = case.mask if case.mask.any() else prediction
    z = int((labels > 0).sum(axis=(0, 1)).argmax())
    modality = _SHOWN if _SHOWN in case.modalities else case.modalities[-1]
    grey = grey_image(case.images[case.modalities.index(modality), :, :, z].astype(np.float32))[..., 0]
    channels = np.stack([np.rint(255 * grey).astype(np.uint8), case.mask[:, :, z], prediction[:, :, z]], -1)
    buffer = io.BytesIO()
    # RAS+ indices grow to the front; figures start at the top.
    Image.fromarray(np.ascontiguousarray(np.rot90(channels).astype(np.uint8))).save(buffer, "png")
    return {"png": base64.b64encode(buffer.getvalue()).decode(), "z": z, "modality": modality}


def choose_cases(cases: Mapping[str, CaseMetrics]) -> dict[str, str]:
    """Case ids of "best", "median" and "worst" by the mean Dice over regions; of fewer cases, those there are."""
    dice = {case_id: _mean_dice(metrics) for case_id, metrics in cases.items()}
    ranked = sorted(dice, key=lambda case_id: (-dice[case_id], case_id))
    if len(ranked) < 3:
        return dict(zip(("best", "worst"), ranked, strict=False))
    return {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}


def extremes_figure(cases: Mapping[str, CaseMetrics], sketches: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw a column each for the best, the median and the worst case: image, truth and prediction.

    Args:
        cases: each case's metrics by region.
        sketches: of `sketch_case`, by case id.
    """
    chosen = choose_cases(cases)
    slices = [_decode(sketches[case_id]) for case_id in chosen.values()]
    height, width = (max(part.shape[axis] for part in slices) for axis in (0, 1))
    padded = np.stack([_pad(part, height, width) for part in slices])
    titles = [
        f"{rank}: {case_id}\nmean Dice {_mean_dice(cases[case_id]):.3f}, {sketches[case_id]['modality']}, "
        f"z={sketches[case_id]['z']}"
        for rank, case_id in chosen.items()
    ]
    return overlay_figure(padded[..., 0], padded[..., 1], padded[..., 2], titles)


def _mean_dice(metrics: CaseMetrics) -> float:
    return mean_region_dice({"": {region: values["dice"] for region, values in metrics.items()}})


def _decode(sketch: Mapping[str, Any]) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(sketch["png"]))))


def _pad(part: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The slice in the middle of a larger frame, as cases of one data set may differ in size."""
    rows, columns = height - part.shape[0], width - part.shape[1]
    return np.pad(part, ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0)))
