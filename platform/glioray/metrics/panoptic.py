"""The metrics by which BraTS 2026 is judged, computed by panoptica (an optional package)."""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

PENALTY_HD95_MM = 373.0
"""The distance of a region or lesion that is empty in either truth or prediction, in 2026."""

_OF_THE_REGION = {"brats2026_dice": "dsc", "brats2026_nsd": "nsd", "brats2026_hd95_mm": "hd95"}
_OF_LESIONS = {
    "brats2026_lesion_dice": "dsc",
    "brats2026_lesion_nsd": "nsd",
    "brats2026_lesion_hd95_mm": "hd95",
}
COUNTS = {"brats2026_found": "tp", "brats2026_false": "fp", "brats2026_missed": "fn"}
"""The metrics that are numbers of lesions; the values are panoptica's names."""


def brats2026_metrics(
    truth: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing_mm: Sequence[float]
) -> dict[str, float]:
    """The metrics of one region, (X, Y, Z), by the rules of BraTS 2026 for every collection.

    Lesions are components connected by faces, edges or corners, of any size and without dilation; true and predicted
    ones are matched one to one, for the largest sum of Dice, where they overlap at all.

    Returns: `brats2026_dice`, `_nsd` and `_hd95_mm` of the whole region; `_lesion_dice`, `_lesion_nsd` and
    `_lesion_hd95_mm`, means over the matched lesions; `_found`, `_false` and `_missed`, numbers of lesions. NSD is
    the share of each surface that is near the other, averaged over both: of lesions within the smallest voxel edge,
    of whole regions within half a voxel, so that they have to coincide. HD95 is over both directions
    together. A region that is empty in both has the numbers alone; where one is empty, or nothing is matched, Dice
    and NSD are 0 and distances are `PENALTY_HD95_MM`.

    Raises:
        ImportError: panoptica, or a package that it needs, is not installed.

    Reference: Kofler et al. 2023 (arXiv 2312.02608); the settings are those that BraTS 2026 publishes.
    """
    spacing = tuple(map(float, spacing_mm))
    with warnings.catch_warnings():
        # Of whole regions it warns of its own default.
        warnings.filterwarnings("ignore", message="The threshold is set to 0.5")
        result = _evaluator().evaluate(
            prediction.astype(np.uint8), truth.astype(np.uint8), voxelspacing=spacing
        )["ungrouped"]
    metrics = {name: float(getattr(result, key)) for name, key in COUNTS.items()}
    if not (truth.any() or prediction.any()):
        return metrics
    values = {name: getattr(result, f"global_bin_{key}") for name, key in _OF_THE_REGION.items()}
    values |= {name: getattr(result, f"sq_{key}") for name, key in _OF_LESIONS.items()}
    if math.isfinite(values["brats2026_hd95_mm"]):
        # panoptica 2.1 measures whole regions in voxels.
        box = ndimage.find_objects((truth | prediction).astype(np.uint8))[0]
        values["brats2026_hd95_mm"] = _load("panoptica").Metric.HD95(
            truth[box], prediction[box], voxelspacing=spacing
        )
    # Only distances can be infinite.
    return {k: PENALTY_HD95_MM if math.isinf(v) else float(v) for k, v in values.items()} | metrics


def find_panoptica() -> None:
    """Raises ImportError where panoptica, or a package that it needs, is not installed."""
    # Without plotly, panoptica itself fails with a NameError.
    for name in ("plotly", "cc3d", "panoptica"):
        _load(name)


def _load(name: str) -> Any:
    logger = logging.getLogger("panoptica")
    if not logger.handlers:
        # Or it would log to stdout by a handler of its own.
        logger.addHandler(logging.NullHandler())
        logger.setLevel(logging.ERROR)
    return importlib.import_module(name)


@cache
def _evaluator() -> Any:
    find_panoptica()
    panoptica = _load("panoptica")
    edges = _load("panoptica.utils.edge_case_handling")
    panoptica.disable_citation_reminder()
    metric, result = panoptica.Metric, edges.EdgeCaseResult
    worst = {metric.DSC: result.ZERO, metric.NSD: result.ZERO, metric.HD95: result.INF}
    handling = {
        kind: edges.MetricZeroTPEdgeCaseHandling(default_result=value, no_instances_result=result.NAN)
        for kind, value in worst.items()
    }
    return panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.SEMANTIC,
        instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
        instance_matcher=panoptica.MaxBipartiteMatching(matching_metric=metric.DSC, matching_threshold=1e-6),
        edge_case_handler=edges.EdgeCaseHandler(handling),
        instance_metrics=list(worst),
        global_metrics=list(worst),
    )
