"""Publishes the report on a data set: beside its manifest, and in an MLflow run of its own."""

from __future__ import annotations

from collections.abc import Iterable

from glioray.cases.manifest import Manifest
from glioray.cases.statistics import CaseStatistics
from glioray.config import PreprocessConfig
from glioray.engine.on_mlflow.runs import RunLogger
from glioray.reports.data_figures import data_figures
from glioray.reports.data_report import REPORT, preparation_figures, report_page
from glioray.storage import join_uri, open_storage


def publish_report(
    manifest: Manifest,
    statistics: Iterable[CaseStatistics],
    out: str,
    experiment: str,
    shown: PreprocessConfig | None = None,
) -> dict[str, str | None]:
    """Write `report.html` below `out`, and log page and figures to MLflow.

    The run belongs to the data: the same contents with the same splits resume the same run.

    Args:
        manifest: of the data set.
        statistics: of its valid cases.
        out: a folder or `s3://` URI.
        experiment: of MLflow.
        shown: a preprocessing whose effect is shown on one case.

    Returns: "report", the page's URI, "run_id" and "run_url" (None where no server shows it).

    Raises:
        StorageError: `out` cannot be written, or MLflow does not answer.
        CaseError, UsageError: the case cannot be preprocessed in this way.
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
    return {"report": join_uri(storage.uri, REPORT), "run_id": run.run_id, "run_url": run.url}
