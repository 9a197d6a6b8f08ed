"""The endpoint's measurements, as Prometheus scrapes them from a node."""

from __future__ import annotations

import re
import time

import pytest
import ray
import requests
from serve.metrics import RayRecorder

pytestmark = pytest.mark.usefixtures("ray_local")


def _scrape() -> dict[str, float]:
    """Series with its tags in order -> value, of glioray's metrics."""
    (node,) = ray.nodes()
    text = requests.get(
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=30
    ).text
    found = {}
    for name, tags, value in re.findall(r"^(ray_glioray_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        own = sorted(re.findall(r'\b((?:route|task|status|stage|version|le)="[^"]*")', tags))
        found[f"{name}{{{','.join(own)}}}"] = float(value)
    return found


def test_what_prometheus_reads() -> None:
    recorder = RayRecorder()
    for _ in range(2):
        recorder.count_request("/v1/segment", "segmentation", "200")
    recorder.count_request("/v1/segment", "segmentation", "429")
    recorder.observe_latency("work", "segmentation", 2.0)
    recorder.set_in_flight("segmentation", 3)
    recorder.set_model("segmentation", "models:/net/1", None)
    recorder.set_model("segmentation", "models:/net/2", "models:/net/1")
    expected = {
        'ray_glioray_requests_total{route="/v1/segment",status="200",task="segmentation"}': 2,
        'ray_glioray_requests_total{route="/v1/segment",status="429",task="segmentation"}': 1,
        'ray_glioray_latency_seconds_count{stage="work",task="segmentation"}': 1,
        'ray_glioray_latency_seconds_sum{stage="work",task="segmentation"}': 2,
        'ray_glioray_latency_seconds_bucket{le="1.0",stage="work",task="segmentation"}': 0,
        'ray_glioray_latency_seconds_bucket{le="3.0",stage="work",task="segmentation"}': 1,
        'ray_glioray_in_flight{task="segmentation"}': 3,
        'ray_glioray_model{task="segmentation",version="models:/net/1"}': 0,
        'ray_glioray_model{task="segmentation",version="models:/net/2"}': 1,
    }
    deadline = time.monotonic() + 120
    while (found := _scrape()) is not None and not expected.items() <= found.items():
        assert time.monotonic() < deadline, found
        time.sleep(1)
