"""An evaluation of a super-resolution model as a page to read, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from glioray.reports.case_metrics import (
    CaseMetrics,
    failed_lines,
    interval_caveat,
    metric_rows,
)
from glioray.reports.tables import Table

_IMAGE_COLUMNS = {
    "quality": ("quality", 3),
    "lpips": ("LPIPS", 3),
    "bicubic_lpips": ("of bicubic", 3),
    "hfen": ("HFEN", 3),
    "bicubic_hfen": ("of bicubic", 3),
    "psnr": ("PSNR, dB", 2),
    "gain_psnr": ("over bicubic, dB", 2),
    "ssim": ("SSIM", 3),
    "bicubic_ssim": ("of bicubic", 3),
    "nrmse": ("NRMSE", 3),
    "bicubic_nrmse": ("of bicubic", 3),
    "hf_db": ("detail, dB", 1),
    "bicubic_hf_db": ("of bicubic", 1),
}
_USE_COLUMNS = {
    "dice_sr": ("Dice on super-resolved", 3),
    "dice_bicubic": ("on bicubic", 3),
    "dice_hr": ("on real", 3),
    "gain": ("gain over bicubic", 3),
}


def superres_markdown(
    images: Mapping[str, CaseMetrics],
    use: Mapping[str, CaseMetrics],
    patients: Mapping[str, str],
    *,
    title: str,
    judge: str,
    segmenter: str | None = None,
    recovered: float | None = None,
    failed: Mapping[str, str] | None = None,
    pictures: Mapping[str, str] | None = None,
) -> str:
    """The page: images by modality, the segmenter's Dice by region, a picture a case.

    Args:
        images: each case's metrics by modality.
        use: each labelled case's Dice by region; empty without a segmenter.
        patients: patient id by case id.
        title: of the page.
        judge: the perceptual distance, or "hfen".
        segmenter: URI of the model that labelled the images.
        recovered: share of the segmenter's Dice lost by low resolution that the model recovered.
        failed: cases that could not be evaluated -> reason.
        pictures: case id -> path of its picture, relative to the page.
    """
    num_patients = len({patients[case_id] for case_id in images})
    lines = [
        f"# {title}",
        "",
        "## Images",
        "",
        f"Means over the slices of {len(images)} cases of {num_patients} patients that were degraded as in training, "
        "over the foreground, with 95 % intervals by resampling patients." + interval_caveat(num_patients),
        *failed_lines(failed or {}),
        "",
        *_rows(images, patients, _IMAGE_COLUMNS, "modality"),
        "",
        f"Quality is the gain over bicubic interpolation: 1 - d / d of bicubic, d by {judge}; 0 is bicubic, 1 the real "
        "image. Detail is the energy of fine detail relative to the real image: at 0 dB they are equal.",
        "",
        "## By use",
        "",
    ]
    if use:
        share = (
            ""
            if recovered is None
            else f" Of the Dice lost by low resolution, {100 * recovered:.0f} % was recovered."
        )
        lines += [
            f"Dice of the segmenter {segmenter} on whole volumes of {len(use)} cases, in 3-D.{share}",
            "",
            *_rows(use, patients, _USE_COLUMNS, "region"),
            "",
        ]
    else:
        lines += ["No segmenter labelled the images: none was given, or no case has a mask.", ""]
    if pictures:
        lines += ["## Pictures", ""]
        lines += [line for case_id, path in pictures.items() for line in (f"![{case_id}]({path})", "")]
    return "\n".join(lines)


def _rows(
    cases: Mapping[str, CaseMetrics],
    patients: Mapping[str, str],
    columns: Mapping[str, tuple[str, int]],
    kind: str,
) -> list[str]:
    present = {name: column for name, column in columns.items() if name in _first_row(cases)}
    rows = metric_rows(cases, patients, {name: decimals for name, (_, decimals) in present.items()})
    head = [kind, "cases", *(text for text, _ in present.values())]
    table = Table(head, [[row, *cells] for row, cells in rows.items()])
    return table.to_markdown(align_right=True).splitlines()


def _first_row(cases: Mapping[str, CaseMetrics]) -> Mapping[str, float]:
    return next(iter(next(iter(cases.values())).values()))
