"""A data set as one page: what it holds, what is wrong with it, how its labels and intensities lie.

The page is one HTML file without scripts and without links: its pictures are in it.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
from matplotlib.figure import Figure

from glioray.cases.labels import CONVENTIONS, LABELS
from glioray.cases.manifest import CaseEntry, Manifest
from glioray.cases.statistics import CaseStatistics
from glioray.config import MODALITIES
from glioray.storage import join_uri, open_storage
from glioray.tracking.data_figures import (
    MAX_CURVES,
    absent_labels_figure,
    evenly_chosen,
    intensities_figure,
    label_volumes_figure,
    tumour_area_figure,
)
from glioray.tracking.figures import cases_figure
from glioray.tracking.runs import RunLogger

REPORT = "report.html"

MAX_PICTURES = 24
"""Cases that are shown; thousands would make a page that no browser opens."""

_CASES_A_FIGURE = 6
_MAX_LISTED = 200


def choose_pictured(case_ids: Sequence[str]) -> list[str]:
    """The cases to be shown: all, or `MAX_PICTURES` of them, evenly chosen in their order."""
    return [case_ids[index] for index in evenly_chosen(len(case_ids), MAX_PICTURES)] if case_ids else []


def data_figures(manifest: Manifest, statistics: Iterable[CaseStatistics]) -> dict[str, tuple[Figure, str]]:
    """File name -> picture and what it shows.

    Args:
        manifest: of the data set.
        statistics: of its good cases, in any order; those of other cases are left out.
    """
    described = _agreed(manifest, statistics)
    labelled = [case for case in described if case.convention is not None]
    figures: dict[str, tuple[Figure, str]] = {}
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


def report_page(manifest: Manifest, figures: Mapping[str, tuple[Figure, str]]) -> str:
    """The page as HTML text.

    Args:
        manifest: of the data set.
        figures: as `data_figures` gives them.
    """
    parts = [
        f"<h1>Data set {escape(manifest.data)}</h1>",
        _facts(manifest),
        _problems(manifest),
        "<h2>Labels, intensities, cases</h2>",
        *(_figure(name, figure, caption) for name, (figure, caption) in figures.items()),
        _cases(manifest),
    ]
    title = escape(f"{manifest.data}: {len(manifest.cases)} cases")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def publish_report(
    manifest: Manifest, statistics: Iterable[CaseStatistics], out: str, experiment: str
) -> dict[str, str]:
    """Write `report.html` below `out` and log page and pictures to a run of MLflow; "report" and "run_id".

    The run is the data set's own: the same contents with the same splits go on in the same run.

    Raises:
        StorageError: `out` cannot be written, or MLflow does not answer.
    """
    figures = data_figures(manifest, statistics)
    page = report_page(manifest, figures)
    storage = open_storage(out)
    storage.write(REPORT, page.encode())
    run = RunLogger.open_run(experiment, f"data-{manifest.hash}", kind="data")
    run.log_params({"data": manifest.data, "manifest_hash": manifest.hash, "num_cases": len(manifest.cases)})
    for name, (figure, _) in figures.items():
        run.log_figure(figure, f"report/{name}.png")
    run.log_text(page, f"report/{REPORT}")
    run.finish()
    return {"report": join_uri(storage.uri, REPORT), "run_id": run.run_id}


def _agreed(manifest: Manifest, statistics: Iterable[CaseStatistics]) -> list[CaseStatistics]:
    """The statistics in the manifest's conventions, sorted by case."""
    conventions = {entry.case_id: entry.convention for entry in manifest.cases}
    known = sorted(
        (case for case in statistics if case.case_id in conventions), key=lambda case: case.case_id
    )
    return [case.relabelled(conventions[case.case_id]) for case in known]


def _label_figures(labelled: Sequence[CaseStatistics]) -> dict[str, tuple[Figure, str]]:
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


