"""What the endpoint and trainings measure, as Prometheus scrapes it from a node."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import requests
from serve.metrics import RayRecorder

from glioray.engine.collectives import Ranks
from glioray.engine.on_ray import gauges
from glioray.errors import DataError

pytestmark = pytest.mark.usefixtures("ray_local")

_TAGS = "route|task|status|stage|version|le|run|state|reason"


def _scrape() -> dict[str, float]:
    """Series with its tags in order -> value, of glioray's metrics."""
    (node,) = ray.nodes()
    text = requests.get(
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=30
    ).text
    found = {}
    for name, tags, value in re.findall(r"^(ray_glioray_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        own = sorted(re.findall(rf'\b((?:{_TAGS})="[^"]*")', tags))
        found[f"{name}{{{','.join(own)}}}"] = float(value)
    return found


def _expect(series: dict[str, float]) -> None:
    deadline = time.monotonic() + 120
    while (found := _scrape()) is not None and not series.items() <= found.items():
        assert time.monotonic() < deadline, found
        time.sleep(1)


def test_what_the_endpoint_offers() -> None:
    recorder = RayRecorder()
    for _ in range(2):
        recorder.count_request("/v1/segment", "segmentation", "200")
    recorder.count_request("/v1/segment", "segmentation", "429")
    recorder.observe_latency("work", "segmentation", 2.0)
    recorder.set_in_flight("segmentation", 3)
    recorder.set_model("segmentation", "models:/net/1", None)
    recorder.set_model("segmentation", "models:/net/2", "models:/net/1")
    _expect({
        'ray_glioray_requests_total{route="/v1/segment",status="200",task="segmentation"}': 2,
        'ray_glioray_requests_total{route="/v1/segment",status="429",task="segmentation"}': 1,
        'ray_glioray_latency_seconds_count{stage="work",task="segmentation"}': 1,
        'ray_glioray_latency_seconds_sum{stage="work",task="segmentation"}': 2,
        'ray_glioray_latency_seconds_bucket{le="1.0",stage="work",task="segmentation"}': 0,
        'ray_glioray_latency_seconds_bucket{le="3.0",stage="work",task="segmentation"}': 1,
        'ray_glioray_in_flight{task="segmentation"}': 3,
        'ray_glioray_model{task="segmentation",version="models:/net/1"}': 0,
        'ray_glioray_model{task="segmentation",version="models:/net/2"}': 1,
    })  # fmt: skip


def test_what_a_training_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    plan: Any = SimpleNamespace(task=SimpleNamespace(name="painting"), run_name="first")
    reports: list[dict[str, float]] = []

    def train(plan: Any, ranks: Ranks, fill: Any, report: Any, is_leaving: Any) -> dict[str, object]:
        report(
            {
                "progress": 0.5,
                "slices_per_s": 20.0,
                "step_s": 0.25,
                "wait_s": 0.5,
                "validation_s": 3.0,
                "loss": 1.0,
            }
        )
        report({"progress": 1.0, "slices_per_s": 10.0})
        return {"stopped": "dried out: no colour for 3 validations"}

    monkeypatch.setattr(gauges, "train_run", train)
    gauges.train_measured(plan, Ranks(), reports.append)
    assert [report["progress"] for report in reports] == [0.5, 1.0]
    # Another rank reports and measures nothing.
    gauges.train_measured(plan, Ranks(rank=1, world_size=2), reports.append)
    assert len(reports) == 4

    def fail(*_: Any) -> dict[str, object]:
        raise DataError("no case")

    monkeypatch.setattr(gauges, "train_run", fail)
    with pytest.raises(DataError):
        gauges.train_measured(plan, Ranks())
    _expect({
        'ray_glioray_train_progress{run="first",task="painting"}': 1.0,
        'ray_glioray_train_slices_per_second{run="first",task="painting"}': 10.0,
        'ray_glioray_train_step_seconds{run="first",task="painting"}': 0.25,
        'ray_glioray_train_wait_seconds{run="first",task="painting"}': 0.5,
        'ray_glioray_train_validation_seconds{run="first",task="painting"}': 3.0,
        'ray_glioray_train_runs_total{reason="dried out",state="stopped",task="painting"}': 1,
        'ray_glioray_train_runs_total{reason="DataError",state="failed",task="painting"}': 1,
    })  # fmt: skip
