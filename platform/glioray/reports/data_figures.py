"""Figures of a data set, with captions: labels, tumour area, intensities and some of its cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from glioray.cases.conventions import find_convention
from glioray.cases.labels import LABELS
from glioray.cases.manifest import Manifest
from glioray.cases.statistics import PERCENTILES, ZSCORE_EDGES, CaseStatistics
from glioray.config import MODALITIES
from glioray.reports.axes import finish
from glioray.reports.case_figures import cases_figure
from glioray.reports.images import LABEL_COLOURS

MAX_NAMED = 40
"""Up to this many cases, each bar is labelled with its case."""

MAX_CURVES = 24
"""The largest number of cases drawn as curves of their own."""

MAX_PICTURES = 24
"""The largest number of cases shown as images; thousands would make a page that no browser opens."""

_CASES_A_FIGURE = 6

CaptionedFigures = dict[str, tuple[Figure, str]]
"""File name -> a figure and its caption."""


def choose_pictured(case_ids: Sequence[str]) -> list[str]:
    """Choose the cases to show: all, or `MAX_PICTURES` of them, evenly spaced in their order."""
    return [case_ids[index] for index in evenly_spaced(len(case_ids), MAX_PICTURES)] if case_ids else []


def data_figures(manifest: Manifest, statistics: Iterable[CaseStatistics]) -> CaptionedFigures:
    """Draw a data set's labels, tumour areas, intensities and some of its cases.

    Args:
        manifest: of the data set.
        statistics: of its valid cases, in any order; statistics of other cases are ignored.
    """
    described = _harmonize(manifest, statistics)
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
            + (f", evenly spaced among {len(described)}" if len(pictured) < len(described) else "")
            + ": the axial slice with the most tumour (without labels: the most brain), anterior at the top and the "
            "patient's right on the left.",
        )
    return figures


def label_volumes_figure(case_ids: Sequence[str], volumes_ml: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the label volumes of each case, stacked: by name, or by size where there are too many names to read.

    Args:
        case_ids: in the order of the volumes.
        volumes_ml: label ("ncr", ...) -> one volume a case.
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
            # One outline a label stays fast with thousands of cases.
            axes.stairs(top, edges, baseline=floor, fill=True, **look)
        floor = top
    if named:
        axes.set_xticks(range(len(order)), [case_ids[i] for i in order], rotation=60, ha="right", fontsize=7)
    axes.set_ylim(0, 1.05 * max(float(total.max()), 1e-3))
    finish(axes, "Labels by case", "" if named else "cases, by decreasing tumour volume", "ml")
    axes.legend(frameon=False, fontsize=9)
    return figure


def absent_labels_figure(slice_shares: Mapping[str, float], case_shares: Mapping[str, float]) -> Figure:
    """Draw how often each label is absent from axial slices through the brain, and from whole cases.

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
        "Shares without the label",
        "share of axial slices through the brain (thin, pale bars: of cases)",
        "",
    )
    return figure


def tumour_area_figure(areas_cm2: Sequence[NDArray[np.float64]]) -> Figure:
    """Draw the tumour area from the lowest slice of the brain to the highest.

    One thin line a case (at most `MAX_CURVES`, evenly spaced); black: the median of all cases at each height; grey
    band: the 10th to the 90th percentile.

    Args:
        areas_cm2: one (S,) a case: the tumour area in each axial slice through the brain, lowest first.
    """
    figure, axes = _one_panel(8, 4)
    heights = np.linspace(0, 1, 101)
    curves = np.array([np.interp(heights, np.linspace(0, 1, len(area)), area) for area in areas_cm2])
    for index in evenly_spaced(len(curves), MAX_CURVES):
        axes.plot(100 * heights, curves[index], linewidth=0.8, alpha=0.6)
    low, middle, high = np.percentile(curves, (10, 50, 90), axis=0)
    axes.fill_between(100 * heights, low, high, color="black", alpha=0.1, linewidth=0)
    axes.plot(100 * heights, middle, color="black", linewidth=2, label="median")
    axes.set_ylim(bottom=0)
    finish(axes, "Tumour area along the axis", "height in the brain, % from its lowest slice", "cm²")
    axes.legend(frameon=False, fontsize=9)
    return figure


def intensities_figure(
    percentiles: Mapping[str, NDArray[np.float64]], histograms: Mapping[str, NDArray[np.int64]]
) -> Figure:
    """Draw a column a modality: raw percentiles within the brain by case, and the z-scores of all cases.

    Args:
        percentiles: modality -> (N, 7), one row a case, at `PERCENTILES`.
        histograms: modality -> (100,) number of voxels in the bins of `ZSCORE_EDGES`.
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


def evenly_spaced(total: int, most: int) -> list[int]:
    """At most `most` of the indices below `total`, evenly spaced, the first and the last among them."""
    return sorted({round(index) for index in np.linspace(0, total - 1, min(total, most)).tolist()})


def _harmonize(manifest: Manifest, statistics: Iterable[CaseStatistics]) -> list[CaseStatistics]:
    """The statistics of the manifest's cases in its label conventions, sorted by case."""
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
    notes = "".join(f" No {name.upper()} at all: {_list_some(ids)}." for name, ids in without.items() if ids)
    regions = {find_convention(case.convention).regions for case in labelled if case.convention}
    if ("wt",) in regions:
        notes += " Masks that hold only the whole tumour count as ED."
    if any("et" not in known and "tc" in known for known in regions):
        notes += " Masks that do not divide the core count it as NCR."
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
            + notes,
        ),
        "tumour_area": (
            tumour_area_figure(areas),
            f"Area of all labels together. Thin lines: cases{_at_most(len(areas), MAX_CURVES)}; black: the median of all "
            "cases; grey band: the 10th to the 90th percentile.",
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
        "Brain voxels. Top: raw intensities by case; black: the median; bands: the 25th to 75th, 5th to 95th and 1st to "
        "99th percentiles. Bottom: all cases, each z-scored within its own brain; values beyond ±5 fall into the "
        "outermost bins."
    )


def _list_some(names: Sequence[str], most: int = 10) -> str:
    listed = ", ".join(names[:most])
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed


def _at_most(total: int, most: int) -> str:
    return f" ({most} of {total}, evenly spaced)" if total > most else ""


def _one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()
