"""The pictures of a data set and what they show, as matplotlib figures without pyplot's global state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from glioray.cases.labels import CONVENTIONS, LABELS
from glioray.cases.manifest import Manifest
from glioray.cases.statistics import PERCENTILES, ZSCORE_EDGES, CaseStatistics
from glioray.config import MODALITIES
from glioray.reports.axes import finish
from glioray.tasks.segmentation.figures import LABEL_COLOURS, cases_figure

MAX_NAMED = 40
"""Cases that still have their names below their bars."""

MAX_CURVES = 24
"""Cases that have a curve of their own."""

MAX_PICTURES = 24
"""Cases that are shown; thousands would make a page that no browser opens."""

_CASES_A_FIGURE = 6

CaptionedFigures = dict[str, tuple[Figure, str]]
"""File name -> a picture and what it shows."""


def choose_pictured(case_ids: Sequence[str]) -> list[str]:
    """The cases to be shown: all, or `MAX_PICTURES` of them, evenly chosen in their order."""
    return [case_ids[index] for index in evenly_chosen(len(case_ids), MAX_PICTURES)] if case_ids else []


def data_figures(manifest: Manifest, statistics: Iterable[CaseStatistics]) -> CaptionedFigures:
    """A data set's labels, areas, intensities and some of its cases.

    Args:
        manifest: of the data set.
        statistics: of its good cases, in any order; those of other cases are left out.
    """
    described = _agreed(manifest, statistics)
    labelled = [case for case in described if case.convention is not None]
    figures: CaptionedFigures = {}
    if labelled:
        figures |= _label_figures(labelled)
    if described:
        figures["intensities"] = _intensities(described)
    pictured = [case for case in described if case.picture is not None]
    for start in range(0, len(pictured), _CASES_A_FIGURE):
        part = pictured[start : start + _CASES_A_FIGURE]
        pictures = [case.picture for case in part if case.picture is not None]
        figures[f"cases_{start // _CASES_A_FIGURE + 1}"] = (
            cases_figure(
                [picture.images for picture in pictures],
                [picture.labels for picture in pictures],
                [f"{case.case_id}, slice {p.index}" for case, p in zip(part, pictures, strict=True)],
                [case.modalities for case in part],
            ),
            f"Cases {start + 1} to {start + len(part)} of {len(pictured)} shown"
            + (f", evenly chosen among {len(described)}" if len(pictured) < len(described) else "")
            + ": the axial slice with the most tumour (without labels: the most brain); the front is on top and "
            "the patient's right on the left.",
        )
    return figures


def label_volumes_figure(case_ids: Sequence[str], volumes_ml: Mapping[str, Sequence[float]]) -> Figure:
    """Each case's labels, stacked: by name, or by size where there are too many names to read.

    Args:
        case_ids: in the order of the values.
        volumes_ml: label ("ncr", ...) -> a volume a case.
    """
    figure, axes = _one_panel(10, 4)
    total = np.sum([np.asarray(values, float) for values in volumes_ml.values()], axis=0)
    named = len(case_ids) <= MAX_NAMED
    order = np.arange(len(case_ids)) if named else np.argsort(-total, kind="stable")
    edges = np.arange(len(order) + 1) - 0.5
    floor = np.zeros(len(order))
    for name, values in volumes_ml.items():
        top = floor + np.asarray(values, float)[order]
        look: dict[str, Any] = {"color": LABEL_COLOURS[name], "label": name.upper()}
        if named:
            axes.bar(range(len(order)), top - floor, width=0.85, bottom=floor, **look)
        else:
            # One outline a label, for thousands of cases too.
            axes.stairs(top, edges, baseline=floor, fill=True, **look)
        floor = top
    if named:
        axes.set_xticks(range(len(order)), [case_ids[i] for i in order], rotation=60, ha="right", fontsize=7)
    axes.set_ylim(0, 1.05 * max(float(total.max()), 1e-3))
    finish(axes, "Labels by case", "" if named else "cases, from large to small tumours", "ml")
    axes.legend(frameon=False, fontsize=9)
    return figure


def absent_labels_figure(slice_shares: Mapping[str, float], case_shares: Mapping[str, float]) -> Figure:
    """How often each label is absent: from axial slices through the brain, and from whole cases.

    Args:
        slice_shares: label -> share of slices without it, in [0, 1].
        case_shares: label -> share of cases without it, in [0, 1].
    """
    figure, axes = _one_panel(8, 0.9 + 0.6 * len(slice_shares))
    for row, name in enumerate(slice_shares):
        for shift, height, share, alpha in (
            (-0.17, 0.4, slice_shares[name], 1.0),
            (0.2, 0.2, case_shares[name], 0.45),
        ):
            axes.barh(row + shift, share, height=height, color=LABEL_COLOURS[name], alpha=alpha)
            axes.text(share + 0.01, row + shift, f"{100 * share:.1f} %", va="center", fontsize=8)
    axes.set_yticks(range(len(slice_shares)), [name.upper() for name in slice_shares])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    finish(
        axes,
        "WorkerResources without the label",
        "of axial slices through the brain (thin and pale: of cases)",
        "",
    )
    return figure


def tumour_area_figure(areas_cm2: Sequence[NDArray[np.float64]]) -> Figure:
    """Tumour area from the lowest slice of the brain to the highest.

    A thin line a case (of at most `MAX_CURVES`, evenly chosen), the median of all cases at each height in
    black, and between the grey band's edges four fifths of them.

    Args:
        areas_cm2: (S,) a case: the tumour's area in each axial slice through the brain, from below.
    """
    figure, axes = _one_panel(8, 4)
    heights = np.linspace(0, 1, 101)
    curves = np.array([np.interp(heights, np.linspace(0, 1, len(area)), area) for area in areas_cm2])
    for index in evenly_chosen(len(curves), MAX_CURVES):
        axes.plot(100 * heights, curves[index], linewidth=0.8, alpha=0.6)
    low, middle, high = np.percentile(curves, (10, 50, 90), axis=0)
    axes.fill_between(100 * heights, low, high, color="black", alpha=0.1, linewidth=0)
    axes.plot(100 * heights, middle, color="black", linewidth=2, label="median")
    axes.set_ylim(bottom=0)
    finish(axes, "Tumour area along the axis", "height in the brain, % from below", "cm²")
    axes.legend(frameon=False, fontsize=9)
    return figure


def intensities_figure(
    percentiles: Mapping[str, NDArray[np.float64]], histograms: Mapping[str, NDArray[np.int64]]
) -> Figure:
    """A column a modality: raw percentiles inside the brain by case, and z-scores of all cases together.

    Args:
        percentiles: modality -> (N, 7) of each case, at `PERCENTILES`.
        histograms: modality -> (100,) voxels in the bins of `ZSCORE_EDGES`.
    """
    count = len(percentiles)
    figure = Figure(figsize=(2.6 * count + 1, 5.4), layout="constrained")
    grid: NDArray[np.object_] = figure.subplots(2, count, squeeze=False)
    for column, (name, values) in enumerate(percentiles.items()):
        raw, pooled = grid[0, column], grid[1, column]
        cases = values[np.argsort(values[:, len(PERCENTILES) // 2], kind="stable")]
        position = np.arange(len(cases))
        for inner, alpha in ((0, 0.15), (1, 0.25), (2, 0.4)):
            raw.fill_between(
                position, cases[:, inner], cases[:, -1 - inner], color="#5b8def", alpha=alpha, linewidth=0
            )
        raw.plot(position, cases[:, len(PERCENTILES) // 2], color="black", linewidth=1.2)
        raw.set_xlim(-0.5, len(cases) - 0.5)
        raw.xaxis.get_major_locator().set_params(integer=True)
        finish(raw, name, "cases by median", "raw intensity" if column == 0 else "")
        density = histograms[name] / max(histograms[name].sum(), 1) / np.diff(ZSCORE_EDGES)
        pooled.stairs(density, ZSCORE_EDGES, fill=True, color="#5b8def", alpha=0.6)
        finish(pooled, "", "z-score", "density" if column == 0 else "")
    return figure


def evenly_chosen(total: int, most: int) -> list[int]:
    """At most `most` of the indices below `total`, evenly spaced, the first and the last among them."""
    return sorted({round(index) for index in np.linspace(0, total - 1, min(total, most)).tolist()})


def _agreed(manifest: Manifest, statistics: Iterable[CaseStatistics]) -> list[CaseStatistics]:
    """The statistics in the manifest's conventions, sorted by case."""
    conventions = {entry.case_id: entry.convention for entry in manifest.cases}
    known = sorted(
        (case for case in statistics if case.case_id in conventions), key=lambda case: case.case_id
    )
    return [case.with_convention(conventions[case.case_id]) for case in known]


