"""An evaluation as a page to read: Markdown tables, patient-level and slice-level side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from glioray.reports.intervals import FEW_PATIENTS
from glioray.tasks.segmentation.case_metrics import CaseFigures, figure_intervals, mean_figures
from glioray.tasks.segmentation.slicewise import SLICE_FIGURES, SliceTable

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


def evaluation_markdown(
    cases: Mapping[str, CaseFigures],
    patients: Mapping[str, str],
    slicewise: SliceTable,
    *,
    title: str,
    failed: Mapping[str, str] | None = None,
) -> str:
    """The page: by region the mean over cases with its 95 % interval, then the slice-level table.

    Args:
        cases: each case's figures by region.
        patients: whose case each is.
        slicewise: the slice-level table of the same predictions.
        title: of the page.
        failed: cases that could not be judged -> why.
    """
    means, intervals = mean_figures(cases), figure_intervals(cases, patients)
    num_patients = len({patients[case_id] for case_id in cases})
    rows = []
    for region, figures in means.items():
        num_cases = sum(region in case for case in cases.values())
        cells = [
            figure_cell(figures[name], intervals.get(region, {}).get(name), digits)
            for name, (_, digits) in _COLUMNS.items()
        ]
        rows.append([region.upper(), str(num_cases), *cells])
    slices = [
        [
            "column average" if name == "mean" else name if name == "background" else name.upper(),
            f"{100 * figures['share_with_class']:.1f} %",
            *(f"{figures[figure]:.3f}" for figure in SLICE_FIGURES),
        ]
        for name, figures in slicewise.items()
    ]
    return "\n".join(
        [
            f"# {title}",
            "",
            "## By patient",
            "",
            f"Means over {len(cases)} cases of {num_patients} patients, whole volumes, with 95 % intervals by "
            "resampling patients." + interval_caveat(num_patients),
            *(
                f"Not among them: {case_id} ({' '.join(reason.split())})."
                for case_id, reason in (failed or {}).items()
            ),
            "",
            *table_lines(["region", "cases", *(head for head, _ in _COLUMNS.values())], rows),
            "",
            "The volume error is predicted minus true. Lesion-wise figures follow BraTS 2023: lesions of 50 mm³ and "
            "below are ignored, missed lesions and false alarms score Dice 0 and HD95 374 mm.",
            "",
            "## By slice",
            "",
            "Slice-level figures flatter: most slices hold no tumour, a class that is rightly left out of a slice "
            "scores 1, and background counts as a class; they are here for comparison with studies that report them, "
            "and are no substitute for the table above.",
            "",
            *table_lines(
                [
                    "class",
                    "slices with it, true or predicted",
                    "precision",
                    "recall",
                    "specificity",
                    "IoU",
                    "F1 (Dice)",
                ],
                slices,
            ),
            "",
        ]
    )


def interval_caveat(num_patients: int) -> str:
    """What is to be said of intervals over so many patients; nothing where there are enough."""
    if num_patients >= FEW_PATIENTS:
        return ""
    if num_patients < 2:
        return " One patient says nothing of the spread, so that there are none."
    return " With so few patients the intervals are too narrow; read them as a hint."


def figure_cell(mean: float, interval: tuple[float, float] | None, digits: int) -> str:
    """A mean with its interval, where there is one."""
    text = f"{mean:.{digits}f}"
    return text if interval is None else f"{text} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table: the first column to the left, the others, figures, to the right."""
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
