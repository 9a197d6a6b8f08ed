"""An evaluation of a super-resolution model as a page to read, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from glioray.tasks.segmentation.case_metrics import CaseFigures, figure_intervals, mean_figures
from glioray.tasks.segmentation.evaluation_page import figure_cell, interval_caveat, table_lines

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
    images: Mapping[str, CaseFigures],
    use: Mapping[str, CaseFigures],
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
        images: each case's figures by modality.
        use: each judged case's Dice by region; empty where no segmenter judged.
        patients: whose case each is.
        title: of the page.
        judge: the perceptual distance, or "hfen".
        segmenter: the model that judged by use.
        recovered: the share of what low resolution cost the segmenter that the model gave back.
        failed: cases that could not be judged -> why.
        pictures: case -> where its picture lies, seen from the page.
    """
    num_patients = len({patients[case_id] for case_id in images})
    lines = [
        f"# {title}",
        "",
        "## Images",
        "",
        f"Means over the slices of {len(images)} cases of {num_patients} patients that were degraded as in training, "
        "over the foreground, with 95 % intervals by resampling patients." + interval_caveat(num_patients),
        *(
            f"Not among them: {case_id} ({' '.join(reason.split())})."
            for case_id, reason in (failed or {}).items()
        ),
        "",
        *_rows(images, patients, _IMAGE_COLUMNS, "modality"),
        "",
        f"Quality is what is gained over bicubic interpolation: 1 - d / d of bicubic, d by {judge}; 0 is bicubic, 1 "
        "the real image. Detail is its energy against the real one's: 0 dB is as much.",
        "",
        "## By use",
        "",
    ]
    if use:
        told = (
            "" if recovered is None else f" Of what low resolution costs, {100 * recovered:.0f} % came back."
        )
        lines += [
            f"What the segmenter {segmenter} makes of whole volumes of {len(use)} cases, in 3-D.{told}",
            "",
            *_rows(use, patients, _USE_COLUMNS, "region"),
            "",
        ]
    else:
        lines += ["No segmenter judged: there is none, or no case has a mask.", ""]
    if pictures:
        lines += ["## Pictures", ""]
        lines += [line for case_id, path in pictures.items() for line in (f"![{case_id}]({path})", "")]
    return "\n".join(lines)


def _rows(
    cases: Mapping[str, CaseFigures],
    patients: Mapping[str, str],
    columns: Mapping[str, tuple[str, int]],
    kind: str,
) -> list[str]:
    means, intervals = mean_figures(cases), figure_intervals(cases, patients)
    there = {name: column for name, column in columns.items() if name in next(iter(means.values()))}
    rows = [
        [
            name,
            str(sum(name in case for case in cases.values())),
            *(
                figure_cell(figures[f], intervals.get(name, {}).get(f), digits)
                for f, (_, digits) in there.items()
            ),
        ]
        for name, figures in means.items()
    ]
    return table_lines([kind, "cases", *(head for head, _ in there.values())], rows)