def _label_figures(labelled: Sequence[CaseStatistics]) -> CaptionedFigures:
    totals = np.array([case.label_voxels.sum(0) for case in labelled])  # (N, 5)
    seen = [label for label, name in enumerate(LABELS) if label and (name != "rc" or totals[:, label].any())]
    through_brain = [case.label_voxels[case.brain_voxels > 0] for case in labelled]
    slices = np.concatenate(through_brain)
    volumes = {
        LABELS[label]: [
            float(total[label]) * float(np.prod(case.spacing_mm)) / 1000
            for total, case in zip(totals, labelled, strict=True)
        ]
        for label in seen
    }
    areas = [
        voxels[:, 1:].sum(1) * case.spacing_mm[0] * case.spacing_mm[1] / 100
        for voxels, case in zip(through_brain, labelled, strict=True)
    ]
    without = {
        LABELS[label]: [c.case_id for c, total in zip(labelled, totals, strict=True) if not total[label]]
        for label in seen
    }
    told = "".join(f" No {name.upper()} at all: {_some(ids)}." for name, ids in without.items() if ids)
    if any(CONVENTIONS[case.convention].regions == ("wt",) for case in labelled if case.convention):
        told += " Where masks tell the whole tumour alone, it counts as ED."
    no_tumour = float(np.mean(slices[:, 1:].sum(1) == 0))
    return {
        "label_volumes": (
            label_volumes_figure([case.case_id for case in labelled], volumes),
            "Volume of each label by case."
            + "".join(f" {name.upper()}: median {np.median(v):.1f} ml." for name, v in volumes.items()),
        ),
        "absent_labels": (
            absent_labels_figure(
                {LABELS[label]: float(np.mean(slices[:, label] == 0)) for label in seen},
                {name: len(ids) / len(labelled) for name, ids in without.items()},
            ),
            f"Of {len(slices)} axial slices through the brain, {100 * no_tumour:.1f} % hold no tumour."
            + told,
        ),
        "tumour_area": (
            tumour_area_figure(areas),
            f"Area of all labels together; a thin line a case{_at_most(len(areas), MAX_CURVES)}, the median of all "
            "in black, the grey band from the 10th to the 90th percentile.",
        ),
    }


def _intensities(described: Sequence[CaseStatistics]) -> tuple[Figure, str]:
    modalities = [name for name in MODALITIES if any(name in case.modalities for case in described)]
    rows: dict[str, list[np.ndarray]] = {name: [] for name in modalities}
    histograms = {name: np.zeros_like(described[0].histograms[0]) for name in modalities}
    for case in described:
        for channel, name in enumerate(case.modalities):
            rows[name].append(case.percentiles[channel])
            histograms[name] += case.histograms[channel]
    figure = intensities_figure({name: np.array(values) for name, values in rows.items()}, histograms)
    return figure, (
        "Voxels of the brain. Above: each case's raw intensities, black the median, the bands the 25th to 75th, 5th "
        "to 95th and 1st to 99th percentile. Below: all cases together after z-scoring each in its own brain; what lies beyond ±5 counts in the outermost bins."
    )


def _some(names: Sequence[str], most: int = 10) -> str:
    told = ", ".join(names[:most])
    return f"{told} and {len(names) - most} more" if len(names) > most else told


def _at_most(total: int, most: int) -> str:
    return f" ({most} of {total}, evenly chosen)" if total > most else ""


def _one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()
