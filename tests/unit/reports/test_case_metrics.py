"""Metrics of several cases: means, intervals and a table."""

from __future__ import annotations

import csv
import io

from glioray.reports.case_metrics import mean_metrics, metric_intervals, metrics_csv
from glioray.reports.intervals import bootstrap_interval

CASES = {
    "b": {"wt": {"dice": 0.5, "hd95_mm": 4.0}, "rc": {"dice": 0.2, "hd95_mm": 374.0}},
    "a": {"wt": {"dice": 1.0, "hd95_mm": 1.0}},
}


def test_means_are_over_the_cases_that_report_a_region():
    assert mean_metrics(CASES) == {
        "wt": {"dice": 0.75, "hd95_mm": 2.5},
        "rc": {"dice": 0.2, "hd95_mm": 374.0},
    }
    assert mean_metrics(dict(reversed(CASES.items()))) == mean_metrics(CASES)


def test_csv_is_a_line_a_case_and_region():
    rows = list(csv.DictReader(io.StringIO(metrics_csv(CASES))))
    assert rows == [
        {"case": "a", "region": "wt", "dice": "1.0", "hd95_mm": "1.0"},
        {"case": "b", "region": "wt", "dice": "0.5", "hd95_mm": "4.0"},
        {"case": "b", "region": "rc", "dice": "0.2", "hd95_mm": "374.0"},
    ]


def test_intervals_are_over_the_patients_that_report_a_region():
    cases = {f"case{i}": {"wt": {"dice": value}} for i, value in enumerate([0.1, 0.5, 0.9, 0.7])}
    cases["case0"]["rc"] = {"dice": 0.3}
    patients = {"case0": "p", "case1": "p", "case2": "q", "case3": "r"}
    intervals = metric_intervals(cases, patients)
    assert intervals == {"wt": {"dice": bootstrap_interval([0.1, 0.5, 0.9, 0.7], ["p", "p", "q", "r"])}}
