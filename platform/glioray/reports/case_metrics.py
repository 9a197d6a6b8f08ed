"""Metrics of several cases: means, intervals over patients, and tables."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from glioray.reports.intervals import FEW_PATIENTS, bootstrap_interval
from glioray.reports.tables import Table

CaseMetrics = dict[str, dict[str, float]]
"""A case's metrics: row, such as a region or a modality -> metric -> value.

A case may lack a row, or a metric of a row; means and intervals are over the cases that have it.
"""


def mean_metrics(cases: Mapping[str, CaseMetrics]) -> CaseMetrics:
    """Row -> metric -> mean over the cases that have it."""
    return {
        row: {name: float(np.mean(list(values.values()))) for name, values in metrics.items()}
        for row, metrics in _values(cases).items()
    }


def metric_intervals(
    cases: Mapping[str, CaseMetrics], patients: Mapping[str, str]
) -> dict[str, dict[str, tuple[float, float]]]:
    """Row -> metric -> (low, high), the bootstrap 95 % interval of its mean over patients.

    A metric that fewer than two patients have is left out.

    Args:
        cases: metrics by case id.
        patients: patient id by case id.
    """
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    for row, metrics in _values(cases).items():
        for name, values in metrics.items():
            owners = [patients[case_id] for case_id in values]
            if len(set(owners)) > 1:
                own = intervals.setdefault(row, {})
                own[name] = bootstrap_interval(list(values.values()), owners)
    return intervals


def _values(cases: Mapping[str, CaseMetrics]) -> dict[str, dict[str, dict[str, float]]]:
    """Row -> metric -> case id -> value, of the cases that have it."""
    values: dict[str, dict[str, dict[str, float]]] = {}
    for case_id, case in cases.items():
        for row, metrics in case.items():
            for name, value in metrics.items():
                values.setdefault(row, {}).setdefault(name, {})[case_id] = value
    return values


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
                if name in metrics
                else "-"
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
