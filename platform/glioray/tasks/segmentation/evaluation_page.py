"""An evaluation as a page to read: Markdown tables, patient-level and slice-level side by side."""

from __future__ import annotations

from collections.abc import Mapping

from glioray.metrics.panoptic import COUNTS
from glioray.reports.case_metrics import (
    CaseMetrics,
    failed_lines,
    interval_caveat,
    metric_rows,
)
from glioray.reports.tables import Table
from glioray.tasks.segmentation.slicewise import SLICE_METRICS, SliceTable

_COLUMNS = {
    "dice": ("Dice (F1)", 3),
    "iou": ("IoU", 3),
    "sensitivity": ("sensitivity (recall)", 3),
    "specificity": ("specificity", 4),
    "precision": ("precision", 3),
    "hd95_mm": ("HD95, mm", 1),
    "surface_dice": ("surface Dice, 1 mm", 3),
    "volume_error_ml": ("volume error, ml", 1),
    "lesion_dice": ("lesion-wise Dice", 3),
    "lesion_hd95_mm": ("lesion-wise HD95, mm", 1),
}
_COLUMNS_2026 = {
    "brats2026_dice": ("Dice", 3),
    "brats2026_nsd": ("NSD", 3),
    "brats2026_hd95_mm": ("HD95, mm", 1),
    "brats2026_lesion_dice": ("Dice of matched lesions", 3),
    "brats2026_lesion_nsd": ("NSD of matched lesions", 3),
    "brats2026_lesion_hd95_mm": ("HD95 of matched lesions, mm", 1),
}
_SLICE_COLUMNS = (
    "class",
    "slices with it, true or predicted",
    "precision",
    "recall",
    "specificity",
    "IoU",
    "F1 (Dice)",
)


def evaluation_markdown(
    cases: Mapping[str, CaseMetrics],
    patients: Mapping[str, str],
    slicewise: SliceTable,
    *,
    title: str,
    failed: Mapping[str, str] | None = None,
    overlays: str = "",
) -> str:
    """The page: by region the mean over cases with its 95 % interval, a figure, then the slice-level table.

    Args:
        cases: each case's metrics by region.
        patients: patient id by case id.
        slicewise: the slice-level table of the same predictions.
        title: of the page.
        failed: cases that could not be evaluated -> reason.
        overlays: path of the figure of the best, the median and the worst case, relative to the page.
    """
    num_patients = len({patients[case_id] for case_id in cases})
    by_region = metric_rows(cases, patients, {name: decimals for name, (_, decimals) in _COLUMNS.items()})
    rows = [[region.upper(), *cells] for region, cells in by_region.items()]
    columns = ["region", "cases", *(head for head, _ in _COLUMNS.values())]
    slices = [
        [
            "column average" if name == "mean" else name if name == "background" else name.upper(),
            f"{100 * metrics['share_with_class']:.1f} %",
            *(f"{metrics[metric]:.3f}" for metric in SLICE_METRICS),
        ]
        for name, metrics in slicewise.items()
    ]
    return "\n".join(
        [
            f"# {title}",
            "",
            "## By patient",
            "",
            f"Means over {len(cases)} cases of {num_patients} patients, whole volumes, with 95 % intervals by "
            "resampling patients." + interval_caveat(num_patients),
            *failed_lines(failed or {}),
            "",
            *Table(columns, rows).to_markdown(align_right=True).splitlines(),
            "",
            "The volume error is predicted minus true. Lesion-wise metrics follow BraTS 2023: lesions of 50 mm³ and "
            "below are ignored, missed lesions and false alarms score Dice 0 and HD95 374 mm.",
            "",
            *_picture_lines(overlays),
            *_lines_2026(cases, patients),
            "## By slice",
            "",
            "Slice-level metrics inflate scores: most slices hold no tumour, a class that is rightly left out of a "
            "slice scores 1, and background counts as a class. They are here for comparison with studies that report "
            "them, and do not replace the table above.",
            "",
            *Table(_SLICE_COLUMNS, slices).to_markdown(align_right=True).splitlines(),
            "",
        ]
    )


def _lines_2026(cases: Mapping[str, CaseMetrics], patients: Mapping[str, str]) -> list[str]:
    """The section of BraTS 2026; none where the cases were not evaluated by its rule."""
    if not any(name in metrics for case in cases.values() for metrics in case.values() for name in COUNTS):
        return []
    by_region = metric_rows(
        cases, patients, {name: decimals for name, (_, decimals) in _COLUMNS_2026.items()}
    )
    rows = [
        [
            region.upper(),
            str(sum("brats2026_dice" in case.get(region, {}) for case in cases.values())),
            *cells[1:],
            *(
                f"{sum(case[region][name] for case in cases.values() if region in case):.0f}"
                for name in COUNTS
            ),
        ]
        for region, cells in by_region.items()
    ]
    columns = ["region", "cases", *(head for head, _ in _COLUMNS_2026.values()), "found", "false", "missed"]
    return [
        "## By the rule of BraTS 2026",
        "",
        "Lesions are matched one to one by Dice, without dilation. A region that a case rightly lacks is left out of the "
        "means; one that is missed or false scores 0 and 373 mm. The last three columns count lesions over all cases.",
        "",
        *Table(columns, rows).to_markdown(align_right=True).splitlines(),
        "",
    ]


def _picture_lines(overlays: str) -> list[str]:
    if not overlays:
        return []
    return [
        "## Best, median and worst case",
        "",
        "By mean Dice over regions: the axial slice with the most tumour.",
        "",
        f"![best, median and worst case]({overlays})",
        "",
    ]
