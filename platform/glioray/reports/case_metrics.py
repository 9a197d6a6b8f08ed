"""Metrics of several cases: means, intervals over patients, and tables."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from glioray.reports.intervals import FEW_PATIENTS, bootstrap_interval
from glioray.reports.tables import Table

CaseMetrics = dict[str, dict[str, float]]
"""A case's metrics: row, such as a region or a modality -> metric -> value."""


def mean_metrics(cases: Mapping[str, CaseMetrics]) -> CaseMetrics:
    """Row -> metric -> mean over the cases that have the row."""
    rows = {row: list(metrics) for case in cases.values() for row, metrics in case.items()}
    return {
        row: {
            name: float(np.mean([case[row][name] for case in cases.values() if row in case]))
            for name in names
        }
        for row, names in rows.items()
    }


def metric_intervals(
    cases: Mapping[str, CaseMetrics], patients: Mapping[str, str]
) -> dict[str, dict[str, tuple[float, float]]]:
    """Row -> metric -> (low, high), the bootstrap 95 % interval of its mean over patients.

    A row that fewer than two patients have is left out.

    Args:
        cases: metrics by case id.
        patients: patient id by case id.
    """
    intervals = {}
    for row, metrics in mean_metrics(cases).items():
        with_row = [case_id for case_id in cases if row in cases[case_id]]
        owners = [patients[case_id] for case_id in with_row]
        if len(set(owners)) > 1:
            intervals[row] = {
                name: bootstrap_interval([cases[case_id][row][name] for case_id in with_row], owners)
                for name in metrics
            }
    return intervals


def metrics_csv(cases: Mapping[str, CaseMetrics], kind: str = "region") -> str:
    """A CSV table with one line for each case and row; `kind` names the column of rows."""
    records = [
        {"case": case_id, kind: row, **metrics}
        for case_id, case in sorted(cases.items())
        for row, metrics in case.items()
    ]
    return Table.from_records(records).to_csv()


def metric_rows(
    cases: Mapping[str, CaseMetrics], patients: Mapping[str, str], columns: Mapping[str, int]
) -> dict[str, list[str]]:
    """Row -> cells of a table: the number of cases, then each metric's mean with its interval.

    Args:
        cases: metrics by case id.
        patients: patient id by case id.
        columns: metric -> decimals.
    """
    intervals = metric_intervals(cases, patients)
    return {
        row: [
            str(sum(row in case for case in cases.values())),
            *(
                metric_cell(metrics[name], intervals.get(row, {}).get(name), decimals)
                for name, decimals in columns.items()
            ),
        ]
        for row, metrics in mean_metrics(cases).items()
    }


def metric_cell(mean: float, interval: tuple[float, float] | None, decimals: int) -> str:
    """A mean with its interval, where there is one."""
    text = f"{mean:.{decimals}f}"
    return text if interval is None else f"{text} [{interval[0]:.{decimals}f}, {interval[1]:.{decimals}f}]"


def interval_caveat(num_patients: int) -> str:
    """A sentence about intervals over so few patients; empty where there are enough."""
    if num_patients >= FEW_PATIENTS:
        return ""
    if num_patients < 2:
        return " With one patient there are no intervals."
    return " With so few patients the intervals are too narrow; read them as a hint."


def failed_lines(failed: Mapping[str, str]) -> list[str]:
    """A line for each case that could not be evaluated, with its reason."""
    return [f"Not among them: {case_id} ({' '.join(reason.split())})." for case_id, reason in failed.items()]
