"""The report on a data set: what it contains, its problems, and how labels and intensities are distributed.

The page is one HTML file without scripts and links; its figures are embedded.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure

from glioray.cases.labels import LABELS
from glioray.cases.load import load_case
from glioray.cases.manifest import CaseEntry, Manifest
from glioray.config import PreprocessConfig
from glioray.reports.case_figures import preparation_figure
from glioray.reports.data_figures import CaptionedFigures
from glioray.reports.html import render
from glioray.reports.tables import Table
from glioray.slices.example import before_and_after
from glioray.storage import open_storage

REPORT = "report.html"

_MAX_LISTED = 200


def report_page(manifest: Manifest, figures: CaptionedFigures) -> str:
    """Build the page, as HTML.

    Args:
        manifest: of the data set.
        figures: of `data_figures`, and of `preparation_figures` where they are wanted.
    """
    return render(
        "data_report.html",
        data=manifest.data,
        num_cases=len(manifest.cases),
        facts=_facts(manifest),
        notes=manifest.notes,
        problems=manifest.problems[:_MAX_LISTED],
        num_unlisted=max(len(manifest.problems) - _MAX_LISTED, 0),
        figures=[
            {"name": name, "caption": caption, "png": _base64_png(figure)}
            for name, (figure, caption) in figures.items()
        ],
        cases=_cases(manifest),
    )


def preparation_figures(manifest: Manifest, config: PreprocessConfig) -> CaptionedFigures:
    """Draw the data set's first labelled case (or its first) before and after preprocessing.

    Raises:
        CaseError, UsageError: as `preprocess`.
    """
    entry = (manifest.select("labelled") or manifest.select("all"))[0]
    case = load_case(open_storage(manifest.data), entry.described_files)
    default = PreprocessConfig()
    changed = [f"{name} = {value}" for name, value in config if value != getattr(default, name)]
    caption = f"Case {case.case_id} as stored in its files, and as the network's input, preprocessed"
    caption += f" with {', '.join(changed)}." if changed else " with the default settings."
    return {"preparation": (preparation_figure(*before_and_after(case, config)), caption)}


def _facts(manifest: Manifest) -> dict[str, str]:
    cases = manifest.cases
    splits = ", ".join(f"{name} {len(ids)}" for name, ids in manifest.splits.items())
    return {
        "cases": f"{len(cases)} of {len({case.patient_id for case in cases})} patients, "
        f"{sum(case.has_mask for case in cases)} with a mask",
        "problems": str(len(manifest.problems)),
        "splits": f"{splits}; {len(manifest.folds)} folds; seed {manifest.seed}",
        "hash": manifest.hash,
        "layouts": _count_values(case.files.layout for case in cases),
        "label conventions": _count_values(case.convention or "no mask" for case in cases),
        "modalities": _count_values(" ".join(case.modalities) for case in cases),
        "shapes": _count_values(" × ".join(map(str, case.shape)) for case in cases),
        "spacings, mm": _count_values(" × ".join(f"{mm:.3g}" for mm in case.spacing_mm) for case in cases),
    }


def _base64_png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return base64.b64encode(buffer.getvalue()).decode()


def _cases(manifest: Manifest) -> Table:
    split_of = {case_id: name for name, ids in manifest.splits.items() for case_id in ids}
    labels = LABELS[1:]
    volumes = [f"{name.upper()}, ml" for name in labels]
    return Table(
        ["case", "patient", "split", "shape", "spacing, mm", "convention", "brain, ml", *volumes],
        [_case_cells(case, split_of.get(case.case_id, ""), labels) for case in manifest.cases],
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


def _count_values(values: Iterable[str], most: int = 10) -> str:
    """Each value and how often it occurs, the most frequent first."""
    counts = Counter(values).most_common()
    text = "; ".join(f"{value} ({count})" for value, count in counts[:most])
    return f"{text}; and {len(counts) - most} others" if len(counts) > most else text
