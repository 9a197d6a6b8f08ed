"""A data set as one page: what it holds, what is wrong with it, how its labels and intensities lie.

The page is one HTML file without scripts and without links: its pictures are in it.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from html import escape

import numpy as np
from matplotlib.figure import Figure

from glioray.cases.labels import CONVENTIONS, LABELS
from glioray.cases.load import load_case
from glioray.cases.manifest import CaseEntry, Manifest
from glioray.cases.statistics import CaseStatistics
from glioray.config import PreprocessConfig
from glioray.engine.on_mlflow.runs import RunLogger
from glioray.reports.data_figures import CaptionedFigures, data_figures
from glioray.slices.example import before_and_after
from glioray.storage import join_uri, open_storage
from glioray.tasks.segmentation.figures import preparation_figure

REPORT = "report.html"

_MAX_LISTED = 200


def report_page(manifest: Manifest, figures: CaptionedFigures) -> str:
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


def preparation_figures(manifest: Manifest, config: PreprocessConfig) -> CaptionedFigures:
    """What preparing does to the data set's first labelled case (or its first), before and after.

    Raises:
        CaseError, UsageError: as `preprocess`.
    """
    entry = (manifest.select("labelled") or manifest.select("all"))[0]
    convention = None if entry.convention is None else CONVENTIONS[entry.convention]
    case = load_case(open_storage(manifest.data), entry.files, convention=convention)
    plain = PreprocessConfig()
    settings = {field.name: getattr(config, field.name) for field in fields(config)}
    told = [f"{name} = {value}" for name, value in settings.items() if value != getattr(plain, name)]
    caption = f"Case {case.case_id} as its files have it, and as a network is fed it"
    caption += f" with {', '.join(told)}." if told else " by default."
    return {"preparation": (preparation_figure(*before_and_after(case, config)), caption)}


def publish_report(
    manifest: Manifest,
    statistics: Iterable[CaseStatistics],
    out: str,
    experiment: str,
    shown: PreprocessConfig | None = None,
) -> dict[str, str]:
    """Write `report.html` below `out` and log page and pictures to a run of MLflow; "report" and "run_id".

    The run is the data set's own: the same contents with the same splits go on in the same run.

    Args:
        manifest: of the data set.
        statistics: of its good cases.
        out: a folder or `s3://` URI.
        experiment: of MLflow.
        shown: a preparation whose effect is shown on one case.

    Raises:
        StorageError: `out` cannot be written, or MLflow does not answer.
        CaseError, UsageError: the case cannot be prepared so.
    """
    figures = data_figures(manifest, statistics)
    if shown is not None and manifest.cases:
        figures |= preparation_figures(manifest, shown)
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


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fff;max-width:1100px;margin:2em auto;padding:0 1em}"
    "h1{font-size:1.4em;overflow-wrap:anywhere}h2{font-size:1.1em;margin-top:2em}"
    "table{border-collapse:collapse;font-size:.9em}th,td{text-align:left;vertical-align:top;padding:.2em .8em .2em 0;"
    "border-bottom:1px solid #ddd}figure{margin:1.5em 0}img{max-width:100%}figcaption{color:#555;font-size:.9em}"
    "details{overflow-x:auto}summary{cursor:pointer;margin:1em 0}"
)