def _facts(manifest: Manifest) -> str:
    cases = manifest.cases
    splits = ", ".join(f"{name} {len(ids)}" for name, ids in manifest.splits.items())
    rows = {
        "cases": f"{len(cases)} of {len({case.patient_id for case in cases})} patients, "
        f"{sum(case.has_mask for case in cases)} with a mask",
        "problems": str(len(manifest.problems)),
        "splits": f"{splits}; {len(manifest.folds)} folds; seed {manifest.seed}",
        "hash": manifest.hash,
        "layouts": _counted(case.files.layout for case in cases),
        "label conventions": _counted(case.convention or "no mask" for case in cases),
        "modalities": _counted(" ".join(case.modalities) for case in cases),
        "shapes": _counted(" × ".join(map(str, case.shape)) for case in cases),
        "spacings, mm": _counted(" × ".join(f"{mm:.3g}" for mm in case.spacing_mm) for case in cases),
    }
    lines = (f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{''.join(lines)}</table>"


def _problems(manifest: Manifest) -> str:
    if not manifest.problems:
        return "<h2>Problems</h2>\n<p>None.</p>"
    listed = [f"<li>{escape(str(problem))}</li>" for problem in manifest.problems[:_MAX_LISTED]]
    left = len(manifest.problems) - len(listed)
    more = f"<p>And {left} more; they are all in the manifest.</p>" if left else ""
    return f"<h2>Problems</h2>\n<ul>{''.join(listed)}</ul>{more}"


def _figure(name: str, figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure id="{escape(name)}"><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _cases(manifest: Manifest) -> str:
    split_of = {case_id: name for name, ids in manifest.splits.items() for case_id in ids}
    labels = LABELS[1:]
    head = ("case", "patient", "split", "shape", "spacing, mm", "convention", "brain, ml", *_in_ml(labels))
    body = "".join(_row(_case_cells(case, split_of.get(case.case_id, ""), labels)) for case in manifest.cases)
    return (
        f"<details><summary>All {len(manifest.cases)} cases</summary><table><thead><tr>"
        f"{''.join(f'<th>{name}</th>' for name in head)}</tr></thead><tbody>{body}</tbody></table></details>"
    )


def _case_cells(case: CaseEntry, split: str, labels: Sequence[str]) -> list[str]:
    voxel_ml = float(np.prod(case.spacing_mm)) / 1000
    return [
        case.case_id,
        case.patient_id,
        split,
        " × ".join(map(str, case.shape)),
        " × ".join(f"{mm:.3g}" for mm in case.spacing_mm),
        case.convention or "",
        f"{case.brain_voxels * voxel_ml:.0f}",
        *(f"{case.label_voxels[name] * voxel_ml:.2f}" if case.has_mask else "" for name in labels),
    ]


def _in_ml(labels: Sequence[str]) -> list[str]:
    return [f"{name.upper()}, ml" for name in labels]


def _row(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _counted(values: Iterable[str], most: int = 10) -> str:
    """Each value and how often it occurs, the most frequent first."""
    found = Counter(values).most_common()
    told = "; ".join(f"{value} ({count})" for value, count in found[:most])
    return f"{told}; and {len(found) - most} others" if len(found) > most else told


def _some(names: Sequence[str], most: int = 10) -> str:
    told = ", ".join(names[:most])
    return f"{told} and {len(names) - most} more" if len(names) > most else told


def _at_most(total: int, most: int) -> str:
    return f" ({most} of {total}, evenly chosen)" if total > most else ""


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fff;max-width:1100px;margin:2em auto;padding:0 1em}"
    "h1{font-size:1.4em;overflow-wrap:anywhere}h2{font-size:1.1em;margin-top:2em}"
    "table{border-collapse:collapse;font-size:.9em}th,td{text-align:left;vertical-align:top;padding:.2em .8em .2em 0;"
    "border-bottom:1px solid #ddd}figure{margin:1.5em 0}img{max-width:100%}figcaption{color:#555;font-size:.9em}"
    "details{overflow-x:auto}summary{cursor:pointer;margin:1em 0}"
)
